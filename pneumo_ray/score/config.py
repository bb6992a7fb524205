"""What a scoring job is, as one typed value, and the part of it that its numbers depend on."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from pneumo_ray.data.guard import DECODE_SECONDS
from pneumo_ray.errors import ConfigError
from pneumo_ray.explain.cam import Target
from pneumo_ray.explain.masks import DEFAULT_PASSES
from pneumo_ray.model.network import DropoutSite

ZoneMode = Literal["image", "box"]


@dataclass(frozen=True)
class ScoringScale:
    """Where the job takes place. It changes the speed, and the results only by rounding."""

    num_actors: int | tuple[int, int] = 0
    """Processes that hold the model; 0 takes one a GPU, or one for every 8 CPUs of a node and at least one a node. Two
    numbers, the fewest and the most, let the pool grow and shrink with the work and the cluster."""
    use_gpu: bool = False
    """One GPU for each of them."""
    batch_size: int = 0
    """Pictures in one forward pass; 0 chooses by the memory of the device."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the trunk with frozen weights: `auto` where the archive is large enough to pay for it."""
    wait_seconds: float = 30.0
    """How long to wait for a cluster that is too small to grow, before giving up."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_actors <= self.max_actors or (self.min_actors == 0) != (self.max_actors == 0):
            raise ConfigError(f"scale.num-actors must be 0 or more, or two rising numbers, got {self.num_actors}")
        if self.wait_seconds < 0:
            raise ConfigError(f"scale.wait-seconds must not be negative, got {self.wait_seconds}")
        if self.batch_size < 0:
            raise ConfigError(f"scale.batch-size must not be negative, got {self.batch_size}")

    @property
    def min_actors(self) -> int:
        """The fewest actors; 0 where the job chooses."""
        return self.num_actors if isinstance(self.num_actors, int) else self.num_actors[0]

    @property
    def max_actors(self) -> int:
        """The most actors; 0 where the job chooses."""
        return self.num_actors if isinstance(self.num_actors, int) else self.num_actors[1]


@dataclass(frozen=True)
class ExplainConfig:
    """Score and explain every picture of an archive; the same command continues an interrupted job."""

    model: str
    """Folder of the model that jobs/train.py wrote."""
    out: str
    """Folder of the scores: Parquet files with one row a picture, and _run.json."""
    archive: tuple[str, ...] = ()
    """Folders, tar or zip files, DICOM, local or s3://, gs://; or give --manifest."""
    manifest: str | None = None
    """manifest.parquet from jobs/prepare.py, instead of --archive."""
    passes: int | None = None
    """Monte Carlo dropout passes; None takes 200 where the dropout is at the head, where they cost nothing, and 20 in
    the tail. arXiv 2507.18647 has 20."""
    seed: int = 0
    """Of the dropout masks, which all pictures share."""
    target: Target = "predicted"
    """The class that the maps explain."""
    zones: ZoneMode = "image"
    """Zones of the whole picture, or of the lung box in the manifest's columns lung_x0, lung_y0, lung_x1, lung_y1."""
    refer_z: float = 1.96
    """Refer a picture where the threshold lies within this many standard deviations of its mean logit over the passes."""
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Precision of the network; the maps are float32 in any case."""
    decode_seconds: float = DECODE_SECONDS
    """A picture whose decoding takes longer is a failed row (`timeout`)."""
    scale: ScoringScale = field(default_factory=ScoringScale)
    render: bool = False
    """Write pictures of the most uncertain and the most suspicious cases."""
    top: int = 10
    """How many of each --render draws."""

    def __post_init__(self) -> None:
        if bool(self.archive) == (self.manifest is not None):
            raise ConfigError("give the pictures either as --archive or as --manifest")
        if self.passes is not None and self.passes < 2:
            raise ConfigError(f"passes must be at least 2 for a standard deviation, got {self.passes}")
        if self.refer_z < 0:
            raise ConfigError(f"refer-z must not be negative, got {self.refer_z}")
        if self.decode_seconds <= 0:
            raise ConfigError(f"decode-seconds must be positive, got {self.decode_seconds}")
        if self.top < 1:
            raise ConfigError(f"top must be at least 1, got {self.top}")
        if self.zones == "box" and self.manifest is None:
            raise ConfigError("--zones box needs a --manifest with the columns lung_x0, lung_y0, lung_x1, lung_y1")

    def resolved(self, site: DropoutSite) -> Self:
        """Return the config with the number of passes that it stands for with this site of the dropout."""
        return replace(self, passes=DEFAULT_PASSES[site] if self.passes is None else self.passes)

    @property
    def method(self) -> dict[str, Any]:
        """The options that the numbers of a row depend on, besides model and picture."""
        return {name: getattr(self, name) for name in ("passes", "seed", "target", "zones", "refer_z", "amp")}

    @property
    def config_hash(self) -> str:
        """sha256 (hex) of `method`."""
        return hashlib.sha256(json.dumps(self.method, sort_keys=True).encode()).hexdigest()
