"""What the classifier is built from; reading it needs no torch."""

from dataclasses import dataclass
from typing import Literal, get_args

from pneumo_ray.config import did_you_mean, require
from pneumo_ray.errors import ModelError

ARCHITECTURES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "wide_resnet50_2",
    "resnext50_32x4d",
    "densenet121",
    "vgg16",
    "inception_v3",
    "efficientnet_b0",
)
"""The trunks that can be built, by torchvision name."""

DropoutSite = Literal["head", "tail"]
Freeze = Literal["none", "early", "backbone"]


@dataclass(frozen=True)
class ModelConfig:
    """Architecture and initial weights of the network."""

    arch: str = "resnet50"
    """Trunk by torchvision name, one of ARCHITECTURES."""
    weights: str = "imagenet"
    """`imagenet` (downloaded by torchvision), `none` (from scratch), or a file: a torchvision state dict
    (.pth, .pt, .safetensors) or a bundle's weights.safetensors."""
    dropout: float = 0.5
    """Share of channels dropped; the same rate in training and in Monte Carlo passes."""
    dropout_site: DropoutSite = "head"
    """`head` drops pooled features before the linear layer, `tail` drops whole channels inside the last stage."""
    freeze: Freeze = "none"
    """`none` trains everything, `early` the last stage and the head, `backbone` the head only."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ModelError: if the architecture is unknown.
            ConfigError: if another field is out of its range.
        """
        if self.arch not in ARCHITECTURES:  # not ConfigError: a bundle of a later version names such a model as well
            nearest = did_you_mean(self.arch, ARCHITECTURES)
            raise ModelError(f"model.arch {self.arch!r} is not known{nearest} (known: {', '.join(ARCHITECTURES)})")
        require(bool(self.weights), "model.weights is empty; give imagenet, none or a file")
        require(0 <= self.dropout < 1, f"model.dropout must be at least 0 and less than 1, got {self.dropout}")
        require(
            self.dropout_site in get_args(DropoutSite),
            f"model.dropout_site must be head or tail, got {self.dropout_site!r}",
        )
        require(self.freeze in get_args(Freeze), f"model.freeze must be none, early or backbone, got {self.freeze!r}")
