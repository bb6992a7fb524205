"""The classifier: trunk -> feature maps -> global average pool -> dropout -> linear -> one logit.

With this one shape for every architecture, Grad-CAM weights (arXiv 1610.02391) are the weights of the linear layer,
so the maps of arXiv 2507.18647 need no backward pass. The trunks are torchvision's; their own classifiers are dropped.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pneumo_ray.model.config import ModelConfig
from pneumo_ray.model.signed_map import signed_maps
from pneumo_ray.model.weights import load_weights


@dataclass(frozen=True)
class _Layout:
    """The cuts of a torchvision network; paths are torchvision's module names."""

    num_maps: int
    """Channels K of the feature maps."""
    unpack: str | None
    """The child whose own children are steps of the trunk, because a cut lies inside it."""
    dropouts: tuple[tuple[str, int], ...]
    """The steps that a channel dropout precedes, with their input channels; the first of them begins the tail."""
    last_stage: str
    """The first step of the last stage, which `freeze="early"` still trains."""


def _resnet(num_maps: int, num_blocks: int) -> _Layout:
    blocks = tuple((f"layer4.{i}", num_maps) for i in range(1, num_blocks))
    return _Layout(num_maps, "layer4", blocks, "layer4.0")


_LAYOUTS = {
    "resnet18": _resnet(512, 2),
    "resnet34": _resnet(512, 3),
    "resnet50": _resnet(2048, 3),
    "resnet101": _resnet(2048, 3),
    "resnet152": _resnet(2048, 3),
    "wide_resnet50_2": _resnet(2048, 3),
    "resnext50_32x4d": _resnet(2048, 3),
    "densenet121": _Layout(1024, "features", (("features.denseblock4", 512),), "features.denseblock4"),
    "vgg16": _Layout(512, "features", (("features.28", 512),), "features.24"),
    "inception_v3": _Layout(2048, None, (("Mixed_7c", 2048),), "Mixed_7a"),
    "efficientnet_b0": _Layout(1280, "features", (("features.8", 320),), "features.7"),
}
"""Every trunk of `ARCHITECTURES`, by torchvision name."""

# StochasticDepth off: dropout is the only randomness that Monte Carlo passes have to reproduce. The published Inception
# weights expect another normalisation, which weights.py folds into the first layer, so no transform is needed here.
_OPTIONS: dict[str, dict[str, bool | float]] = {
    "inception_v3": {"aux_logits": False, "transform_input": False, "init_weights": True},
    "efficientnet_b0": {"stochastic_depth_prob": 0.0},
}

_NOT_TRUNK = {"avgpool", "dropout", "fc", "classifier"}


class ChannelDropout(nn.Module):
    """Dropout of whole channels whose mask can be given: z = x * mask, mask in {0, 1 / (1 - p)} (arXiv 1411.4280).

    A mask that is given is used in any mode: training gives one a slot, and Monte Carlo passes need no `train()`, so that
    BatchNorm stays as it is. Without one, a layer in training mode draws a mask for each image from torch's generator,
    and a layer in eval mode is the identity. It adds nothing to the state dict.

    Args:
        p: probability that a channel is dropped.
        num_channels: channels C of its input.
    """

    def __init__(self, p: float, num_channels: int) -> None:
        """Start without a mask."""
        super().__init__()
        self.p = p
        self.num_channels = num_channels
        self.mask: Tensor | None = None
        """[C], or [B, C] for a mask per image; already scaled by 1 / (1 - p)."""

    def forward(self, x: Tensor) -> Tensor:
        """Drop channels of x, [B, C, h, w] or pooled [B, C]; same shape and dtype."""
        mask = self.mask
        if mask is None:
            if not self.training or self.p == 0:
                return x
            mask = F.dropout(x.new_ones(x.shape[:2]), self.p)
        mask = mask.to(x.dtype)
        return x * (mask[..., None, None] if x.ndim == 4 else mask)

    def extra_repr(self) -> str:
        """Describe it in `print(net)`."""
        return f"p={self.p}, num_channels={self.num_channels}"


class PneumoniaNet(nn.Module):
    """One logit for pneumonia from feature maps, global average pooling, dropout and a linear layer.

    Every architecture has this head, whatever classifier torchvision gives it (VGG-16 loses its three linear layers,
    Inception its auxiliary output). The trunk is cut in two at the same place for both dropout sites, so weights fit
    either. `tail` is what a Monte Carlo pass has to repeat when the dropout is there: for ResNets the blocks of layer4
    after the first, each behind a ChannelDropout; denseblock4 of DenseNet-121; from the last convolution of VGG-16;
    Mixed_7c of Inception v3; the last 1 x 1 convolution of EfficientNet-B0, whose stochastic depth is off.

    Weights are torchvision's random defaults; `build_model` loads others.

    Attributes:
        config: what it was built from.
        prefix: everything before the first layer that can be stochastic.
        tail: the rest of the trunk, to the feature maps after their last activation (and pooling, in VGG-16).
        dropout: active at site `head`, else of rate 0.
        classifier: Linear(K, 1).
    """

    def __init__(self, config: ModelConfig) -> None:
        """Build the layers with fresh weights, drawn from torch's global generator."""
        super().__init__()
        self.config = config
        layout = _LAYOUTS[config.arch]
        channels = dict(layout.dropouts)
        tail_rate = config.dropout if config.dropout_site == "tail" else 0.0
        parts: tuple[list[tuple[str, nn.Module]], list[tuple[str, nn.Module]]] = ([], [])
        frozen: list[str] = []
        in_tail = False
        trains = config.freeze == "none"
        for path, module in _trunk_steps(config, layout.unpack):
            trains = trains or (config.freeze == "early" and path == layout.last_stage)
            if path in channels:
                in_tail = True
                parts[1].append((f"{path}_dropout", ChannelDropout(tail_rate, channels[path])))
            parts[in_tail].append((path, module))
            if not trains:
                frozen.append(f"{'tail' if in_tail else 'prefix'}.{path}")
        self.prefix: nn.Module = _nested(parts[0])
        self.tail: nn.Module = _nested(parts[1])
        head_rate = config.dropout if config.dropout_site == "head" else 0.0
        self.dropout = ChannelDropout(head_rate, layout.num_maps)
        self.classifier = nn.Linear(layout.num_maps, 1)
        # The spread of nn.Linear's own default; no bias, so that the first logits favour neither class.
        nn.init.normal_(self.classifier.weight, std=(3 * layout.num_maps) ** -0.5)
        nn.init.zeros_(self.classifier.bias)
        self._frozen = tuple(frozen)
        for path in self._frozen:
            self.get_submodule(path).requires_grad_(False)
        self.train()

    def feature_maps(self, x: Tensor) -> Tensor:
        """Return the maps A that the head averages.

        Args:
            x: float32 [B, 3, H, W], ImageNet-normalised (`Preprocessing.normalise`).

        Returns:
            [B, K, h, w].
        """
        return self.tail(self.prefix(x))

    def head(self, maps: Tensor) -> Tensor:
        """Return the logit [B] of feature maps [B, K, h, w]."""
        return self.classifier(self.dropout(maps.mean((2, 3)))).squeeze(1)

    def head_with_map(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logit of feature maps, and the map of which it is the sum, both under the same dropout.

        Args:
            maps: A [B, K, h, w].

        Returns:
            The logit [B] of `head`; and `sum_k w_k z_k A_k / (h w)` with z the dropout's scaled mask, float32 [B, h, w],
            which sums to the logit without the bias.
        """
        scale = self.dropout(maps.new_ones(maps.shape[:2]))
        logit = self.classifier(maps.mean((2, 3)) * scale).squeeze(1)
        return logit, signed_maps(maps, (self.classifier.weight * scale)[:, None])[:, 0]

    def forward(self, x: Tensor, with_map: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Return the logit for pneumonia.

        Args:
            x: float32 [B, 3, H, W], ImageNet-normalised.
            with_map: also return the signed map, so that a loss on it goes through wrappers of the network.

        Returns:
            The logit [B]; with the map, what `head_with_map` returns.
        """
        maps = self.feature_maps(x)
        return self.head_with_map(maps) if with_map else self.head(maps)

    def dropouts(self) -> list[ChannelDropout]:
        """Return all channel dropouts in the order in which they run; those of the other site have rate 0."""
        return [*self.tail_dropouts(), self.dropout]

    def tail_dropouts(self) -> list[ChannelDropout]:
        """Return the channel dropouts of the tail in the order in which they run (of rate 0 at site `head`)."""
        return [module for module in self.tail.modules() if isinstance(module, ChannelDropout)]

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode, except frozen layers: their BatchNorm statistics must not drift.

        Dropout is switched in any case: a network is explained with the dropout that it was trained with.
        """
        super().train(mode)
        for path in self._frozen:
            self.get_submodule(path).eval()
        return self


def build_model(config: ModelConfig) -> PneumoniaNet:
    """Build a network and load the weights that the config names.

    The classifier is freshly initialised unless the file is a bundle's; call `torch.manual_seed` before for
    reproducible weights.

    Raises:
        ModelError: if weights cannot be downloaded, read or trusted, or belong to another architecture.
    """
    net = PneumoniaNet(config)
    if config.weights != "none":
        load_weights(net, config.arch, config.weights)
    return net


def restored(config: ModelConfig, weights: Mapping[str, NDArray[Any]], device: torch.device) -> PneumoniaNet:
    """Return a network with ready weights for inference: in eval mode, channels last, without gradients.

    Args:
        config: of the network.
        weights: its state dict as arrays, which are copied: memory of an object store is read-only, and torch's is not.
        device: where it runs.
    """
    with torch.device("meta"):
        net = PneumoniaNet(config)
    net.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in weights.items()}, assign=True)
    return net.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)


def map_size(config: ModelConfig, image_size: int) -> tuple[int, int]:
    """Return rows and columns (h, w) of the maps of a network for square images of `image_size` pixels."""
    with torch.device("meta"):
        maps = PneumoniaNet(config).eval().feature_maps(torch.empty(1, 3, image_size, image_size))
    return maps.shape[2], maps.shape[3]


def _trunk_steps(config: ModelConfig, unpack: str | None) -> Iterator[tuple[str, nn.Module]]:
    """Yield the trunk's modules in the order in which they run, with torchvision's names."""
    import torchvision  # imports torch's compiler, 2 s; processes that only decode have no network

    source = torchvision.models.get_model(config.arch, weights=None, **_OPTIONS.get(config.arch, {}))
    if config.output_stride < 32:
        stages = ["layer4"] if config.output_stride == 16 else ["layer3", "layer4"]
        _dilate([source.get_submodule(stage) for stage in stages])
    for name, child in source.named_children():
        if name == unpack:
            yield from ((f"{name}.{inner}", module) for inner, module in child.named_children())
        elif name not in _NOT_TRUNK:
            yield name, child
    if config.arch == "densenet121":
        yield "relu", nn.ReLU(inplace=True)  # torchvision has it in forward() only


def _dilate(stages: Iterable[nn.Module]) -> None:
    """Take the strides out of the last stages of a ResNet, and spread every later convolution by as much.

    The network then computes the same function on a finer grid: every second row and column of its maps are the maps
    that it had before ("algorithme a trous", Holschneider et al. 1989; Chen et al. 2017, arXiv 1706.05587). torchvision's
    `replace_stride_with_dilation` is the same rule, but knows no basic blocks.
    """
    dilation = 1
    for stage in stages:
        stride = 1
        # In the order in which they run, but for the shortcut, whose kernel of one pixel needs no dilation.
        for convolution in (module for module in stage.modules() if isinstance(module, nn.Conv2d)):
            if convolution.kernel_size != (1, 1):
                convolution.dilation = convolution.padding = (dilation * stride, dilation * stride)
            stride = max(stride, convolution.stride[0])
            convolution.stride = (1, 1)
        dilation *= stride


def _nested(steps: Iterable[tuple[str, nn.Module]]) -> nn.Sequential:
    """Chain modules under their dotted names, so that state dict keys stay torchvision's after the part's name."""
    chain = nn.Sequential()
    for path, module in steps:
        parent, _, name = path.rpartition(".")
        if not parent:
            chain.add_module(name, module)
            continue
        if parent not in dict(chain.named_children()):
            chain.add_module(parent, nn.Sequential())
        group = chain.get_submodule(parent)
        group.add_module(name, module)
    return chain
