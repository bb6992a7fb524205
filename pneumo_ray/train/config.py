"""Configuration of a training run; the defaults are those of arXiv 2507.18647."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from pneumo_ray.config import Allocator, Amp, CountRange, count_range, require, require_one_of
from pneumo_ray.data.config import Balance
from pneumo_ray.evaluate.config import OperatingPointConfig
from pneumo_ray.images.augment_config import AugmentConfig
from pneumo_ray.images.fit import MARGIN, Fit
from pneumo_ray.model.config import ModelConfig
from pneumo_ray.model.trunks import find_trunk
from pneumo_ray.records import JsonObject
from pneumo_ray.train.posterior_config import Posteriors
from pneumo_ray.train.recipes import RECIPES, Recipe, recipe_settings

FitChoice = Fit | Literal["auto"]
Labels = Literal["hard", "soft"]
Schedule = Literal["plateau", "cosine", "onecycle"]
GuideTarget = Literal["outside-lungs", "outside-box"]


@dataclass(frozen=True)
class DataConfig:
    """Input of the network."""

    image_size: int = 224
    """Rows and columns of the network's input, in pixels; with squash, images are resized to 8/7 of it and cropped."""
    fit: FitChoice = "squash"
    """What the input shows: squash, the whole image resized to a square, as in the paper; pad, the whole image in its true
    shape; lungs, their box and a margin in its true shape (pad where they are not plausible); lungs-squash, the same
    resized to a square; auto, lungs-squash where the manifest has lungs, else squash. The run's train.json and bundle
    record the one that was taken."""
    margin: float = MARGIN
    """With lungs, the margin around them on each side, as a share of their box's longer side (with
    lungs-squash, of each side)."""

    def __post_init__(self) -> None:
        require(
            32 <= self.image_size <= 2048, f"data.image-size must be between 32 and 2048 pixels, got {self.image_size}"
        )
        require_one_of("data.fit", self.fit, ("auto", *get_args(Fit)))
        require(0 <= self.margin <= 1, f"data.margin must be between 0 and 1, got {self.margin}")


@dataclass(frozen=True)
class GuideConfig:
    """A loss on where the evidence lies ("right for the right reasons", Ross et al. 2017, arXiv 1703.03717).

    The share of an image's positive evidence that lies outside its lungs, averaged over the images of a batch whose lungs
    are known, is added to the cross-entropy.
    """

    weight: float = 0.0
    """Of that share beside the cross-entropy in nats; 0 is off, as in the paper."""
    target: GuideTarget = "outside-lungs"
    """Where evidence is unwanted: outside-lungs, or outside-box, the box around both lungs."""

    def __post_init__(self) -> None:
        require(0 <= self.weight <= 1000, f"guide.weight must be between 0 and 1000, got {self.weight}")
        require_one_of("guide.target", self.target, get_args(GuideTarget))


@dataclass(frozen=True)
class LossConfig:
    """The cross-entropy."""

    smoothing: float = 0.0
    """Labels are moved by half of this towards 0.5 (arXiv 1512.00567); 0 is off, as in the paper."""

    def __post_init__(self) -> None:
        require(0 <= self.smoothing < 1, f"loss.smoothing must be at least 0 and below 1, got {self.smoothing}")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, a schedule of its rate and early stopping; plateau and stop are judged by the validation loss.

    Patience means one thing: something happens at the end of the n-th epoch in a row whose validation loss is not below the
    least so far. torch's schedule would tolerate n such epochs and act on the next.
    """

    lr: float = 1e-4
    """Peak learning rate of AdamW."""
    weight_decay: float = 1e-4
    """Decoupled weight decay of AdamW."""
    clip_norm: float = 0.0
    """Largest norm of the gradient; 0 disables clipping."""
    schedule: Schedule = "plateau"
    """How the rate moves: plateau, lowered when the validation loss stands still; cosine, down to 0 over --epochs
    (arXiv 1608.03983); onecycle, up from 1/25 and down to almost 0 over --epochs (arXiv 1708.07120)."""
    warmup: float = 0.0
    """Epochs in which the rate rises to its peak, linearly (with onecycle along half a cosine, and 0 takes 0.3 of all);
    parts of an epoch can be given."""
    ema: float = 0.0
    """Decay per step of the moving average of the weights, which is validated and kept instead of the last weights; the
    average is shorter at the beginning. 0 keeps the weights themselves."""
    plateau_factor: float = 0.5
    """Factor of the learning rate on a plateau."""
    plateau_patience: int = 3
    """Epochs in a row without a better validation loss after which the rate is lowered, and again after as many more."""
    stop_patience: int = 5
    """Epochs in a row without a better validation loss after which training stops."""

    def __post_init__(self) -> None:
        require(self.lr > 0, f"optim.lr must be positive, got {self.lr}")
        require(self.weight_decay >= 0, f"optim.weight-decay must not be negative, got {self.weight_decay}")
        require(self.clip_norm >= 0, f"optim.clip-norm must not be negative, got {self.clip_norm}")
        require(
            0 < self.plateau_factor < 1, f"optim.plateau-factor must lie between 0 and 1, got {self.plateau_factor}"
        )
        require(self.plateau_patience >= 1, f"optim.plateau-patience must be at least 1, got {self.plateau_patience}")
        require_one_of("optim.schedule", self.schedule, get_args(Schedule))
        require(self.warmup >= 0, f"optim.warmup must not be negative, got {self.warmup}")
        require(0 <= self.ema < 1, f"optim.ema must be at least 0 and below 1, got {self.ema}")
        require(self.stop_patience >= 1, f"optim.stop-patience must be at least 1, got {self.stop_patience}")


@dataclass(frozen=True)
class ScalingConfig:
    """Resources of the run. They change the speed, and the results only by rounding and batch statistics."""

    num_workers: CountRange = 1
    """Training workers, which share the global batch; or two numbers, minimum and maximum: the run then grows and
    shrinks with the cluster, each time from its last finished epoch."""
    use_gpu: bool = False
    """Train on GPUs."""
    gpus_per_worker: float = 1.0
    """GPUs per worker, with use-gpu; with a fraction, several trials of a study share one GPU."""
    cpus_per_worker: float = 0.0
    """Logical CPUs that a worker reserves; 0 leaves at least one whole CPU to prepare images."""
    threads_per_worker: int = 0
    """Compute threads of a worker without a GPU; 0 divides the cores of the machine among its workers."""
    wait_seconds: float = 30.0
    """Seconds to wait for a cluster that is too small before the job fails."""
    allocator: Allocator = "jemalloc"
    """Memory allocator of workers without a GPU: jemalloc (faster; where it is found) or system."""
    max_failures: int = 3
    """Restarts of the workers without a finished epoch in between; 0 does not restart."""

    def __post_init__(self) -> None:
        require(
            1 <= self.min_workers <= self.max_workers,
            f"scaling.num-workers must be at least 1, or two increasing numbers, got {self.num_workers}",
        )
        require(self.wait_seconds >= 0, f"scaling.wait-seconds must not be negative, got {self.wait_seconds}")
        require(self.max_failures >= 0, f"scaling.max-failures must not be negative, got {self.max_failures}")
        require(self.cpus_per_worker >= 0, f"scaling.cpus-per-worker must not be negative, got {self.cpus_per_worker}")
        require(
            self.threads_per_worker >= 0,
            f"scaling.threads-per-worker must not be negative, got {self.threads_per_worker}",
        )
        require(
            0 < self.gpus_per_worker <= 1,
            f"scaling.gpus-per-worker must be above 0 and at most 1, got {self.gpus_per_worker}",
        )
        # NCCL refuses two ranks on one GPU.
        require(
            self.gpus_per_worker == 1 or self.max_workers == 1,
            "scaling.gpus-per-worker below 1 needs --scaling.num-workers 1",
        )

    @property
    def min_workers(self) -> int:
        """The fewest workers."""
        return count_range(self.num_workers)[0]

    @property
    def max_workers(self) -> int:
        """The most workers."""
        return count_range(self.num_workers)[1]

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change during the run."""
        return self.min_workers < self.max_workers


@dataclass(frozen=True)
class TrainConfig:
    """Train a classifier on a manifest; the same command continues an interrupted run."""

    manifest: str
    """manifest.parquet from jobs/prepare.py."""
    out: str
    """Folder of the run: model/, history.jsonl, state/, curves.png."""
    recipe: Recipe = "paper"
    """Sets what is not given: robust, for other hospitals and for maps that look at the lungs, which a command line has unless
    it names another; paper, the defaults of arXiv 2507.18647. In Python it is only a name."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    guide: GuideConfig = field(default_factory=GuideConfig)
    operating_point: OperatingPointConfig = field(default_factory=OperatingPointConfig)
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    balance: Balance = "copies"
    """How the classes are balanced; `paper` is copies, sampler and weighted loss together, and over-corrects."""
    labels: Labels = "hard"
    """What is learned: hard, the label of each image; soft, what its readers say (label_soft of the manifest), each
    image weighted by label_weight. Balance, validation loss and calibration follow."""
    batch_size: int = 64
    """Images of one optimiser step, over all workers."""
    epochs: int = 30
    """Largest number of epochs."""
    amp: Amp = "auto"
    """Mixed precision: auto takes bfloat16 if the device supports it, otherwise float16 on a GPU, otherwise none."""
    compile: bool = False
    """Compile the network with torch.compile."""
    seed: int = 0
    """Seed of every random draw: weights, order, augmentation, dropout."""
    allow_leakage: bool = False
    """Train on a manifest in which a patient or an exact copy is in two splits."""
    permute_labels: bool = False
    """Permute the labels: a model for the label randomisation test of maps only."""
    mlflow: bool = False
    """Also log to MLflow (MLFLOW_TRACKING_URI), where it is installed."""
    posterior: Posteriors = "dropout"
    """What scoring may vary the weights by: dropout; laplace, a Laplace posterior of the last layer that is fitted at the
    end and that scoring takes by default; both, the same, with the dropout as the default."""
    members: int = 1
    """Trainings from as many seeds, the first of them --seed, as one study: the members of an ensemble, which
    jobs/explain.py --model takes together."""

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, f"batch-size must be at least 1, got {self.batch_size}")
        require(self.epochs >= 1, f"epochs must be at least 1, got {self.epochs}")
        require(self.members >= 1, f"members must be at least 1, got {self.members}")
        require_one_of("posterior", self.posterior, get_args(Posteriors))
        require_one_of("labels", self.labels, get_args(Labels))
        require(
            self.labels == "hard" or not self.permute_labels,
            "--permute-labels permutes hard labels; give --labels hard",
        )
        require_one_of("recipe", self.recipe, RECIPES)
        require(
            self.optim.schedule == "plateau" or self.optim.warmup < self.epochs,
            f"optim.warmup of {self.optim.warmup:g} epochs leaves nothing of {self.epochs}; lower it or raise --epochs",
        )
        require(
            self.batch_size >= self.scaling.max_workers,
            f"batch-size {self.batch_size} is smaller than the number of workers, {self.scaling.max_workers}; raise it",
        )
        smallest = find_trunk(self.model.arch).min_size
        require(
            self.data.image_size >= smallest,
            f"model.arch {self.model.arch} needs data.image-size of at least {smallest} pixels, got {self.data.image_size}",
        )

    @classmethod
    def unless_given(cls) -> Mapping[str, str]:
        """Return the recipe of a command line that names none."""
        return {"recipe": "robust"}

    @classmethod
    def presets(cls, given: Mapping[str, object]) -> JsonObject:
        """Return the defaults, by dotted names, that follow from the options given: those of the recipe."""
        recipe = str(given.get("recipe", cls.recipe))
        settings = recipe_settings(recipe, str(given.get("model.arch", ModelConfig.arch)))
        return {"recipe": recipe} | settings if settings else {}
