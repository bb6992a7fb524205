"""The record of an evaluation: what metrics.json holds, with the names of Python; None where a measure is undefined."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pneumo_ray.evaluate.attention import Localisation
from pneumo_ray.evaluate.compare import Comparison
from pneumo_ray.evaluate.gaps import Gap
from pneumo_ray.evaluate.intervals import AtThreshold, Interval, IntervalMethods
from pneumo_ray.evaluate.lung_evidence import LungEvidence
from pneumo_ray.evaluate.paper import Paper
from pneumo_ray.evaluate.posterior_records import PosteriorComparison
from pneumo_ray.evaluate.soft_scores import AgainstReaders
from pneumo_ray.evaluate.subgroups import Subgroup
from pneumo_ray.evaluate.uncertainty import FlaggedShares, Referral
from pneumo_ray.records import ABSENT, INLINE, named


@dataclass(frozen=True)
class OperatingPoints:
    """The metrics at two thresholds."""

    stored: AtThreshold
    """At the model's own."""
    half: AtThreshold
    """At 0.5."""


@dataclass(frozen=True)
class PredictiveValues:
    """The predictive values at a prevalence."""

    prevalence: float
    positive: float | None
    negative: float | None


@dataclass(frozen=True)
class Reliability:
    """How far a probability can be read as one."""

    brier: float
    brier_interval: Interval | None
    ece: float
    """Expected calibration error, 15 bins."""
    ece_interval: Interval | None
    ece_expected: float
    """Mean error of a calibrated model with the same probabilities."""
    ece_p: float
    """Share of such models with this error or more."""
    mean_prob: float
    prevalence: float


@dataclass(frozen=True)
class UncertaintyValue:
    """How well an uncertainty finds errors."""

    error_auroc: float | None
    """For finding the errors."""
    error_auroc_interval: Interval | None
    aurc: float
    """Area under the risk-coverage curve."""
    referral: Sequence[Referral]
    flagged: FlaggedShares | None = field(default=None, metadata=ABSENT)
    """Of the split test, with a threshold of validation."""


@dataclass(frozen=True)
class Residual:
    """The residual of one image."""

    image_id: str
    residual: float
    prob_mean: float


@dataclass(frozen=True)
class Residuals:
    """`label - probability`: near -1 a confident false positive, near +1 a confident false negative."""

    mean: float
    skewness: float | None
    most_extreme: Mapping[str, Sequence[Residual]]
    """Of `false_positives` and `false_negatives`, the largest first."""


@dataclass(frozen=True)
class Measured:
    """What needs labels."""

    interval_methods: IntervalMethods
    metrics: OperatingPoints
    predictive_values: PredictiveValues
    calibration: Mapping[str, Reliability]
    """By the names of `numbers.probabilities`."""
    subgroups: Sequence[Subgroup]
    gaps: Sequence[Gap]
    """Between subgroups of one column."""
    uncertainty: Mapping[str, UncertaintyValue]
    """By the names of `numbers.uncertainties`."""
    residuals: Residuals
    against_readers: AgainstReaders | None = field(default=None, metadata=ABSENT)
    """None where no image was read."""


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of scored images."""

    split: str | None
    """None for all images."""
    images: int = field(metadata=named("pictures"))
    labelled: int
    threshold: float
    """Stored with the model, on the calibrated probability."""
    temperature: float
    intercept: float
    paper: Paper
    measured: Measured | None = field(metadata=INLINE)
    """None where no image has a label."""
    failed_files: int = 0
    """Rows of the scores, of all splits, that failed."""
    comparison: Comparison | None = None
    """With other scores of the same images."""
    lungs: LungEvidence | None = None
    """None where no lungs were looked for."""
    localisation: Localisation | None = field(default=None, metadata=ABSENT)
    """Of the maps in true boxes."""
    posteriors: PosteriorComparison | None = None
    """With other posteriors, where it was asked for."""
