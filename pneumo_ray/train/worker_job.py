"""Arguments of the workers of a training run, and the error that ends it."""

from dataclasses import dataclass

import ray
import torch

from pneumo_ray.data.soft_labels import SoftLabels
from pneumo_ray.errors import PneumoError
from pneumo_ray.model import Preprocessing
from pneumo_ray.records import JsonObject
from pneumo_ray.train.batches import Schedule
from pneumo_ray.train.config import TrainConfig
from pneumo_ray.train.monitor import Monitor
from pneumo_ray.train.records import EpochRecord

CALMER = "lower --optim.lr or set --optim.clip-norm, and choose another --out"


class DivergedError(PneumoError):
    """The loss became infinite or undefined."""


@dataclass(frozen=True)
class WorkerJob:
    """Arguments shared by all workers."""

    config: TrainConfig
    run: str
    """Folder of the run, absolute."""
    preprocessing: Preprocessing
    schedule: Schedule
    """Of a run with the fewest workers; there may be more."""
    positive_weight: float
    identity: JsonObject
    """See `TrainState`."""
    initial_weights: "ray.ObjectRef[dict[str, torch.Tensor]]"
    """Reference to the state dict that training begins with; workers need no network of their own."""
    monitor: Monitor[EpochRecord]
    """Receives the progress of rank 0."""
    val_soft: SoftLabels | None = None
    """Of the validation images, in manifest order; None where hard labels are learned."""
    guided: bool = False
    """The loss includes the share of the evidence outside the lungs: it has a weight, and the lungs of some images are known."""
