"""The record of a trial that is over: trial.json in its folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Literal, Self

from pneumo_ray import storage
from pneumo_ray.errors import PneumoError
from pneumo_ray.records import JsonObject

RECORD = "trial.json"
"""Name of the file in a trial's folder that records that the trial ended, and how."""

Status = Literal["finished", "stopped", "diverged", "failed"]
"""How a trial ended; stopped: by the scheduler."""


@dataclass(frozen=True)
class TrialRecord:
    """How a trial ended, and its measures on validation."""

    name: str
    arm: str
    seed: int
    settings: JsonObject
    """Options by dotted names."""
    status: Status
    reason: str | None = None
    """Why it did not finish."""
    epochs: int = 0
    """Epochs finished."""
    best_epoch: int | None = None
    checkpoint: str | None = None
    """Folder of its model."""
    training_seconds: float = 0.0
    overhead_seconds: float | None = None
    """Seconds outside training; None where it did not finish."""
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    """Of the best epoch, by name."""
    history: Sequence[JsonObject] = ()
    """Its epochs, as in history.jsonl."""

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Return the record that a file holds; fields of other versions are passed over.

        Raises:
            ValueError, TypeError: if it holds none.
        """
        values = json.loads(text)
        return cls(**{spec.name: values[spec.name] for spec in fields(cls) if spec.name in values})


def save_record(folder: str, record: TrialRecord) -> None:
    """Write the record of a trial into its folder."""
    storage.write_json(asdict(record), storage.join(folder, RECORD))


def read_record(folder: str) -> TrialRecord | None:
    """Return the record of a trial that is over, or None.

    Raises:
        PneumoError: if the file is damaged.
    """
    uri = storage.join(folder, RECORD)
    if not storage.exists(uri):
        return None
    try:
        return TrialRecord.from_json(storage.read_bytes(uri))
    except (ValueError, TypeError) as error:
        raise PneumoError(f"{uri} is damaged; remove its folder to run the trial again") from error
