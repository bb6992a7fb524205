"""What a training of the lung segmenter is, as one typed value."""

from dataclasses import dataclass, field
from typing import Literal

from pneumo_ray.config import Amp, require
from pneumo_ray.train.config import ScalingConfig


@dataclass(frozen=True)
class LungsConfig:
    """Train the lung segmenter; the same command continues an interrupted run."""

    manifest: str
    """manifest.parquet from jobs/prepare.py; its splits decide which images train and which are held out."""
    masks: str
    """Parquet table with image_id and mask_png, or a folder of PNG files named as the images."""
    out: str
    """Folder of the run: lungs.safetensors, dice.json, state/."""
    phantoms: int = 600
    """Phantom chests with true lungs that are mixed among the images."""
    batch_size: int = 32
    """Images of one optimiser step, over all workers."""
    epochs: int = 12
    """Epochs of the one-cycle schedule."""
    lr: float = 4e-3
    """Highest learning rate of AdamW, after a fifth of the run."""
    weight_decay: float = 1e-3
    """Decoupled weight decay of AdamW."""
    amp: Amp = "auto"
    """Mixed precision: auto takes bfloat16 if the device supports it, otherwise float16 on a GPU, otherwise none."""
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    seed: int = 0
    """Of weights, order and augmentation."""
    measure: tuple[Literal["val", "test"], ...] = ("val",)
    """Splits that dice.json is about; the test folder is for one look at the end."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "lr"):
            require(getattr(self, name) > 0, f"{name.replace('_', '-')} must be positive, got {getattr(self, name)}")
        for name in ("phantoms", "weight_decay"):
            require(
                getattr(self, name) >= 0, f"{name.replace('_', '-')} must not be negative, got {getattr(self, name)}"
            )
        require(
            self.batch_size >= self.scaling.max_workers,
            f"batch-size {self.batch_size} has no image for some workers; raise it",
        )
