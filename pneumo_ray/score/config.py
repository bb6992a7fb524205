"""What a scoring job is, as one typed value, and the part of it that its numbers depend on."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from pneumo_ray.config import Amp, CountRange, count_range, require
from pneumo_ray.explain.target import Target
from pneumo_ray.images.isolation import DECODE_SECONDS

ZoneMode = Literal["image", "box"]


@dataclass(frozen=True)
class ScoringScale:
    """Where the job takes place. It changes the speed, and the results only by rounding."""

    num_actors: CountRange = 0
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
        require(
            0 <= self.min_actors <= self.max_actors and (self.min_actors == 0) == (self.max_actors == 0),
            f"scale.num-actors must be 0 or more, or two rising numbers, got {self.num_actors}",
        )
        require(self.wait_seconds >= 0, f"scale.wait-seconds must not be negative, got {self.wait_seconds}")
        require(self.batch_size >= 0, f"scale.batch-size must not be negative, got {self.batch_size}")

    @property
    def min_actors(self) -> int:
        """The fewest actors; 0 where the job chooses."""
        return count_range(self.num_actors)[0]

    @property
    def max_actors(self) -> int:
        """The most actors; 0 where the job chooses."""
        return count_range(self.num_actors)[1]


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
    passes: int = 20
    """Monte Carlo dropout passes; with dropout at the head 200 cost hardly more than 20."""
    seed: int = 0
    """Of the dropout masks, which all pictures share."""
    target: Target = "predicted"
    """The class that the maps explain."""
    zones: ZoneMode = "image"
    """Zones of the whole picture, or of the lung box in the manifest's columns lung_x0, lung_y0, lung_x1, lung_y1."""
    refer_z: float = 1.96
    """Refer a picture where the threshold lies within this many standard deviations of its mean logit over the passes."""
    amp: Amp = "auto"
    """Precision of the network; the maps are float32 in any case."""
    decode_seconds: float = DECODE_SECONDS
    """A picture whose decoding takes longer is a failed row (`timeout`)."""
    scale: ScoringScale = field(default_factory=ScoringScale)
    render: bool = False
    """Write pictures of the most uncertain and the most suspicious cases."""
    top: int = 10
    """How many of each --render draws."""

    def __post_init__(self) -> None:
        require(
            bool(self.archive) != (self.manifest is not None), "give the pictures either as --archive or as --manifest"
        )
        require(self.passes >= 2, f"passes must be at least 2 for a standard deviation, got {self.passes}")
        require(self.refer_z >= 0, f"refer-z must not be negative, got {self.refer_z}")
        require(self.decode_seconds > 0, f"decode-seconds must be positive, got {self.decode_seconds}")
        require(self.top >= 1, f"top must be at least 1, got {self.top}")
        require(
            self.zones != "box" or self.manifest is not None,
            "--zones box needs a --manifest with the columns lung_x0, lung_y0, lung_x1, lung_y1",
        )

    @property
    def method(self) -> dict[str, Any]:
        """The options that the numbers of a row depend on, besides model and picture."""
        return {name: getattr(self, name) for name in ("passes", "seed", "target", "zones", "refer_z", "amp")}

    @property
    def config_hash(self) -> str:
        """sha256 (hex) of `method`."""
        return hashlib.sha256(json.dumps(self.method, sort_keys=True).encode()).hexdigest()
