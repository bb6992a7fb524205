"""Configuration of a training run; the defaults are those of arXiv 2507.18647."""

from dataclasses import dataclass, field

from pneumo_ray.config import Amp, CountRange, count_range, require
from pneumo_ray.data.config import Balance
from pneumo_ray.evaluate.config import OperatingPointConfig
from pneumo_ray.images.augment_config import AugmentConfig
from pneumo_ray.model.config import ModelConfig


@dataclass(frozen=True)
class DataConfig:
    """Input of the network."""

    image_size: int = 224
    """Rows and columns of the network's input, in pixels; images are resized to 8/7 of it and cropped."""

    def __post_init__(self) -> None:
        require(
            32 <= self.image_size <= 2048, f"data.image-size must be between 32 and 2048 pixels, got {self.image_size}"
        )


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, a plateau schedule and early stopping, all judged by the validation loss.

    Patience means one thing: something happens at the end of the n-th epoch in a row whose validation loss is not below the
    least so far. torch's schedule would tolerate n such epochs and act on the next.
    """

    lr: float = 1e-4
    """Peak learning rate of AdamW."""
    weight_decay: float = 1e-4
    """Decoupled weight decay of AdamW."""
    clip_norm: float = 0.0
    """Largest norm of the gradient; 0 disables clipping."""
    plateau_factor: float = 0.5
    """Factor of the learning rate on a plateau."""
    plateau_patience: int = 3
    """Epochs in a row without a better validation loss after which that happens, and after every as many more."""
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
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    operating_point: OperatingPointConfig = field(default_factory=OperatingPointConfig)
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    balance: Balance = "copies"
    """How the classes are balanced; `paper` is copies, sampler and weighted loss together, and over-corrects."""
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

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, f"batch-size must be at least 1, got {self.batch_size}")
        require(self.epochs >= 1, f"epochs must be at least 1, got {self.epochs}")
        require(
            self.batch_size >= self.scaling.max_workers,
            f"batch-size {self.batch_size} is smaller than the number of workers, {self.scaling.max_workers}; raise it",
        )
        require(
            self.model.arch != "inception_v3" or self.data.image_size >= 75,
            f"model.arch inception_v3 needs data.image-size of at least 75 pixels, got {self.data.image_size}",
        )
