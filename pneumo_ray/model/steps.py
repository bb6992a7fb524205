"""A trunk as steps: a network's modules in the order in which they run, without its classifier."""

from collections.abc import Iterable, Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from pneumo_ray.model.attention import replace_attention
from pneumo_ray.model.trunks import Trunk

MOMENTUM = 0.1
"""Share of a batch in BatchNorm's running statistics, PyTorch's default. MaxViT was published with 0.01 for hundreds of thousands
of steps: after a hundred the statistics would still be half those of the start, and validation would be chance."""


class PositionNorm(nn.LayerNorm):
    """LayerNorm over the channels of each position of [B, C, h, w]."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x with mean 0 and variance 1 over channels, then scaled and shifted; same shape."""
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


def trunk_steps(arch: str, trunk: Trunk, output_stride: int) -> Iterator[tuple[str, nn.Module]]:
    """Yield the trunk's modules in the order in which they run, with the network's own names.

    All randomness of the network is switched off: channel and key dropout is the only one that Monte Carlo passes have to
    reproduce.

    Args:
        arch: its name.
        trunk: its cuts.
        output_stride: pixels of the input for one cell of the maps.
    """
    import torchvision  # imports torch's compiler, 2 s; processes that only decode have no network

    if trunk.build is not None:
        source = trunk.build()
    else:
        source = torchvision.models.get_model(arch, weights=None, **trunk.options)
        for module in source.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = MOMENTUM
    for module in source.modules():
        if isinstance(module, (torchvision.ops.StochasticDepth, nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
    replace_attention(source)
    halvings = (trunk.stride // output_stride).bit_length() - 1
    dilate([source.get_submodule(stage) for stage in trunk.dilated[len(trunk.dilated) - halvings :]])
    for name, child in source.named_children():
        if name not in trunk.ends:
            yield from _unpacked(name, child, trunk.unpack)
    if arch == "densenet121":
        yield "relu", nn.ReLU(inplace=True)  # torchvision has it in forward() only
    if trunk.pooled_norm is not None:
        published = source.get_submodule(trunk.pooled_norm)
        assert isinstance(published, nn.LayerNorm), f"{trunk.pooled_norm} of {arch} is no LayerNorm"
        yield "norm", PositionNorm(published.normalized_shape, published.eps)


def _unpacked(path: str, module: nn.Module, unpack: tuple[str, ...]) -> Iterator[tuple[str, nn.Module]]:
    if path not in unpack:
        yield path, module
        return
    for name, child in module.named_children():
        yield from _unpacked(f"{path}.{name}", child, unpack)


def dilate(stages: Iterable[nn.Module]) -> None:
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


def nested(steps: Iterable[tuple[str, nn.Module]]) -> nn.Sequential:
    """Chain modules under their dotted names, so that state dict keys stay those of the network after the part's name."""
    chain = nn.Sequential()
    for path, module in steps:
        group = chain
        *parents, name = path.split(".")
        for parent in parents:
            if parent not in dict(group.named_children()):
                group.add_module(parent, nn.Sequential())
            group = group.get_submodule(parent)  # type: ignore[assignment]
        group.add_module(name, module)
    return chain
