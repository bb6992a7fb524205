"""The registry of trunks: where each is cut, and how a further one is added. Reading it needs no torch.

A trunk is a network without its classifier: its children, in the order in which they run, turn images [B, 3, H, W] into
feature maps [B, K, h, w]. Behind them are global average pooling and one linear unit, so the logit is the sum of the map
`w_k A_k / (h w)` and nothing may stand between. A final LayerNorm therefore acts at each position, before the pooling:
that of Swin stands there as published, those of ConvNeXt and MaxViT stand behind the pooling in torchvision and are moved
(MaxViT's further Linear and Tanh are dropped with the classifier).
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pneumo_ray.config import did_you_mean, require
from pneumo_ray.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from torch import nn

TRUNKS_VARIABLE = "PNEUMO_RAY_TRUNKS"
"""Environment variable that names the user's modules, comma-separated, which register trunks. They are imported when a name
is asked for that is not built in, in every process; no file of a model can name a module."""


_ENDS = ("avgpool", "dropout", "flatten", "fc", "classifier", "head")


@dataclass(frozen=True)
class Trunk:
    """The cuts of a network; paths are its module names."""

    num_maps: int
    """Channels K of the feature maps."""
    dropouts: tuple[tuple[str, int], ...]
    """The steps that a channel dropout precedes, with their input channels; the first of them begins the tail, which a
    Monte Carlo pass inside the trunk repeats."""
    last_stage: str
    """The first step of the last stage, which `freeze="early"` still trains."""
    unpack: tuple[str, ...] = ()
    """Modules whose own children are steps of the trunk, because a cut lies inside them; outer ones first."""
    build: "Callable[[], nn.Module] | None" = None
    """Makes the network with random weights; None takes torchvision's of this name."""
    options: Mapping[str, bool | float] = field(default_factory=dict)
    """Arguments of torchvision's builder."""
    ends: tuple[str, ...] = _ENDS
    """Children that are no part of the trunk."""
    pooled_norm: str | None = None
    """A LayerNorm behind the pooling of the published network, which becomes the trunk's last step, `norm`."""
    stride: int = 32
    """Pixels of the input for one cell of the maps, along each axis, before strides of `dilated` are taken out."""
    dilated: tuple[str, ...] = ()
    """The last stages, each of stride 2, whose strides can become dilations (ResNets only); their maps can then be finer."""
    shorter: "Trunk | None" = None
    """The same network without its last stage (ResNets only)."""
    channels_last: bool = False
    """Whether channels are the last axis where the tail begins: [B, h, w, C]."""
    has_keys: bool = False
    """Whether its tail has attention whose keys can be dropped: `KeyDropout` modules."""
    min_size: int = 32
    """Rows and columns of the smallest image that it takes, in pixels."""


def _resnet(num_maps: int, blocks_of_3: int, blocks_of_4: int) -> Trunk:
    def ending(stage: str, num_maps: int, num_blocks: int, **options: Any) -> Trunk:
        blocks = tuple((f"{stage}.{i}", num_maps) for i in range(1, num_blocks))
        return Trunk(num_maps, blocks, f"{stage}.0", (stage,), **options)

    shorter = ending("layer3", num_maps // 2, blocks_of_3, ends=(*_ENDS, "layer4"), stride=16, dilated=("layer3",))
    return ending("layer4", num_maps, blocks_of_4, dilated=("layer3", "layer4"), shorter=shorter)


_LAST_MAXVIT = "blocks.3.layers.1.layers"

_TRUNKS: dict[str, Trunk] = {
    "resnet18": _resnet(512, 2, 2),
    "resnet34": _resnet(512, 6, 3),
    "resnet50": _resnet(2048, 6, 3),
    "resnet101": _resnet(2048, 23, 3),
    "resnet152": _resnet(2048, 36, 3),
    "wide_resnet50_2": _resnet(2048, 6, 3),
    "resnext50_32x4d": _resnet(2048, 6, 3),
    "densenet121": Trunk(1024, (("features.denseblock4", 512),), "features.denseblock4", ("features",)),
    "vgg16": Trunk(512, (("features.28", 512),), "features.24", ("features",)),
    # The published Inception weights expect another normalisation, which weights.py folds into the first layer, so no
    # transform is needed here.
    "inception_v3": Trunk(
        2048,
        (("Mixed_7c", 2048),),
        "Mixed_7a",
        options={"aux_logits": False, "transform_input": False, "init_weights": True},
        min_size=75,
    ),
    "efficientnet_b0": Trunk(1280, (("features.8", 320),), "features.7", ("features",)),
    "convnext_tiny": Trunk(768, (("features.7", 768),), "features.6", ("features",), pooled_norm="classifier.0"),
    "swin_t": Trunk(768, (("features.7", 768),), "features.6", ("features",), channels_last=True, has_keys=True),
    "maxvit_t": Trunk(
        512,
        ((f"{_LAST_MAXVIT}.window_attention", 512),),
        "blocks.3.layers.0",
        ("blocks", "blocks.3", "blocks.3.layers", "blocks.3.layers.1", _LAST_MAXVIT),
        pooled_norm="classifier.2",
        has_keys=True,
    ),
}

BUILT_IN = tuple(_TRUNKS)
"""The trunks that come with the package, by torchvision name."""


def register_trunk(name: str, trunk: Trunk) -> None:
    """Add a trunk under a name that `ModelConfig.arch` then takes.

    Args:
        name: not that of another trunk; the same trunk may be registered again.
        trunk: its cuts; without `build` the name is torchvision's.

    Raises:
        ConfigError: if the name belongs to another trunk, or the trunk has no place for dropout.
    """
    require(
        bool(trunk.dropouts), f"trunk {name!r} names no step that a dropout precedes; give dropouts=((STEP, CHANNELS),)"
    )
    require(_TRUNKS.get(name, trunk) == trunk, f"there is another trunk {name!r}; choose another name")
    _TRUNKS[name] = trunk


def find_trunk(name: str) -> Trunk:
    """Return a trunk by its name; where it is not built in, the user's modules are imported first.

    Raises:
        ModelError: naming the nearest one, if there is none of this name.
        ConfigError: if a module of the user cannot be imported.
    """
    if name not in _TRUNKS:
        for module in _own_modules():
            try:
                import_module(module)
            except ImportError as error:
                raise ConfigError(
                    f"{TRUNKS_VARIABLE} names {module!r}, which cannot be imported ({error}); set PYTHONPATH to its folder"
                ) from error
    if name not in _TRUNKS:  # not ConfigError: a bundle of a later version names such a model as well
        nearest = did_you_mean(name, _TRUNKS)
        raise ModelError(f"model.arch {name!r} is not known{nearest} (known: {', '.join(_TRUNKS)})")
    return _TRUNKS[name]


def with_keys() -> list[str]:
    """Return the names of the trunks whose keys can be dropped."""
    return [name for name, trunk in _TRUNKS.items() if trunk.has_keys]


def _own_modules() -> Iterator[str]:
    yield from (name for part in os.environ.get(TRUNKS_VARIABLE, "").split(",") if (name := part.strip()))
