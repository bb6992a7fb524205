"""A structured report of one image: Measurement Report (PS3.16 TID 1500) in a Comprehensive SR document.

It identifies the algorithm (TID 4019) and holds the numbers of the scores, each also as a double (Floating Point Value),
which the text of a number (16 characters) may round. The maps stand in the group as images that are its visual
explanation (DCM 130401), as in the templates for regions (TID 1410), which an image as a whole is not.
"""

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    CodedConcept,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    ImageContentItem,
    Measurement,
    MeasurementProperties,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from pneumo_ray.images.dicom import MAKER
from pneumo_ray.pacs import codes as c
from pneumo_ray.pacs.objects import CLASSES, dated, identity, instance_uid, series_uid
from pneumo_ray.pacs.result import NOTICE, Algorithm, Part, Result, Zone
from pneumo_ray.pacs.source import Source
from pneumo_ray.pacs.uids import derived_uid

Concept: TypeAlias = Code | CodedConcept
TRACKED = "pneumonia on this image"
"""Tracking identifier of the finding."""


def tracking_uid(source: Source) -> str:
    """Return the tracking UID of the finding, which is that of the image whatever the model."""
    return derived_uid("finding", *source.name)


def report(source: Source, result: Result, algorithm: Algorithm) -> Dataset:
    """Return the report.

    Args:
        source: the image.
        result: what is known of it.
        algorithm: what found it, and which objects are published beside the report.
    """
    group = MeasurementsAndQualitativeEvaluations(
        TrackingIdentifier(tracking_uid(source), TRACKED),
        finding_type=c.PNEUMONIA,
        finding_sites=[FindingSite(c.CHEST)],
        algorithm_id=_identification(algorithm),
        measurements=list(_measurements(result)),
        qualitative_evaluations=[QualitativeEvaluation(*found) for found in evaluations(result)],
        source_images=[
            SourceImageForMeasurementGroup(
                source.header.SOPClassUID, source.uid, None if source.frame is None else [source.frame + 1]
            )
        ],
    )
    evidence = [source.header]
    for part in algorithm.explanations:
        group[0].ContentSequence.append(_explanation(source, algorithm, part))
        evidence.append(_evidence(source, algorithm, part))
    content = MeasurementReport(
        observation_context=ObservationContext(ObserverContext(codes.DCM.Device, _observer(algorithm))),
        procedure_reported=c.RADIOGRAPHY,
        imaging_measurements=[group],
        title=codes.DCM.ImagingMeasurementReport,
    )
    content[0].ContentSequence.append(
        TextContentItem(codes.DCM.Comment, NOTICE, relationship_type=RelationshipTypeValues.CONTAINS)
    )
    made = ComprehensiveSR(evidence, content[0], is_complete=True, **identity(source, algorithm, "sr"))
    made.CodingSchemeIdentificationSequence = [_scheme()]
    return dated(made, algorithm)


def _identification(algorithm: Algorithm) -> AlgorithmIdentification:
    return AlgorithmIdentification(
        algorithm.name,
        algorithm.version,
        parameters=[
            f"model_hash = {algorithm.model_hash}",
            f"config_hash = {algorithm.config_hash}",
            *algorithm.parameters,
        ],
        family=c.ARTIFICIAL_INTELLIGENCE,
        manufacturer=MAKER,
    )


def _observer(algorithm: Algorithm) -> DeviceObserverIdentifyingAttributes:
    return DeviceObserverIdentifyingAttributes(
        derived_uid("device", algorithm.model_hash),
        name=f"{algorithm.name}, {NOTICE}",
        manufacturer_name=MAKER,
        model_name=algorithm.name,
        serial_number=algorithm.model_hash,
    )


def _scheme() -> Dataset:
    item = Dataset()
    item.CodingSchemeDesignator, item.CodingSchemeName = c.SCHEME, c.SCHEME_NAME
    item.CodingSchemeResponsibleOrganization = MAKER
    return item


class Number(NamedTuple):
    """A number of the report."""

    name: Concept
    value: float
    unit: Concept
    derivation: Concept | None = None
    zone: Zone | None = None


def numbers(result: Result) -> Iterator[Number]:
    """Yield what is known, in the order of the report; the mean probability is the first."""
    yield Number(c.PROBABILITY, result.prob_mean, c.NO_UNITS, c.MEAN)
    yield Number(c.PROBABILITY, result.prob_std, c.NO_UNITS, c.SPREAD)
    for name, value, unit in (
        (c.INTERVAL_LOW, result.prob_low, c.NO_UNITS),
        (c.INTERVAL_HIGH, result.prob_high, c.NO_UNITS),
        (c.THRESHOLD, result.threshold, c.NO_UNITS),
        (c.MUTUAL_INFORMATION, result.mutual_information, c.NATS),
        (c.ENTROPY, result.entropy, c.NATS),
        (c.EXPECTED_ENTROPY, result.expected_entropy, c.NATS),
        (c.PROBABILITY_AT_SITE, result.prob_site, c.NO_UNITS),
        (c.LUNG_SHARE, result.lung_share, c.NO_UNITS),
        (c.OUTSIDE_SHARE, result.outside_share, c.NO_UNITS),
    ):
        if value is not None:
            yield Number(name, value, unit)
    yield Number(c.LOGIT_OF, result.logit_mean, c.LOGIT, c.MEAN)
    yield Number(c.LOGIT_OF, result.logit_std, c.LOGIT, c.SPREAD)
    for zone in result.zones:
        for derivation, value in ((c.MEAN, zone.mean), (c.SPREAD, zone.std)):
            if value is not None:
                yield Number(c.METHOD, value, c.LOGIT_PER_CELL, derivation, zone)


def uncertainty(result: Result) -> tuple[float, float]:
    """Return how far the interval of the probability reaches above and below it."""
    return result.prob_high - result.prob_mean, result.prob_mean - result.prob_low


def _measurements(result: Result) -> Iterator[Measurement]:
    upper, lower = uncertainty(result)
    properties = MeasurementProperties(upper_measurement_uncertainty=upper, lower_measurement_uncertainty=lower)
    for place, number in enumerate(numbers(result)):
        sites = None if number.zone is None else [_site(number.zone, of_lungs=result.zones_of_lungs)]
        yield Measurement(
            number.name, number.value, number.unit, derivation=number.derivation, finding_sites=sites,
            properties=None if place else properties,
        )  # fmt: skip


def _site(zone: Zone, *, of_lungs: bool) -> FindingSite:
    """Return where a zone lies: in a lung, or, without lungs, on a side of the chest in a third of the image."""
    side, third = zone.name.split("_")
    laterality = c.RIGHT if side == "right" else c.LEFT
    if of_lungs:
        return FindingSite(c.LUNG_ZONES[third], laterality)
    return FindingSite(c.CHEST, laterality, c.IMAGE_ZONE[third])


def evaluations(result: Result) -> Iterator[tuple[Concept, Concept]]:
    """Yield what is known as codes, name and value, in the order of the report."""
    found: tuple[tuple[Concept, Concept | None], ...] = (
        (c.DECISION, _presence(result.called)),
        (c.REFER, _yes(result.refer)),
        (c.DOUBTFUL, _yes(result.doubtful)),
        (c.EXPLAINED, c.PNEUMONIA if result.target_is_pneumonia else c.NORMAL),
        (c.PEAK_IN_LUNGS, _yes(result.peak_in_lungs)),
        (c.DECISION_AT_SITE, _presence(result.called_at_site)),
        (c.TRIAGE, c.TRIAGE_VALUES.get(result.triage or "")),
    )
    for name, value in found:
        if value is not None:
            yield name, value


def _presence(called: bool | None) -> Concept | None:
    return None if called is None else c.PRESENT if called else c.ABSENT


def _yes(holds: bool | None) -> Concept | None:
    return None if holds is None else c.YES if holds else c.NO


def _explanation(source: Source, algorithm: Algorithm, part: Part) -> ImageContentItem:
    item = ImageContentItem(
        c.EXPLANATION,
        CLASSES[part],
        instance_uid(source, algorithm, part),
        relationship_type=RelationshipTypeValues.CONTAINS,
    )
    item.ContentSequence = [
        CodeContentItem(codes.SCT.MeasurementMethod, c.METHOD, relationship_type=RelationshipTypeValues.HAS_CONCEPT_MOD)
    ]
    return item


def _evidence(source: Source, algorithm: Algorithm, part: Part) -> Dataset:
    item = Dataset()
    item.SOPClassUID, item.SOPInstanceUID = CLASSES[part], instance_uid(source, algorithm, part)
    item.StudyInstanceUID, item.SeriesInstanceUID = source.study, series_uid(source, algorithm, part)
    return item
