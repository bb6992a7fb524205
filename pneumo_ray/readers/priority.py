"""How much a reading of an image is worth, by the reason for it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.special import logit

from pneumo_ray.evaluate.scores import Scores
from pneumo_ray.readers.config import Reason
from pneumo_ray.readers.consensus import vote_share
from pneumo_ray.readers.readings import Readings

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Known:
    """What is known of n images."""

    label: Floats
    """[n], 0 or 1; NaN where nobody knows."""
    prob: Floats
    """[n], the model's probability of pneumonia; NaN where it has none."""
    mutual_information: Floats
    """[n], in nats; NaN likewise."""
    threshold: float
    """Of the model, on `prob`."""
    out_of_fold: Floats
    """[n], probability by a model that did not train on the image; NaN where there is none."""
    answers: Ints
    """[n], readers who answered 0 or 1."""
    share: Floats
    """[n], the share of them who answered 1, or their consensus; of no meaning without an answer."""
    read: NDArray[np.bool_]
    """[n], whether anybody read the image, `cannot say` included."""

    @classmethod
    def of(
        cls, rows: pa.Table, scores: Scores | None, readings: Readings | None, doubt: Mapping[str, float] | None
    ) -> "Known":
        """Gather what is known of manifest rows from scores, readings and out-of-fold probabilities; None where missing.

        Without readings the manifest's `num_readers` and `label_soft` stand for them, where it has these columns.
        """
        names = rows["image_id"].to_pylist()
        nothing = np.full(len(names), np.nan)
        prob, mutual_information = nothing, nothing
        if scores is not None:
            place = {name: row for row, name in enumerate(scores.table["image_id"].to_pylist())}
            at = np.array([place.get(name, -1) for name in names], np.int64)
            prob, mutual_information = (
                np.where(at >= 0, scores.numbers(column)[at], np.nan) for column in ("prob_mean", "mutual_information")
            )
        answers, share = np.zeros(len(names), np.int64), nothing
        read = answers > 0
        if readings is not None:
            votes = readings.last().votes(names)
            answers, share = np.count_nonzero(~np.isnan(votes), 1), vote_share(votes)
            read = np.isin(np.array(names, object), np.array(readings.image_ids, object))
        elif "num_readers" in rows.column_names:
            answers = pc.fill_null(rows["num_readers"], 0).to_numpy().astype(np.int64)
            share = rows["label_soft"].to_numpy(zero_copy_only=False).astype(np.float64)
            read = answers > 0
        label = rows["label"].cast(pa.float64()).to_numpy()
        out_of_fold = np.array([(doubt or {}).get(name, np.nan) for name in names], np.float64)
        threshold = 0.5 if scores is None else scores.threshold
        return cls(label, prob, mutual_information, threshold, out_of_fold, answers, share, read)


def priority(reason: Reason, known: Known) -> Floats:
    """Return how much a reading of each image is worth, [n]; NaN where the reason does not apply.

    * `random`: 0 for all, which leaves the order as it is.
    * `uncertain`: mutual information of the passes, in nats; without passes, minus the distance of the logit to that of
      the threshold.
    * `suspicious`: `|label - prob|` of the model's probability.
    * `doubtful`: the same of the out-of-fold probability: 1 - self-confidence (Northcutt, Jiang and Chuang 2021,
      arXiv 1911.00068).
    * `change`: `expected_change`.
    * `disagreement`: the share of pairs of answers that differ, of images with two answers or more.

    Args:
        reason: for the reading.
        known: of n images.
    """
    if reason == "uncertain":
        if np.nanmax(known.mutual_information, initial=0.0) > 0:
            return known.mutual_information
        distance: Floats = np.abs(_logit(known.prob) - _logit(np.array(known.threshold)))
        return -distance
    if reason == "suspicious":
        return np.abs(known.label - known.prob)
    if reason == "doubtful":
        return np.abs(known.label - known.out_of_fold)
    if reason == "change":
        return expected_change(known)
    if reason == "disagreement":
        s, m = known.share, known.answers
        return np.where(m >= 2, 2 * s * (1 - s) * m / np.maximum(m - 1, 1), np.nan)
    return np.zeros(len(known.label))


def expected_change(known: Known) -> Floats:
    """Return by how much one more answer is expected to move an image's soft label, [n]; NaN without a label or a model.

    With a share s of m answers for pneumonia, an answer moves s by `(1 - s) / (m + 1)` upwards or `s / (m + 1)` downwards. The next reader is taken to answer pneumonia with the model's probability. A label that came without
    readings counts as one answer.
    """
    without = known.answers == 0
    answers = np.where(without, 1, known.answers)
    share = np.where(without, known.label, known.share)
    moved: Floats = (known.prob * (1 - share) + (1 - known.prob) * share) / (answers + 1)
    return moved


def _logit(prob: Floats) -> Floats:
    tiny = float(np.finfo(np.float64).eps)
    odds: Floats = logit(np.clip(prob, tiny, 1 - tiny))
    return odds
