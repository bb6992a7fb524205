"""How doubtful a label is, from a probability of a model that did not train on the image.

Confident learning (Northcutt, Jiang and Chuang 2021, J. Artif. Intell. Res. 70:1373, arXiv 1911.00068), for two classes.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


def self_confidence(label: Labels, prob: Floats) -> Floats:
    """Return the probability of the class that the label names, [n]; the lower, the more doubtful.

    With two classes it equals the normalised margin, (p_label - p_other + 1) / 2, because p_other = 1 - p_label.

    Args:
        label: [n], 0 or 1.
        prob: [n], probability of class 1.
    """
    return np.where(label == 1, prob, 1 - prob)


def class_thresholds(label: Labels, prob: Floats) -> Floats:
    """Return the mean self-confidence of the images of each class, [2]: what is expected of a right label of the class.

    Args:
        label: [n], 0 or 1, both of which occur.
        prob: [n], probability of class 1.
    """
    own = self_confidence(label, prob)
    return np.array([own[label == c].mean() for c in (0, 1)])


def adjusted_margin(label: Labels, prob: Floats) -> Floats:
    """Return the normalised margin of the probabilities less the thresholds of their classes, [n].

    The rarer class has lower probabilities; without the adjustment most of the doubt would fall on it. The probabilities
    p_c - t_c + max(t) are scaled to a sum of 1 before the margin is taken.
    """
    thresholds = class_thresholds(label, prob)
    both = np.stack([1 - prob, prob]) - thresholds[:, None] + thresholds.max()
    return self_confidence(label, both[1] / both.sum(0))


def confidently_other(label: Labels, prob: Floats) -> NDArray[np.bool_]:
    """Return which labels are likely errors, bool [n]: off the diagonal of the confident joint.

    An image counts for a class if its probability of it reaches the class's threshold, and for the likelier of two such
    classes. A label is doubtful if its image counts for the other class.
    """
    thresholds = class_thresholds(label, prob)
    both = np.stack([1 - prob, prob])
    reached = both >= thresholds[:, None] - 1e-6  # as in the authors' implementation, against rounding
    counted = np.where(reached.all(0), both.argmax(0), np.where(reached[1], 1, np.where(reached[0], 0, label)))
    return np.asarray(counted != label, bool)
