"""The threshold that turns a calibrated probability into a decision, chosen on validation (Youden 1950; TRIPOD+AI).

The decision rule everywhere is `prob >= threshold`, compared in float64.
"""

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pneumo_ray.evaluate.calibration import check_predictions
from pneumo_ray.evaluate.config import OperatingPointConfig


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold, the rule that chose it and its performance on the images that it was chosen on."""

    threshold: float
    """On the calibrated probability: an image is called pneumonia where `prob >= threshold`. Just above 1 where the
    best cut predicts no pneumonia and some probability is exactly 1."""
    rule: Literal["youden", "sensitivity", "cost", "fixed"]
    """The rule that chose it; `fixed` where one class was missing and nothing could be chosen."""
    sensitivity: float | None
    """Share of positives found; None without positives."""
    specificity: float | None
    """Share of negatives predicted normal; None without negatives."""
    num_positive: int
    """Pneumonia images that it was chosen on."""
    num_negative: int
    """Normal images that it was chosen on."""

    def to_dict(self) -> dict[str, float | int | str | None]:
        """Return the fields as JSON can hold them; `OperatingPoint(**d)` reads them back."""
        return asdict(self)


def choose_operating_point(
    prob: npt.ArrayLike, labels: npt.ArrayLike, config: OperatingPointConfig | None = None
) -> OperatingPoint:
    """Choose the threshold on validation images.

    Thresholds lie midway between neighbouring distinct probabilities (with 0 and 1 beyond the last ones), so neither
    ties nor float noise flip a decision, and perfectly separated classes are cut in the middle of their gap. Of several
    equally good cuts, the one through the widest gap is taken, then the lowest; the rule `sensitivity` names one cut.

    Args:
        prob: float [n], calibrated probabilities of pneumonia.
        labels: [n], 0 normal or 1 pneumonia.
        config: the rule and its parameter; Youden where left out.

    Returns:
        The operating point; threshold 0.5 with the rule `fixed` where a class is missing.

    Raises:
        ValueError: as `check_predictions`.
    """
    config = config or OperatingPointConfig()
    scores, truth = check_predictions(prob, labels)
    num_positive = int(truth.sum())
    num_negative = truth.size - num_positive
    if num_positive == 0 or num_negative == 0:
        called = scores >= 0.5
        return OperatingPoint(
            threshold=0.5,
            rule="fixed",
            sensitivity=float(called.mean()) if num_positive else None,
            specificity=float((~called).mean()) if num_negative else None,
            num_positive=num_positive,
            num_negative=num_negative,
        )

    # Cut k predicts the distinct values k, k + 1, ... positive: cut 0 all, cut m none. Arrays [m + 1].
    values, value_of = np.unique(scores, return_inverse=True)
    positives = np.bincount(value_of[truth == 1], minlength=values.size)
    negatives = np.bincount(value_of[truth == 0], minlength=values.size)
    true_negatives = np.concatenate(([0], np.cumsum(negatives)))
    false_negatives = np.concatenate(([0], np.cumsum(positives)))
    true_positives = num_positive - false_negatives
    below, above = np.concatenate(([0.0], values)), np.concatenate((values, [1.0]))

    if config.rule == "sensitivity":
        # Divide before comparing: 7 of 100 reaches the target 0.07, but 0.07 * 100 is more than 7 in floats.
        cut = int(np.flatnonzero(true_positives / num_positive >= config.sensitivity)[-1])
    else:
        if config.rule == "youden":
            gain = true_positives * num_negative + true_negatives * num_positive  # integers, so that ties are exact
        else:
            gain = true_negatives - config.false_negative_cost * false_negatives
        best = np.flatnonzero(gain == gain.max())
        cut = int(best[np.argmax((above - below)[best])])

    threshold = float((below[cut] + above[cut]) / 2)
    if cut > 0 and threshold <= below[cut]:  # neighbouring floats have no midpoint, and neither has [1, 1]
        threshold = float(np.nextafter(below[cut], np.inf))
    return OperatingPoint(
        threshold=threshold,
        rule=config.rule,
        sensitivity=float(true_positives[cut] / num_positive),
        specificity=float(true_negatives[cut] / num_negative),
        num_positive=num_positive,
        num_negative=num_negative,
    )
