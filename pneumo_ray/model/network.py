"""The classifier: trunk -> feature maps -> global average pool -> dropout -> linear -> one logit.

With this one shape for every architecture, Grad-CAM weights (arXiv 1610.02391) are the weights of the linear layer,
so the maps of arXiv 2507.18647 need no backward pass. The trunks (`model/trunks.py`) lose their own classifiers.
"""

from collections.abc import Mapping
from typing import Any, Self

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pneumo_ray.model.config import ModelConfig
from pneumo_ray.model.dropout import ChannelDropout, KeyDropout, MaskedDropout
from pneumo_ray.model.signed_map import signed_maps
from pneumo_ray.model.steps import nested, trunk_steps
from pneumo_ray.model.weights import load_weights


class PneumoniaNet(nn.Module):
    """One logit for pneumonia from feature maps, global average pooling, dropout and a linear layer.

    Every architecture has this head, whatever classifier torchvision gives it (VGG-16 loses its three linear layers,
    Inception its auxiliary output). The trunk is cut in two at the same place for all dropout sites, so weights fit
    any. `tail` is what a Monte Carlo pass has to repeat when the dropout is there: for ResNets the blocks of the last stage
    after the first, each behind a ChannelDropout; denseblock4 of DenseNet-121; from the last convolution of VGG-16;
    Mixed_7c of Inception v3; the last 1 x 1 convolution of EfficientNet-B0; the last stage of ConvNeXt and Swin; the last
    two attention layers of MaxViT. Stochastic depth is off everywhere.

    Weights are torchvision's random defaults; `build_model` loads others.

    Attributes:
        config: what it was built from.
        prefix: everything before the first layer that can be stochastic.
        tail: the rest of the trunk, to the feature maps after their last activation (pooling in VGG-16, LayerNorm of each
            position in ConvNeXt, Swin and MaxViT).
        dropout: active at site `head`, else of rate 0.
        classifier: Linear(K, 1).
        early_steps: names of the modules before the last stage that run one after the other.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Build the layers with fresh weights, drawn from torch's global generator."""
        super().__init__()
        self.config = config
        trunk = config.trunk
        channels = dict(trunk.dropouts)
        tail_rate = config.dropout if config.dropout_site == "tail" else 0.0
        parts: tuple[list[tuple[str, nn.Module]], list[tuple[str, nn.Module]]] = ([], [])
        frozen: list[str] = []
        early: list[str] = []
        in_tail = in_last = False
        trains = config.freeze == "none"
        for path, module in trunk_steps(config.arch, trunk, config.output_stride):
            in_last = in_last or path == trunk.last_stage
            trains = trains or (config.freeze == "early" and in_last)
            if path in channels:
                in_tail = True
                dropout = ChannelDropout(tail_rate, channels[path], channels_last=trunk.channels_last)
                parts[1].append((f"{path}_dropout", dropout))
            parts[in_tail].append((path, module))
            if not (in_tail or in_last):
                early.append(f"prefix.{path}")
            if not trains:
                frozen.append(f"{'tail' if in_tail else 'prefix'}.{path}")
        self.prefix: nn.Module = nested(parts[0])
        self.tail: nn.Module = nested(parts[1])
        if config.dropout_site == "keys":
            for layer in self.tail_dropouts():
                layer.p = config.dropout
        head_rate = config.dropout if config.dropout_site == "head" else 0.0
        self.dropout = ChannelDropout(head_rate, trunk.num_maps)
        self.classifier = nn.Linear(trunk.num_maps, 1)
        # The spread of nn.Linear's own default; no bias, so that the first logits favour neither class.
        nn.init.normal_(self.classifier.weight, std=(3 * trunk.num_maps) ** -0.5)
        nn.init.zeros_(self.classifier.bias)
        self.early_steps = tuple(early)
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

    def dropouts(self) -> list[MaskedDropout]:
        """Return all dropouts that can be active at the config's site, in the order in which they run, and the head's."""
        return [*self.tail_dropouts(), self.dropout]

    def tail_dropouts(self) -> list[MaskedDropout]:
        """Return the dropouts of the tail in the order in which they run: of keys at site `keys`, else of channels.

        At site `head` they have rate 0.
        """
        kind = KeyDropout if self.config.dropout_site == "keys" else ChannelDropout
        return [module for module in self.tail.modules() if isinstance(module, kind)]

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
        load_weights(net, config)
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
