"""What a silent trial is asked for."""

from dataclasses import dataclass, field

from pneumo_ray.config import require
from pneumo_ray.dicomweb.query import check_archives
from pneumo_ray.explain.target import Passes, PosteriorName
from pneumo_ray.score.config import ExplainConfig, ScoringScale


@dataclass(frozen=True)
class SilentConfig:
    """Score what is new in an archive each time it runs, write nothing back, and report by week of scoring."""

    archive: tuple[str, ...] = field(kw_only=True)
    """Folders, tar or zip files, DICOM, local or s3://, gs://, or a PACS (dicomweb+https://...), into which images arrive."""
    model: str | tuple[str, ...] = ()
    """Folder of the model that jobs/train.py wrote, or several, as jobs/explain.py takes them."""
    out: str = field(kw_only=True)
    """Folder of the trial: the scores of each run in batches/, weeks.csv, weeks.json and silent.html."""
    site: str | None = None
    """site.json of jobs/commission.py."""
    reference: str | None = None
    """Folder of scores of the same model, with which each week is compared (see jobs/drift.py)."""
    labels: str | None = None
    """CSV or Parquet table of labels, as of jobs/prepare.py, as far as they have come; a column patient_id counts patients."""
    passes: Passes | None = None
    """Monte Carlo passes; None as for jobs/explain.py."""
    level: float = 0.05
    """Probability of any alarm where nothing changed, over all quantities and weeks."""
    seed: int = 0
    """Of the passes and of the calibration test."""
    scale: ScoringScale = field(default_factory=ScoringScale)
    posterior: PosteriorName | None = None
    """What the weights vary by, as for jobs/explain.py."""
    foreign: str | None = None
    """MODULE:FUNCTION that returns a network of your own, instead of --model, as for jobs/explain.py."""
    layer: str | None = None
    """With --foreign, the module that returns the feature maps."""

    def __post_init__(self) -> None:
        check_archives(self.archive, None)
        require(bool(self.archive), "--archive needs at least one folder, tar or zip file, or URI")
        require(0 < self.level < 0.5, f"level must lie between 0 and 0.5, got {self.level}")
        self.explaining("manifest", self.out)  # its checks hold here as well

    def explaining(self, manifest: str, out: str) -> ExplainConfig:
        """Return the options under which jobs/explain.py scores one batch."""
        return ExplainConfig(
            model=self.model,
            out=out,
            manifest=manifest,
            posterior=self.posterior,
            passes=self.passes,
            seed=self.seed,
            site=self.site,
            scale=self.scale,
            foreign=self.foreign,
            layer=self.layer,
        )
