"""What a commissioning and a comparison of two archives are asked for."""

from dataclasses import dataclass, field

from pneumo_ray.config import require, require_split
from pneumo_ray.evaluate.config import OperatingPointConfig


@dataclass(frozen=True)
class TriageConfig:
    """What triage promises: of each class, among the images that are called, at most this share is called wrong."""

    alpha: float = 0.05
    """Largest share of errors among the called images of each class."""
    delta: float = 0.05
    """Probability with which the promise may fail, over the draw of the local labels; the confidence is 1 - delta."""

    def __post_init__(self) -> None:
        require(0 < self.alpha < 0.5, f"triage.alpha must lie between 0 and 0.5, got {self.alpha}")
        require(0 < self.delta < 0.5, f"triage.delta must lie between 0 and 0.5, got {self.delta}")


@dataclass(frozen=True)
class CommissionConfig:
    """Recalibrate a model for a new site, from the scores of its images and the labels of some of them."""

    scores: str
    """Folder that jobs/explain.py wrote, of the site's images."""
    manifest: str
    """manifest.parquet of the same images, with labels of a few hundred of them."""
    out: str
    """Folder for site.json and site.html."""
    split: str = "all"
    """Split of the manifest to use; `all` takes every image."""
    operating_point: OperatingPointConfig = field(default_factory=lambda: OperatingPointConfig(rule="sensitivity"))
    triage: TriageConfig = field(default_factory=TriageConfig)
    prevalence: float | None = None
    """Share of pneumonia at the site, where it is known; None estimates it from the scores of the images without a label."""
    name: str = ""
    """Name of the site, for the page and site.json; a name of no person."""
    seed: int = 0
    """Of the folds, of the image that stands for each patient in the exact statements, and of the bootstrap."""

    def __post_init__(self) -> None:
        require_split(self.split)
        require(
            self.prevalence is None or 0 < self.prevalence < 1,
            f"prevalence must lie between 0 and 1, got {self.prevalence}",
        )


@dataclass(frozen=True)
class DriftConfig:
    """Compare the scores of two archives, or of the periods of one, without labels."""

    reference: str
    """Folder of scores that the others are compared with, such as those of the commissioning."""
    scores: str
    """Folder of scores of the same model."""
    out: str
    """Folder for drift.json, drift.csv and drift.html."""
    by: str | None = None
    """Column of --manifest, or of the scores, whose values divide --scores into groups that are compared one by one; dates become weeks."""
    manifest: str | None = None
    """manifest.parquet of --scores: for --by, and for patients, who then count once."""
    reference_manifest: str | None = None
    """manifest.parquet of --reference, for its patients."""
    level: float = 0.05
    """Probability of any alarm where nothing changed, over all quantities and groups."""
    alarm: bool = False
    """End with exit code 3 where there is an alarm."""
    seed: int = 0
    """Of the image that stands for each patient."""

    def __post_init__(self) -> None:
        require(0 < self.level < 0.5, f"level must lie between 0 and 0.5, got {self.level}")
