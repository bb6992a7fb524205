"""The content of a report: the scores of one split, the facts about their model, and the measurements."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pneumo_ray.evaluate.evaluation import Evaluation
from pneumo_ray.evaluate.scored import Scored
from pneumo_ray.evaluate.scores import Scores, fact
from pneumo_ray.evaluate.zone_table import ZoneRecord
from pneumo_ray.records import JsonObject


@dataclass(frozen=True)
class Subject:
    """All data of the page."""

    chosen: Scores
    """Images of the split that did not fail, joined with the manifest."""
    manifest: pa.Table
    manifest_name: str
    manifest_fingerprint: str
    """Of `manifest`, as training and --robustness note it."""
    numbers: Evaluation
    """From `numbers.evaluate`."""
    run: JsonObject
    """`_run.json` of the scores."""
    failed: pa.Table
    """Rows of the scores of the split that failed, joined with `label`."""
    history: list[JsonObject]
    """Records of the run's history.jsonl; empty if it is not found."""
    zones: list[ZoneRecord]
    """From `zone_table`."""
    sets: Sequence[Scored] = ()
    """Scores of the same images under several posteriors, `chosen` first; none where nothing is compared."""
    robustness: JsonObject | None = None
    """robustness.json, where it was measured with this model on this split."""

    def fact(self, *path: str) -> Any:
        """Return a value of `_run.json`, as `scores.fact`."""
        return fact(self.run, *path)

    def provenance(self, *path: str) -> Any:
        """Return a value of the bundle's provenance; None if it is missing."""
        return self.fact("model", "provenance", *path)

    @property
    def own_manifest(self) -> bool:
        """Whether the model was trained with this manifest, so that the model has seen its split train."""
        return bool(self.provenance("manifest", "fingerprint") == self.manifest_fingerprint)

    @property
    def training(self) -> JsonObject:
        """The configuration that the model was trained with; empty where it is not known."""
        found = self.provenance("config")
        return found if isinstance(found, dict) else {}
