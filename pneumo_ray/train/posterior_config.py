"""What the fit of a posterior is asked for."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from pneumo_ray.config import Amp, require_one_of
from pneumo_ray.score.config import ScoringScale

Posteriors = Literal["dropout", "laplace", "both"]
"""Which posteriors a model is given: its dropout alone; a Laplace posterior, which scoring then takes by default; or a
Laplace posterior beside the dropout, which stays the default."""


@dataclass(frozen=True)
class PosteriorConfig:
    """Fit the Laplace posterior of a finished model's last layer on the images that it was trained on, and store it with the model."""

    model: str
    """Folder of the model that jobs/train.py wrote; its hash changes."""
    manifest: str
    """manifest.parquet that it was trained on."""
    posterior: Posteriors = "both"
    """What scoring takes by default: laplace, the Laplace posterior; both, the dropout, with the Laplace posterior beside it;
    dropout removes a Laplace posterior."""
    amp: Amp = "auto"
    """Precision of the network; the posterior is fitted in float64 in any case."""
    scale: ScoringScale = field(default_factory=ScoringScale)
    """Resources of the pass over the images, in batches of 64 by default; nothing is compiled."""

    def __post_init__(self) -> None:
        require_one_of("posterior", self.posterior, get_args(Posteriors))
