"""Published numbers of arXiv 2507.18647, for display beside those of the model, and the caveats of the comparison."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pneumo_ray.evaluate.metrics import ConfusionMetrics, metrics_from_confusion
from pneumo_ray.records import ABSENT, INLINE


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """The published metrics of a model; None what its authors do not give."""

    model: str
    accuracy: float
    precision: float | None = field(default=None, metadata=ABSENT)
    recall: float
    f1: float | None = field(default=None, metadata=ABSENT)
    auc: float
    kappa: float | None = field(default=None, metadata=ABSENT)
    mcc: float | None = field(default=None, metadata=ABSENT)
    n: int | None = field(default=None, metadata=ABSENT)


@dataclass(frozen=True)
class PublishedConfusion:
    """A published confusion matrix, and what it is of."""

    what: str
    metrics: ConfusionMetrics = field(metadata=INLINE)


TABLE_TWO = (
    PublishedModel(model="BayesGrad-CAM paper (arXiv 2507.18647)", accuracy=0.9594, precision=0.9604, recall=0.9749,
                   f1=0.9676, auc=0.9891, kappa=0.913, mcc=0.913, n=320),
    PublishedModel(model="Liang and Zheng 2019, as cited there", accuracy=0.905, recall=0.967, auc=0.953),
)  # fmt: skip

CONFUSIONS = (
    PublishedConfusion(
        "the one confusion matrix that gives all of the paper's test metrics (320 images)",
        metrics_from_confusion(tn=113, fp=8, fn=5, tp=194),
    ),
    PublishedConfusion(
        "the confusion matrix that the paper prints (624 images)",
        metrics_from_confusion(tn=198, fp=36, fn=6, tp=384),
    ),
)

NOTE = (
    "The matrix that the paper prints is that of the official test folder of 624 images, not of validation plus test, which "
    "would be 640; half of it was used for model selection. Splits, selection and images differ from those here, so the "
    "numbers are not a comparison of methods."
)


@dataclass(frozen=True)
class Paper:
    """The published numbers, as metrics.json repeats them."""

    table: Sequence[PublishedModel] = TABLE_TWO
    confusion_matrices: Sequence[PublishedConfusion] = CONFUSIONS
    note: str = NOTE
