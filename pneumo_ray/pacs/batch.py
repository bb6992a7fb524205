"""The objects of some rows of the scores, made and stored by one process."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa
from pydicom.dataset import Dataset

from pneumo_ray.data.image_bytes import read_images
from pneumo_ray.data.spans import Span
from pneumo_ray.errors import DecodeError, StorageError
from pneumo_ray.explain.panels import draw_pixels
from pneumo_ray.images.decode import format_of
from pneumo_ray.images.dicom import check_modality, decode_frame, read_dataset
from pneumo_ray.pacs.capture import Captures
from pneumo_ray.pacs.maps import Maps
from pneumo_ray.pacs.objects import instance_uid, series_uid
from pneumo_ray.pacs.outlets import Outlet
from pneumo_ray.pacs.reports import Reports
from pneumo_ray.pacs.result import NOTICE, Algorithm, Part
from pneumo_ray.pacs.rows import Facts, case_of, is_doubtful, result_of, verdict
from pneumo_ray.pacs.source import Source, SourceError, source_of
from pneumo_ray.records import Row
from pneumo_ray.storage import Pieces

FAILED, DOUBTFUL, NO_DICOM, OTHERS = "failed", "doubtful", "no DICOM", "beside results of another model or config"
"""Why an image is left out although nothing went wrong."""


@dataclass(frozen=True)
class Plan:
    """What is published, and where."""

    facts: Facts
    algorithm: Algorithm
    parts: tuple[Part, ...]
    """Objects of each image."""
    outlet: Outlet
    include_doubtful: bool
    beside: bool
    dry_run: bool


@dataclass
class Outcome:
    """What became of some rows."""

    images: int = 0
    """Images that have their objects now, or would have."""
    made: int = 0
    """Objects that were stored, or would be."""
    present: int = 0
    """Objects that were there before."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Images without objects, by reason."""
    errors: Counter[str] = field(default_factory=Counter)
    """Images that could not be published, by reason."""
    map: list[tuple[str, str, Part, str]] = field(default_factory=list)
    """Image, UID of its source, object, UID of the object; of every object that is there now."""

    def add(self, other: "Outcome") -> None:
        """Add the counts of other rows; not their map, which would grow with the scores."""
        self.images += other.images
        self.made += other.made
        self.present += other.present
        self.left_out += other.left_out
        self.errors += other.errors


class Publisher:
    """Publishes rows, one after the other."""

    def __init__(self, plan: Plan) -> None:
        """Begin.

        Args:
            plan: what and where.
        """
        self._plan = plan
        self._reports, self._maps = Reports(plan.algorithm), Maps(plan.algorithm)
        self._captures = Captures(plan.algorithm)

    def publish(self, scored: pa.Table, listed: pa.Table) -> Outcome:
        """Publish rows.

        Args:
            scored: n rows of the scores.
            listed: the same images in the list of the job.

        Raises:
            StorageError: if the place of the objects fails, or the two are not of one job.
        """
        if scored["image_id"].to_pylist() != listed["image_id"].to_pylist():
            raise StorageError("the scores and their list of images in _job are not of one job; score again")
        outcome = Outcome()
        chosen: list[tuple[Row, Row]] = []
        for row, image in zip(scored.to_pylist(), listed.to_pylist(), strict=True):
            if row["status"] != "ok":
                outcome.left_out[FAILED] += 1
            elif is_doubtful(row) and not self._plan.include_doubtful:
                outcome.left_out[DOUBTFUL] += 1
            else:
                chosen.append((row, image))
        places = [(image["uri"], image["member"], Span.of(image.get("span"))) for _, image in chosen]
        for (row, image), content in zip(chosen, read_images(places), strict=True):
            self._publish_one(row, image, content, outcome)
        return outcome

    def _publish_one(self, row: Row, listed: Row, content: bytes | Exception, outcome: Outcome) -> None:
        if isinstance(content, Exception):
            outcome.errors["source cannot be read"] += 1
            return
        if format_of(content) != "DICOM":
            outcome.left_out[NO_DICOM] += 1
            return
        try:
            dataset = read_dataset(content)
            check_modality(dataset)
            source = source_of(dataset, listed["frame"])
            files = self._files(row, listed, dataset, source, outcome)
        except (DecodeError, SourceError) as error:
            outcome.errors[f"source: {error.kind}" if isinstance(error, DecodeError) else str(error)] += 1
            return
        if files is None:
            return
        uids = {part: instance_uid(source, self._plan.algorithm, part) for part in self._plan.parts}
        if not self._plan.dry_run:
            if files:
                self._plan.outlet.store(source.study, {uids[part]: make() for part, make in files.items()})
            outcome.map += [(row["image_id"], source.uid, part, uid) for part, uid in uids.items()]
        outcome.images += 1
        outcome.made += len(files)
        outcome.present += len(uids) - len(files)

    def _files(
        self, row: Row, listed: Row, dataset: Dataset, source: Source, outcome: Outcome
    ) -> dict[Part, Callable[[], Pieces]] | None:
        """Return what makes the objects that are not there yet; None if the image is left out."""
        plan = self._plan
        uids = {part: instance_uid(source, plan.algorithm, part) for part in plan.parts}
        series = frozenset(series_uid(source, plan.algorithm, part) for part in plan.parts)
        study = plan.outlet.look(source.study, series, frozenset(uids.values()), plan.algorithm.mark)
        if study.has_others and not plan.beside:
            outcome.left_out[OTHERS] += 1
            return None
        result = result_of(row, plan.facts)
        makers: dict[Part, Callable[[], Pieces]] = {
            "sr": lambda: self._reports.file(source, result),
            "map-native": lambda: self._maps.file(source, result, "map-native"),
            "map-image": lambda: self._maps.file(source, result, "map-image"),
        }
        missing = [part for part, uid in uids.items() if uid not in study.present]
        if "capture" in missing and not plan.dry_run:
            grey = decode_frame(dataset, listed["frame"] or 0).pixels
            panels = draw_pixels(case_of(row, listed, plan.facts, grey), NOTICE, verdict(result))
            makers["capture"] = lambda: self._captures.file(source, panels)
        return {part: makers.get(part, tuple) for part in missing}
