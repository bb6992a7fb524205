"""What the classifier is built from; reading it needs no torch."""

from dataclasses import dataclass
from typing import Literal, get_args

from pneumo_ray.config import require
from pneumo_ray.model.trunks import BUILT_IN, Trunk, find_trunk, with_keys

ARCHITECTURES = BUILT_IN
"""The trunks that come with the package, by torchvision name."""

CLASSES = ("normal", "pneumonia")
"""Names of label 0 and label 1."""

DropoutSite = Literal["head", "tail", "keys"]
Freeze = Literal["none", "early", "backbone"]
OutputStride = Literal[32, 16, 8]
Stages = Literal[4, 3]


def is_resnet(arch: str) -> bool:
    """Whether a trunk can have another output stride than 32, and can end one stage earlier: the ResNets can.

    Raises:
        ModelError: if there is no such trunk.
    """
    return bool(find_trunk(arch).dilated)


@dataclass(frozen=True)
class ModelConfig:
    """Architecture and initial weights of the network."""

    arch: str = "resnet50"
    """Trunk: one of ARCHITECTURES by torchvision name, or one that a module in PNEUMO_RAY_TRUNKS registers."""
    weights: str = "imagenet"
    """`imagenet` (downloaded by torchvision), `none` (from scratch), or a file: a torchvision state dict
    (.pth, .pt, .safetensors) or a bundle's weights.safetensors."""
    dropout: float = 0.5
    """Share of channels dropped; the same rate in training and in Monte Carlo passes."""
    dropout_site: DropoutSite = "head"
    """`head` drops pooled features before the linear layer, `tail` drops whole channels inside the last stage, `keys`
    hides random keys from the queries of the attention there (swin_t and maxvit_t)."""
    freeze: Freeze = "none"
    """`none` trains everything, `early` the last stage and the head, `backbone` the head only."""
    output_stride: OutputStride = 32
    """Pixels of the input for one cell of the maps, along each axis. ResNets can have 16 or 8, which makes maps twice or
    four times as fine with the same weights: strides of the last stages become dilations."""
    stages: Stages = 4
    """Stages of a ResNet that are used. 3 leaves the last one out: a cell of the maps then sees less of what surrounds it,
    the natural output stride is 16, and a step costs less."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ModelError: if the architecture is unknown.
            ConfigError: if another field is out of its range.
        """
        trunk = find_trunk(self.arch)
        require(bool(self.weights), "model.weights is empty; give imagenet, none or a file")
        require(0 <= self.dropout < 1, f"model.dropout must be at least 0 and less than 1, got {self.dropout}")
        require(
            self.dropout_site in get_args(DropoutSite),
            f"model.dropout-site must be head, tail or keys, got {self.dropout_site!r}",
        )
        require(
            self.dropout_site != "keys" or trunk.has_keys,
            f"model.dropout-site keys needs attention, and {self.arch} has none; give head or tail, or --model.arch "
            f"{' or '.join(with_keys())}",
        )
        require(self.freeze in get_args(Freeze), f"model.freeze must be none, early or backbone, got {self.freeze!r}")
        require(
            self.output_stride in get_args(OutputStride),
            f"model.output-stride must be 32, 16 or 8, got {self.output_stride!r}",
        )
        require(
            self.output_stride == 32 or is_resnet(self.arch),
            f"model.output-stride {self.output_stride} is for ResNets, and {self.arch} is none; give 32 or another --model.arch",
        )
        require(self.stages in get_args(Stages), f"model.stages must be 4 or 3, got {self.stages!r}")
        require(
            self.stages == 4 or is_resnet(self.arch),
            f"model.stages {self.stages} is for ResNets, and {self.arch} is none; give 4 or another --model.arch",
        )
        require(
            not self.trunk.dilated or self.output_stride <= self.trunk.stride,
            f"the maps of {self.stages} stages have an output stride of {self.trunk.stride}; give --model.output-stride "
            f"{self.trunk.stride} or 8",
        )

    @property
    def trunk(self) -> Trunk:
        """The cuts of the network, as far as its stages are used."""
        whole = find_trunk(self.arch)
        return whole.shorter if self.stages == 3 and whole.shorter is not None else whole
