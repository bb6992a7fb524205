"""Configuration of a scoring job, and the part of it that determines the numbers."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Literal, Self

from pneumo_ray.config import Allocator, Amp, CountRange, count_range, require, require_split
from pneumo_ray.dicomweb.query import check_archives
from pneumo_ray.explain.target import MapKind, Passes, PosteriorName, Target
from pneumo_ray.images.fit import OF_LUNGS, Fit
from pneumo_ray.images.isolation import DECODE_SECONDS
from pneumo_ray.model.config import DropoutSite
from pneumo_ray.records import JsonObject

ZoneMode = Literal["image", "box", "lungs"]

_METHOD = ("passes", "seed", "target", "zones", "refer_z", "amp", "posterior")
_COLUMNS = 4
"""Version of the columns of a row: a job that an earlier version began is not continued with others."""


@dataclass(frozen=True)
class ScoringScale:
    """Resources of the job. They change the speed, and the results only by rounding."""

    num_actors: CountRange = 0
    """Actors; 0 takes one per GPU, or one for every 8 CPUs of a node and at least one per node. Two
    numbers, minimum and maximum, let the pool grow and shrink with the work and the cluster."""
    use_gpu: bool = False
    """One GPU per actor."""
    batch_size: int = 0
    """Images per forward pass; 0 chooses by the memory of the device."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the trunk with frozen weights; `auto` compiles if the archive is large enough."""
    allocator: Allocator = "jemalloc"
    """Memory allocator of actors without a GPU: jemalloc (faster; where it is found) or system."""
    wait_seconds: float = 30.0
    """Seconds to wait for a cluster that is too small before the job fails."""

    def __post_init__(self) -> None:
        require(
            0 <= self.min_actors <= self.max_actors and (self.min_actors == 0) == (self.max_actors == 0),
            f"scale.num-actors must be 0 or more, or two increasing numbers, got {self.num_actors}",
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
    """Score and explain every image of an archive; the same command continues an interrupted job."""

    model: str | tuple[str, ...] = ()
    """Folder of the model that jobs/train.py wrote; or several, the members of an ensemble, which are scored as one."""
    out: str = field(kw_only=True)
    """Folder of the scores: Parquet files with one row per image, and _run.json."""
    archive: tuple[str, ...] = ()
    """Folders, tar or zip files, DICOM, local or s3://, gs://, or a PACS
    ('dicomweb+https://host/dicom-web?Modality=DX&StudyDate=20260101-20260131'); or give --manifest."""
    manifest: str | None = None
    """manifest.parquet from jobs/prepare.py, instead of --archive."""
    posterior: PosteriorName | None = None
    """What the weights vary by: dropout, or laplace, the Laplace posterior of the last layer (jobs/posterior.py). None takes
    the model's default: its dropout, unless it was trained with --posterior laplace."""
    passes: Passes | None = None
    """Monte Carlo passes of each model; None takes 200 where the posterior is over the head, where they cost nothing, and 20
    with dropout inside the trunk. arXiv 2507.18647 has 20. exact takes closed forms over the head instead, without any pass."""
    seed: int = 0
    """Seed of the passes, which all images share."""
    target: Target = "predicted"
    """The class that the maps explain."""
    zones: ZoneMode | None = None
    """Zones of the network's input (image), of the lung box in the manifest's columns lung_x0, lung_y0, lung_x1, lung_y1
    (box), or of each lung in thirds of its height (lungs), which are found where the manifest has none. None takes lungs
    where the model is given the lungs or the manifest has some, else image."""
    refer_z: float = 1.96
    """Refer an image if the threshold is within this many standard deviations of its mean logit over the passes."""
    amp: Amp = "auto"
    """Precision of the network; the maps are float32 in any case."""
    site: str | None = None
    """site.json of jobs/commission.py: adds prob_site, predicted_site and triage; the other columns do not change."""
    decode_seconds: float = DECODE_SECONDS
    """Time limit for decoding one image, in seconds; a slower image is a failed row (`timeout`)."""
    scale: ScoringScale = field(default_factory=ScoringScale)
    render: bool = False
    """Draw the most uncertain and the most suspicious images."""
    top: int = 10
    """Number of images of each kind that --render draws."""
    uids: str | None = None
    """Text file that names what is taken of an archive in a PACS, instead of all that its query asks for: one UID in a
    line, of a study, a series or an instance."""
    foreign: str | None = None
    """MODULE:FUNCTION of your own code, which returns a network (torch.nn.Module) that jobs/train.py did not make; instead of
    --model. Maps are Grad-CAM by autograd, which is slower."""
    layer: str | None = None
    """With --foreign, the name of the module that returns the feature maps, as in net.named_modules()."""
    maps: MapKind = "last"
    """Maps of the last stage; or fused, which divides the evidence of each of its cells among the finer cells of the stage
    before by their activation."""

    def __post_init__(self) -> None:
        require(
            (self.model != ()) != (self.foreign is not None),
            "give either --model, or --foreign with --layer for a network of your own",
        )
        require((self.foreign is None) == (self.layer is None), "--foreign and --layer belong together; give both")
        if self.foreign is not None:
            require(
                self.passes != "exact" and self.posterior in (None, "dropout"),
                "--foreign has neither closed forms nor a Laplace posterior; give a number of --passes",
            )
            require(self.maps == "last", "--maps fused is for models of jobs/train.py; leave it out with --foreign")
        require(bool(self.archive) != (self.manifest is not None), "give either --archive or --manifest")
        check_archives(self.archive, self.uids)
        require(
            self.passes in (None, "exact") or int(self.passes or 0) >= 2,
            f"passes must be exact, or at least 2 for a standard deviation, got {self.passes}",
        )
        require(self.refer_z >= 0, f"refer-z must not be negative, got {self.refer_z}")
        require(self.decode_seconds > 0, f"decode-seconds must be positive, got {self.decode_seconds}")
        require(self.top >= 1, f"top must be at least 1, got {self.top}")
        require(
            self.zones != "box" or self.manifest is not None,
            "--zones box needs a --manifest with the columns lung_x0, lung_y0, lung_x1, lung_y1",
        )

    def resolved(self, site: DropoutSite, zones: ZoneMode = "image", posterior: PosteriorName | None = None) -> Self:
        """Return the config with what None stands for.

        Args:
            site: of the dropout; the passes are those of `head` wherever the posterior is over the head.
            zones: where none are asked for.
            posterior: of the models where none is asked for; None is dropout.
        """
        from pneumo_ray.explain.masks import DEFAULT_PASSES  # brings torch

        chosen: PosteriorName = self.posterior or posterior or "dropout"
        passes = DEFAULT_PASSES["head" if chosen == "laplace" else site] if self.passes is None else self.passes
        return replace(self, passes=passes, zones=self.zones or zones, posterior=chosen)

    def finds_lungs(self, fit: Fit) -> bool:
        """Whether lungs are looked for that the manifest does not name, where the model's images are fitted like this."""
        return fit in OF_LUNGS or self.zones == "lungs"

    @property
    def method(self) -> JsonObject:
        """The options that determine the numbers of a row, besides model and image."""
        foreign = {} if self.foreign is None else {"foreign": self.foreign, "layer": self.layer}
        fused = {} if self.maps == "last" else {"maps": self.maps}
        return {name: getattr(self, name) for name in _METHOD} | foreign | fused

    @property
    def config_hash(self) -> str:
        """sha256 (hex) of `method` and of the version of the columns."""
        return hashlib.sha256(json.dumps({**self.method, "columns": _COLUMNS}, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class RobustnessConfig:
    """Score the labelled images of a split as they are and under changes of every image, and compare the measures."""

    model: str | tuple[str, ...] = ()
    """Folder of the model that jobs/train.py wrote, or several, as jobs/explain.py takes them."""
    manifest: str = field(kw_only=True)
    """manifest.parquet of the archive. The lungs that are blackened are those of its lung_mask, or that are found because
    the model is given the lungs; else the box in its columns lung_x0, lung_y0, lung_x1, lung_y1; else a central box."""
    out: str = field(kw_only=True)
    """Folder of robustness.json, robustness.csv and robustness.parquet; jobs/evaluate.py with the same --out shows them."""
    split: str = "test"
    """Split of the manifest to score; `all` takes every labelled image, including training images."""
    passes: Passes | None = None
    """Monte Carlo passes; None takes as many as jobs/explain.py."""
    seed: int = 0
    """Of the passes, of noise and sides, and of the calibration test."""
    amp: Amp = "auto"
    """Precision of the network."""
    scale: ScoringScale = field(default_factory=ScoringScale)
    posterior: PosteriorName | None = None
    """What the weights vary by, as for jobs/explain.py."""
    foreign: str | None = None
    """MODULE:FUNCTION that returns a network of your own, instead of --model, as for jobs/explain.py."""
    layer: str | None = None
    """With --foreign, the module that returns the feature maps."""

    def __post_init__(self) -> None:
        require_split(self.split)
        self.scoring()

    def scoring(self) -> ExplainConfig:
        """Return the options under which jobs/explain.py scores these images; its checks hold here as well."""
        return ExplainConfig(
            model=self.model,
            out=self.out,
            manifest=self.manifest,
            posterior=self.posterior,
            passes=self.passes,
            seed=self.seed,
            amp=self.amp,
            scale=self.scale,
            foreign=self.foreign,
            layer=self.layer,
        )
