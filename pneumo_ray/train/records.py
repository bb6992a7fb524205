"""The record of a finished epoch: a line of history.jsonl."""

from dataclasses import asdict, dataclass, fields
from typing import Self

from pneumo_ray.records import JsonObject


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """An epoch of the classifier. What is None was not measured, and stands in no file."""

    epoch: int
    """Counted from 1."""
    train_loss: float
    val_loss: float
    """Log loss in nats of the raw probabilities, at the natural class frequencies, whatever `balance` is."""
    val_auc: float
    val_accuracy: float | None = None
    """At 0.5."""
    lr: float
    images_per_second: float
    seconds: float
    workers: int | None = None
    outside_share: float | None = None
    """Share of the evidence that lies outside the lungs, on training images whose lungs are known."""
    val_outside_share: float | None = None
    best: bool = False
    """No earlier epoch has a lower validation loss."""
    stopped: bool = False
    """Early stopping ended the run here."""
    loss_scaled: float | None = None
    """Log loss in nats of the calibrated probabilities at the best epoch so far (`validation.SELECTED_BY`)."""

    @classmethod
    def from_values(cls, values: JsonObject) -> Self:
        """Return the record that a file holds; fields of other versions are passed over."""
        return cls(**{spec.name: values[spec.name] for spec in fields(cls) if spec.name in values})

    def values(self) -> JsonObject:
        """Return the fields that are known, as a file holds them."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class LungEpochRecord:
    """An epoch of the lung segmenter."""

    epoch: int
    """Counted from 1."""
    train_loss: float
    val_dice: float
    """Mean over the validation images."""
    lr: float
    images_per_second: float
    seconds: float
