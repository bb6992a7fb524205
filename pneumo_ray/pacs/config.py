"""What a publication is asked for."""

from dataclasses import dataclass
from typing import Literal

from pneumo_ray.config import require

Kind = Literal["sr", "map", "capture"]
KINDS: tuple[Kind, ...] = ("sr", "map", "capture")


@dataclass(frozen=True)
class PublishConfig:
    """Write the results of scored DICOM images as DICOM objects into a folder or a PACS; research use only, not for diagnosis."""

    scores: str
    """Folder that jobs/explain.py wrote, of DICOM images."""
    model: str | tuple[str, ...]
    """Folder of the model that made the scores, or of the members of its ensemble."""
    to: str | None = None
    """Address of a DICOMweb server, dicomweb+http:// or dicomweb+https://, that the objects are sent to (STOW-RS)."""
    out: str | None = None
    """Folder for the objects as files, instead of --to."""
    kinds: tuple[Kind, ...] = KINDS
    """Structured report (sr), parametric maps of mean and standard deviation (map), secondary capture of the panels (capture)."""
    include_doubtful: bool = False
    """Publish results of doubtful views and of images unlike those of the training, too."""
    beside: bool = False
    """Publish beside the results of another model or config that a study has already, instead of leaving the study out."""
    dry_run: bool = False
    """Count what would be published, and write nothing."""
    num_workers: int = 0
    """Processes that make the objects; 0 takes one for each CPU."""

    def __post_init__(self) -> None:
        require((self.to is None) != (self.out is None), "give either --to or --out")
        require(bool(self.kinds), "kinds must name at least one of sr, map and capture")
        require(len(set(self.kinds)) == len(self.kinds), "kinds names one twice")
        require(self.num_workers >= 0, f"num-workers must not be negative, got {self.num_workers}")
