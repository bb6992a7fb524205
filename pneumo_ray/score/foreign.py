"""A network of others as the model of a scoring job: the user's own function makes it, in the job and in every worker.

Nothing is read from a file here: weights are loaded by the user's code. A scoring folder remembers the function's name and
the hash of the weights, so that it is not continued with others.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module

import torch
from torch import nn

from pneumo_ray.config import as_plain
from pneumo_ray.errors import ConfigError, ModelError
from pneumo_ray.explain.foreign import ForeignGradCAM
from pneumo_ray.explain.target import MapKind, Passes, PosteriorName
from pneumo_ray.model import Preprocessing
from pneumo_ray.model.calibrated import Calibration
from pneumo_ray.model.config import DropoutSite
from pneumo_ray.records import JsonObject


@dataclass(frozen=True)
class ForeignModel:
    """What the function of `--foreign` may return in the place of a bare network."""

    net: nn.Module
    """Returns logits [B] or [B, 1] of pneumonia, or [B, 2] of normal and pneumonia."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    """Of its inputs."""
    calibration: Calibration = field(default_factory=lambda: Calibration(1.0, 0.0))
    """From a raw logit to a probability."""
    threshold: float = 0.5
    """Pneumonia is predicted from this calibrated probability upwards."""


@dataclass(frozen=True)
class ForeignSource:
    """Where a network of others comes from; travels to the workers."""

    factory: str
    """`MODULE:FUNCTION`."""
    layer: str
    """Module of the network that returns its feature maps."""

    def make(self) -> ForeignModel:
        """Import the module, call the function, and return what it makes, in eval mode and without gradients.

        Raises:
            ConfigError: if there is no such function.
            ModelError: if it returns no network.
        """
        module, _, name = self.factory.partition(":")
        try:
            factory: Callable[[], object] = getattr(import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(
                f"--foreign {self.factory} cannot be imported ({error}); give MODULE:FUNCTION and set PYTHONPATH to its folder"
            ) from error
        made = factory()
        model = ForeignModel(made) if isinstance(made, nn.Module) else made
        if not isinstance(model, ForeignModel):
            raise ModelError(
                f"{self.factory} returns {type(made).__name__}; it must return a torch.nn.Module or ForeignModel"
            )
        model.net.eval().requires_grad_(False)
        return model


@dataclass(frozen=True)
class ForeignSet:
    """The model of a job, as `ModelSet` is for bundles."""

    source: ForeignSource
    model: ForeignModel
    posterior: PosteriorName = "dropout"
    support: None = None
    """Nobody knows for whom it was made."""

    @property
    def preprocessing(self) -> Preprocessing:
        """Of its inputs."""
        return self.model.preprocessing

    @property
    def calibration(self) -> Calibration:
        """From a raw logit to a probability."""
        return self.model.calibration

    @property
    def operating_point(self) -> JsonObject:
        """Its threshold."""
        return {"threshold": self.model.threshold, "rule": f"of {self.source.factory}"}

    @property
    def site(self) -> DropoutSite:
        """Where the dropout is, for the number of passes: each is a forward pass, as in the tail."""
        return "tail"

    @property
    def hash(self) -> str:
        """sha256 (hex) of the layer and of all weights with their names."""
        digest = hashlib.sha256(self.source.layer.encode())
        for name, tensor in sorted(self.model.net.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def map_size(self) -> tuple[int, int]:
        """Rows and columns of its maps, found with a blank image."""
        size = self.preprocessing.image_size
        signed = ForeignGradCAM(self.model.net, self.source.layer, 2).evidence(torch.zeros(1, 3, size, size)).signed
        return signed.shape[-2], signed.shape[-1]

    def map_size_of(self, maps: MapKind) -> tuple[int, int]:
        """Return rows and columns of its maps, which are never fused."""
        assert maps == "last", "the config refuses others"
        return self.map_size

    def check(self, passes: Passes, seed: int) -> None:
        """Refuse a network that cannot be explained.

        Raises:
            ConfigError: if it has no such layer.
            ModelError: if it has no dropout.
        """
        assert passes != "exact", "the config refuses it"
        ForeignGradCAM(self.model.net, self.source.layer, passes, seed)

    def facts(self) -> JsonObject:
        """Return what `_run.json` has of it."""
        return {
            "hash": self.hash,
            "architecture": self.source.factory,
            "layer": self.source.layer,
            "temperature": self.calibration.temperature,
            "intercept": self.calibration.intercept,
            "preprocessing": as_plain(self.preprocessing),
            "provenance": {},
            "posterior": self.posterior,
        }
