"""What a report is about: the scores of one split, what is known of their model, and everything that was measured."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pneumo_ray.evaluate.scores import Scores, fact


@dataclass(frozen=True)
class Subject:
    """Everything that the page shows, before it is put into words."""

    chosen: Scores
    """Images of the split that did not fail, joined with the manifest."""
    manifest: pa.Table
    manifest_name: str
    manifest_fingerprint: str
    """Of `manifest`, as training and --robustness note it."""
    numbers: dict[str, Any]
    """From `numbers.evaluate`."""
    run: dict[str, Any]
    """`_run.json` of the scores."""
    failed: pa.Table
    """Rows of the scores of the split that failed, joined with `label`."""
    history: list[dict[str, Any]]
    """Records of the run's history.jsonl; empty where it is not to be found."""
    zones: list[dict[str, Any]]
    """From `zone_table`."""
    robustness: dict[str, Any] | None = None
    """robustness.json, where it was measured with this model on this split."""

    def fact(self, *path: str) -> Any:
        """Return something of `_run.json`, as `scores.fact`."""
        return fact(self.run, *path)

    def provenance(self, *path: str) -> Any:
        """Return how the model was made, as its bundle says; None where it does not."""
        return self.fact("model", "provenance", *path)

    @property
    def own_manifest(self) -> bool:
        """Whether the model was trained with this very manifest, so that its split train is what the model has seen."""
        return bool(self.provenance("manifest", "fingerprint") == self.manifest_fingerprint)

    @property
    def training(self) -> dict[str, Any]:
        """The configuration that the model was trained with; empty where it is not known."""
        found = self.provenance("config")
        return found if isinstance(found, dict) else {}
