"""Data for the script of the page: counts at every threshold, and the cases of the gallery with their raw maps."""

import base64
from collections.abc import Sequence

import cv2
import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from pneumo_ray.evaluate.metrics import Metrics
from pneumo_ray.explain.case import passes_interval
from pneumo_ray.images.framing import WHOLE
from pneumo_ray.records import JsonObject
from pneumo_ray.report.cases import Seen, outcomes
from pneumo_ray.report.subject import Subject

_JPEG_QUALITY = 80


def script_data(subject: Subject, shown: Sequence[int], images: Sequence[Seen | None]) -> JsonObject:
    """Return the data for the script of the page."""
    measured = subject.numbers.measured
    return {
        "map_size": list(subject.chosen.map_size),
        "pictures": len(subject.chosen.table),
        "colours": {name: colour_table(name) for name in ("inferno", "viridis")},
        "slider": None if measured is None else _slider(subject, measured.metrics.stored.values),
        "cases": _cases(subject, shown, images),
    }


def threshold_counts(label: NDArray[np.int64], prob: NDArray[np.float64]) -> tuple[list[int], list[int]]:
    """Return how many pneumonias and how many normals have a probability of at least 0, 0.001, ..., 1.

    Args:
        label: [n], 0 or 1.
        prob: [n].

    Returns:
        (of pneumonia, of normal), 1,001 counts each.
    """
    thresholds = np.arange(1001) / 1000
    ordered = (np.sort(prob[label == c]) for c in (1, 0))
    ill, well = (len(p) - np.searchsorted(p, thresholds, side="left") for p in ordered)
    return ill.tolist(), well.tolist()


def _slider(subject: Subject, stored: Metrics) -> JsonObject:
    labelled = subject.chosen.labelled()
    positive, negative = threshold_counts(
        labelled.table["label"].to_numpy().astype(np.int64), labelled.numbers("prob_mean")
    )
    return {
        "positive": positive,
        "negative": negative,
        "positives": positive[0],
        "negatives": negative[0],
        "stored": {"threshold": subject.numbers.threshold, "counts": [stored.tp, stored.fp]},
    }


def _cases(subject: Subject, shown: Sequence[int], images: Sequence[Seen | None]) -> list[JsonObject]:
    scores = subject.chosen
    outcome = outcomes(scores)
    maps = {kind: scores.maps(f"cam_{kind}").reshape(len(scores.table), -1) for kind in ("mean", "std")}
    names = ("image_id", "label", "target", "prob_mean", "logit_mean", "logit_std", "mutual_information")
    rows = scores.table.select(names).take(np.asarray(shown, dtype=np.int64)).to_pylist()
    cases = []
    for row, number, seen in zip(rows, shown, images, strict=True):
        low, high = passes_interval(
            row["logit_mean"], row["logit_std"], scores.calibration.temperature, scores.calibration.intercept
        )
        cases.append(
            {
                "id": row["image_id"],
                "outcome": str(outcome[number]),
                "target": row["target"],
                "p": round(row["prob_mean"], 6),
                "low": round(low, 4),
                "high": round(high, 4),
                "mi": round(row["mutual_information"], 6),
                "residual": None if row["label"] is None else round(row["label"] - row["prob_mean"], 6),
                "mean": [short_number(v) for v in maps["mean"][number]],
                "std": [short_number(v) for v in maps["std"][number]],
                "picture": None if seen is None else _jpeg(seen.image),
                "window": [round(edge, 4) for edge in (WHOLE if seen is None else seen.window)],
            }
        )
    return cases


def short_number(value: float) -> float:
    """Return a number with three significant digits, and 0 for one that is not finite, which JSON does not have."""
    return float(f"{value:.3g}") if np.isfinite(value) else 0.0


def _jpeg(image: NDArray[np.uint8]) -> str:
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return base64.b64encode(data.tobytes()).decode()


def colour_table(name: str) -> str:
    """Return 256 colours of matplotlib as hexadecimal RGB, one after another."""
    return (mpl.colormaps[name](np.arange(256), bytes=True)[:, :3]).tobytes().hex()
