"""Intervals over patients, by the way that fits the number of images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumo_ray.evaluate.linearised import MAX_RESAMPLED, linearised_intervals
from pneumo_ray.evaluate.metrics import BOOTSTRAP_METRICS, bootstrap_intervals, classification_metrics

Floats = NDArray[np.float64]


def patient_intervals(
    label: NDArray[np.int64],
    prob: Floats,
    threshold: float,
    patients: Sequence[str | None],
    seed: int,
    metrics: Sequence[str] = BOOTSTRAP_METRICS,
) -> dict[str, tuple[float, float] | None]:
    """Return 95 % intervals over patients: a bootstrap, or its limit where there are too many images to resample."""
    if len(label) <= MAX_RESAMPLED:
        return bootstrap_intervals(label, prob, threshold, patients, metrics=metrics, seed=seed)
    return linearised_intervals(label, prob, threshold, patients, metrics=metrics)


def with_intervals(
    label: NDArray[np.int64], prob: Floats, threshold: float, patients: Sequence[str | None], seed: int
) -> dict[str, Any]:
    """Return the metrics at a threshold as `threshold`, `values` and `intervals`."""
    return {
        "threshold": threshold,
        "values": classification_metrics(label, prob, threshold),
        "intervals": patient_intervals(label, prob, threshold, patients, seed),
    }
