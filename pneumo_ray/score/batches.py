"""Where the batches of a silent trial are."""

from pneumo_ray import storage
from pneumo_ray.run_folder import RunFolder

BATCHES = "batches"
RECORD = "silent.json"


def batches_of(out: str) -> list[str]:
    """Return the names of the batches of a trial, the oldest first; they begin with the date of scoring, `YYYYMMDD`."""
    record = RunFolder(storage.absolute(out), RECORD).read(("model", "batches")) or {"batches": []}
    return list(record["batches"])


def scores_of(out: str, name: str) -> str:
    """Return the score folder of a batch."""
    return storage.join(storage.absolute(out), BATCHES, name, "scores")


def manifest_of(out: str, name: str) -> str:
    """Return the manifest of a batch."""
    return storage.join(storage.absolute(out), BATCHES, name, "manifest.parquet")
