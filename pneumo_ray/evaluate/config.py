"""What an evaluation is asked for, and the rule that chooses a threshold."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from pneumo_ray.config import require, require_one_of, require_split

Rule = Literal["youden", "sensitivity", "cost"]


@dataclass(frozen=True)
class OperatingPointConfig:
    """How the threshold is chosen."""

    rule: Rule = "youden"
    """youden: largest sensitivity + specificity; sensitivity: highest threshold that still reaches the target; cost:
    smallest false positives + false_negative_cost * false negatives, at the prevalence of the validation images."""
    sensitivity: float = 0.95
    """Target of the rule `sensitivity`: share of pneumonia images that must be found, within (0, 1]."""
    false_negative_cost: float = 5.0
    """Cost of a missed pneumonia under the rule `cost`, in units of one false alarm."""

    def __post_init__(self) -> None:
        """Refuse values under which no threshold could be chosen."""
        require_one_of("operating-point.rule", self.rule, get_args(Rule))
        require(
            0 < self.sensitivity <= 1,
            f"operating-point.sensitivity must lie above 0 and at most at 1, got {self.sensitivity}",
        )
        require(
            0 < self.false_negative_cost < math.inf,
            f"operating-point.false-negative-cost must be positive and finite, got {self.false_negative_cost}",
        )


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure scores against the labels of a manifest and write a report. Only --robustness needs a model and Ray."""

    manifest: str
    """manifest.parquet of the archive."""
    out: str
    """Folder for report.html, metrics.json, the CSV tables and the figures."""
    scores: str | None = None
    """Folder that jobs/explain.py wrote."""
    split: str = "test"
    """Split of the manifest to measure; `all` takes every image, including training images."""
    prevalence: float | None = None
    """Share of pneumonia where the model is to be used; predictive values are re-based to it."""
    baseline: str | None = None
    """Other scores of the same archive: every measure is compared, with patients as the units (and DeLong, McNemar)."""
    boxes: str | None = None
    """Table of true boxes of the same images: the project's own columns, RSNA's, or COCO's JSON. Maps are measured against them."""
    posteriors: tuple[str, ...] = ()
    """Further scores of the same images under other posteriors or by an ensemble: which uncertainty finds errors?"""
    shifted: tuple[str, ...] = ()
    """Scores of images from elsewhere (another hospital, non-chests), or folders of jobs/robustness.py, each by the model,
    posterior and passes of one of the compared scores: does the uncertainty grow there?"""
    other_seeds: tuple[str, ...] = ()
    """Two scores of the same images by models that differ in their seed: does the deviation of a map's cell tell how far they
    are apart?"""
    report: bool = True
    """Draw the figures and write report.html; without it, only numbers."""
    gallery: int = 300
    """Largest number of images in the report."""
    robustness: bool = False
    """Score the split again with --model, unchanged and corrupted, with Ray, and add the result to the report."""
    model: str | None = None
    """Model bundle for --robustness."""
    passes: int | None = None
    """Monte Carlo passes of --robustness; None takes as many as jobs/explain.py."""
    seed: int = 0
    """Of the calibration test, of the band around the ROC curve, and of the noise of --robustness."""

    def __post_init__(self) -> None:
        require(
            self.prevalence is None or 0 < self.prevalence < 1,
            f"prevalence must lie between 0 and 1, got {self.prevalence}",
        )
        require_split(self.split)
        require(self.gallery >= 0, f"gallery must not be negative, got {self.gallery}")
        require(
            not self.robustness or self.model is not None,
            "--robustness needs the model itself: --model RUN/model",
        )
        require(
            self.scores is not None or self.robustness,
            "give --scores, the folder that jobs/explain.py wrote (or --robustness and --model)",
        )
        require(
            bool(self.posteriors) or not (self.shifted or self.other_seeds),
            "--shifted and --other-seeds belong to a comparison of posteriors; give --posteriors as well",
        )
        require(not self.posteriors or self.scores is not None, "--posteriors are compared with --scores; give both")
        require(
            len(self.other_seeds) in (0, 2),
            f"--other-seeds takes two sets of scores, got {len(self.other_seeds)}",
        )
        require(self.baseline is None or self.scores is not None, "--baseline is compared with --scores; give both")
        require(
            self.boxes is None or self.scores is not None, "--boxes are compared with the maps of --scores; give both"
        )
