"""Reports of a job, filled into those that `sr.report` made (see `templates`)."""

from functools import lru_cache

from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.valuerep import DS

from pneumo_ray.pacs.objects import instance_uid, refill, series_uid
from pneumo_ray.pacs.result import Algorithm, Result
from pneumo_ray.pacs.source import Source
from pneumo_ray.pacs.sr import evaluations, numbers, report, tracking_uid, uncertainty
from pneumo_ray.pacs.templates import Templates
from pneumo_ray.storage import Pieces


class Reports:
    """The reports of a job."""

    def __init__(self, algorithm: Algorithm) -> None:
        """Begin without a report.

        Args:
            algorithm: what found the results.
        """
        self._algorithm = algorithm
        self._templates = Templates()

    def file(self, source: Source, result: Result) -> Pieces:
        """Return the file of a report, as that of `sr.report`."""
        return self._templates.file(
            _structure(source, result),
            lambda: report(source, result, self._algorithm),
            lambda template: self._fill(template, source, result),
        )

    def _fill(self, template: Dataset, source: Source, result: Result) -> None:
        refill(template, source, self._algorithm, "sr")
        self._refer(template, source)
        group = next(item for item in template.ContentSequence if item.get("ContentSequence") is not None)
        items = group.ContentSequence[0].ContentSequence
        values, found = numbers(result), evaluations(result)
        images = iter(instance_uid(source, self._algorithm, part) for part in self._algorithm.explanations)
        names = {_code(name)[:2] for name, _ in evaluations(result)}
        for item in items:
            match item.ValueType:
                case "NUM":
                    _set(item, next(values).value)
                case "UIDREF":
                    item.UID = tracking_uid(source)
                case "CODE" if _name(item) in names:
                    item.ConceptCodeSequence = [_dataset(_code(next(found)[1]))]
                case "IMAGE":
                    reference = item.ReferencedSOPSequence[0]
                    is_source = "ContentSequence" not in item
                    reference.ReferencedSOPInstanceUID = source.uid if is_source else next(images)
        first = next(item for item in items if item.ValueType == "NUM")
        ends = (child for child in first.ContentSequence if child.ValueType == "NUM")
        for child, value in zip(ends, uncertainty(result), strict=True):
            _set(child, value)

    def _refer(self, template: Dataset, source: Source) -> None:
        """Refer to the source and its explanations in the order in which highdicom does."""
        study = template.CurrentRequestedProcedureEvidenceSequence[0]
        study.StudyInstanceUID = source.study
        series: dict[str, list[str]] = {str(source.header.SeriesInstanceUID): [source.uid]}
        for part in self._algorithm.explanations:
            series.setdefault(series_uid(source, self._algorithm, part), []).append(
                instance_uid(source, self._algorithm, part)
            )
        for item, (uid, instances) in zip(study.ReferencedSeriesSequence, series.items(), strict=True):
            item.SeriesInstanceUID = uid
            for reference, instance in zip(item.ReferencedSOPSequence, instances, strict=True):
                reference.ReferencedSOPInstanceUID = instance


def _structure(source: Source, result: Result) -> tuple[object, ...]:
    """Return what decides which items a report has, their codes of decisions and their values apart."""
    optional = (
        result.prob_site,
        result.lung_share,
        result.outside_share,
        result.peak_in_lungs,
        result.called_at_site,
        result.triage,
        *(value for zone in result.zones for value in (zone.mean, zone.std)),
    )
    known = tuple(value is not None for value in optional)
    return source.header.SOPClassUID, source.frame, result.zones_of_lungs, *(zone.name for zone in result.zones), *known


def _set(item: Dataset, value: float) -> None:
    measured = item.MeasuredValueSequence[0]
    measured.NumericValue = DS(value, auto_format=True)
    measured.FloatingPointValue = value


def _name(item: Dataset) -> tuple[str, str]:
    code = item.ConceptNameCodeSequence[0]
    return code.CodeValue, code.CodingSchemeDesignator


def _code(concept: object) -> tuple[str, str, str]:
    return concept.value, concept.scheme_designator, concept.meaning  # type: ignore[attr-defined]


@lru_cache(maxsize=64)
def _dataset(code: tuple[str, str, str]) -> Dataset:
    return CodedConcept(*code)
