"""Which ranking of doubtful labels finds most errors? Labels of two normal densities, whose probabilities are known: `python -m benchmarks.ranking`.

Of each class a share of the labels is wrong. The table has the share of all wrong labels in the first tenth of each ranking, by
the probabilities that a calibrated model of the given labels has, or by those of a model that takes both classes for equally
frequent.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

from pneumo_ray.evaluate.label_quality import Floats, adjusted_margin, self_confidence

IMAGES = 400_000
DISTANCE = 3.0
"""Of the means of the two densities, in standard deviations."""


@dataclass(frozen=True)
class Errors:
    """What is wrong with labels and probabilities."""

    share: float
    """Of pneumonia."""
    of_pneumonia: float
    """Share of the labels of images with pneumonia that are wrong."""
    of_normal: float
    is_calibrated: bool = True


CASES = (
    Errors(0.5, 0.05, 0.05),
    Errors(0.15, 0.05, 0.05),
    Errors(0.15, 0.1, 0.02),
    Errors(0.15, 0.02, 0.1),
    Errors(0.15, 0.05, 0.05, is_calibrated=False),
)


def found(case: Errors, seed: int = 0) -> tuple[float, float]:
    """Return the share of the wrong labels in the first tenth by self-confidence, and by adjusted margin."""
    rng = np.random.default_rng(seed)
    ill = rng.random(IMAGES) < case.share
    finding = rng.normal(DISTANCE * (ill - 0.5), 1)
    wrong = rng.random(IMAGES) < np.where(ill, case.of_pneumonia, case.of_normal)
    label = (ill ^ wrong).astype(np.int64)
    true = expit(logit(case.share) + DISTANCE * finding)
    prob = true * (1 - case.of_pneumonia) + (1 - true) * case.of_normal
    if not case.is_calibrated:
        prob = expit(logit(prob) - logit(case.share))

    def in_front(ranking: Floats) -> float:
        return float(wrong[np.argsort(ranking, kind="stable")[: IMAGES // 10]].sum() / wrong.sum())

    return in_front(self_confidence(label, prob)), in_front(adjusted_margin(label, prob))


def main() -> None:
    """Print the table."""
    print("| share of pneumonia | wrong, of pneumonia | of normal | calibrated | self-confidence | adjusted margin |")
    print("| --- | --- | --- | --- | --- | --- |")
    for case in CASES:
        own, margin = found(case)
        errors = f"{case.of_pneumonia:.0%} | {case.of_normal:.0%} | {'yes' if case.is_calibrated else 'no'}"
        print(f"| {case.share:.0%} | {errors} | {own:.1%} | {margin:.1%} |")


if __name__ == "__main__":
    main()
