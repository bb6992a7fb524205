"""Labels as probabilities, from the readers of an image, instead of one class."""

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pneumo_ray.data.manifest import OPINION_FIELDS
from pneumo_ray.errors import ManifestError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SoftLabels:
    """Labels of n images as probabilities, and how much each counts."""

    target: Floats
    """[n], probability of pneumonia, 0 to 1."""
    weight: Floats
    """[n], at least 0, with the mean 1."""

    def __len__(self) -> int:
        return len(self.target)

    @property
    def masses(self) -> tuple[float, float]:
        """Return the expected numbers of normal and of pneumonia images, as weighted."""
        return float(np.sum(self.weight * (1 - self.target))), float(np.sum(self.weight * self.target))


def soft_labels(rows: pa.Table, name: str) -> SoftLabels:
    """Return the soft labels of some labelled manifest rows.

    A row without `label_soft` has its label, and without `label_weight` the weight 1. Weights are scaled to the mean 1, so
    that confidences weight labels against each other and do not change the step size of the optimiser.

    Args:
        rows: n manifest rows.
        name: of the manifest, for messages.

    Raises:
        ManifestError: if there are no such columns, or a value is out of range, or no weight is above 0.
    """
    soft, weight = (spec.name for spec in OPINION_FIELDS[:2])
    if soft not in rows.column_names:
        raise ManifestError(
            f"manifest {name} has no column {soft}, which --labels soft needs; prepare it with --readings"
        )
    target = pc.coalesce(rows[soft].cast(pa.float64()), rows["label"].cast(pa.float64())).to_numpy()
    given = rows[weight].cast(pa.float64()) if weight in rows.column_names else pa.nulls(len(rows), pa.float64())
    weights = pc.fill_null(given, 1.0).to_numpy()
    if not (target >= 0).all() or not (target <= 1).all():
        raise ManifestError(f"manifest {name} has a {soft} outside 0 to 1; prepare it again with --readings")
    if not (weights >= 0).all() or not np.isfinite(weights).all():
        raise ManifestError(f"manifest {name} has a {weight} below 0; prepare it again with --readings")
    if len(weights) and not weights.sum() > 0:
        raise ManifestError(
            f"manifest {name} gives all images of a split the weight 0; give readings with a confidence"
        )
    return SoftLabels(target.copy(), weights / weights.mean() if len(weights) else weights)


def soft_fingerprint(rows: pa.Table) -> str:
    """Return a hash of the soft labels of manifest rows, in order."""
    digest = hashlib.sha256()
    for spec in OPINION_FIELDS[:2]:
        values = rows[spec.name].to_pylist() if spec.name in rows.column_names else []
        digest.update(repr(values).encode())
    return digest.hexdigest()
