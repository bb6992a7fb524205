"""Window attention of Swin (arXiv 2103.14030) and MaxViT (arXiv 2204.01697), whose keys can be dropped.

The modules take torchvision's place under its names of weights, and compute the same. Two things differ: keys can be
dropped before the softmax (`KeyDropout`), and MaxViT takes images of any size, where torchvision's is built for one whose
maps are multiples of the window. Maps are padded, and padding is hidden from every query.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pneumo_ray.model.dropout import KeyDropout


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Return `softmax(q k' scale + bias) v` within windows.

    Args:
        q: queries [B, W, P, H, D] of W windows of P positions and H heads.
        k: keys, likewise.
        v: values, likewise.
        bias: [1 or B, W H, P, P], windows before heads.
        scale: of the products.

    Returns:
        [B, W, P, H D].
    """
    batch, windows, size, heads, width = q.shape
    # Windows and heads form one axis, so that a bias which all images share is never repeated for them.
    q, k, v = (part.transpose(2, 3).reshape(batch, windows * heads, size, width) for part in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, bias.to(q.dtype), scale=scale)
    return out.reshape(batch, windows, heads, size, width).transpose(2, 3).flatten(3)


def windows_of(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut [B, h, w, C], whose h and w are multiples of the size, into windows [B, W, P, C], row by row."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // size[0], size[0], width // size[1], size[1], channels)
    return x.transpose(2, 3).reshape(batch, -1, size[0] * size[1], channels)


def from_windows(x: Tensor, size: tuple[int, int], height: int, width: int) -> Tensor:
    """Put windows [B, W, P, C] together again, [B, h, w, C]."""
    x = x.view(len(x), height // size[0], width // size[1], *size, x.shape[-1])
    return x.transpose(2, 3).reshape(len(x), height, width, -1)


def _hidden(seen: Tensor) -> Tensor:
    """Return a bias float32 of 0 where a key is seen and minus infinity elsewhere."""
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -torch.inf)


class ShiftedWindows(nn.Module):
    """Attention within windows that may be shifted: a block's `attn` in Swin.

    Args:
        source: torchvision's `ShiftedWindowAttention`, whose weights it takes over.
    """

    def __init__(self, source: nn.Module) -> None:
        """Take over the weights; no key is dropped."""
        super().__init__()
        self.size: tuple[int, int] = tuple(source.window_size)  # type: ignore[arg-type]
        self.shift: tuple[int, int] = tuple(source.shift_size)  # type: ignore[arg-type]
        self.num_heads: int = source.num_heads  # type: ignore[assignment]
        self.qkv, self.proj = source.get_submodule("qkv"), source.get_submodule("proj")
        self.relative_position_bias_table = source.get_parameter("relative_position_bias_table")
        self.relative_position_index: Tensor
        self.register_buffer("relative_position_index", source.get_buffer("relative_position_index"))
        self.keys = KeyDropout(0.0, self.size[0] * self.size[1])

    def forward(self, x: Tensor) -> Tensor:
        """Attend within windows of x [B, h, w, C]; same shape. Padding takes part, as in torchvision."""
        batch, height, width, channels = x.shape
        padded = [-(-side // size) * size for side, size in zip((height, width), self.size, strict=True)]
        x = F.pad(x, (0, 0, 0, padded[1] - width, 0, padded[0] - height))
        shift = [0 if size >= side else by for size, side, by in zip(self.size, padded, self.shift, strict=True)]
        if any(shift):
            x = x.roll((-shift[0], -shift[1]), (1, 2))
        cut = windows_of(x, self.size)
        qkv = self.qkv(cut).unflatten(-1, (3, self.num_heads, -1))
        bias = self.keys(self._bias(padded, shift, cut.shape[1]), batch)
        q, k, v = qkv.unbind(3)
        out = attend(q, k, v, bias, (channels // self.num_heads) ** -0.5)
        out = from_windows(self.proj(out), self.size, padded[0], padded[1])
        if any(shift):
            out = out.roll((shift[0], shift[1]), (1, 2))
        return out[:, :height, :width].contiguous()

    def _bias(self, padded: list[int], shift: list[int], num_windows: int) -> Tensor:
        """Return the bias of positions [1, W H, P, P]; between regions that only the shift made neighbours it is -inf."""
        size = self.keys.num_keys
        bias = (
            self.relative_position_bias_table[self.relative_position_index].view(1, size, size, -1).permute(0, 3, 1, 2)
        )
        if any(shift):
            regions = [_regions(*sides, bias.device) for sides in zip(padded, self.size, shift, strict=True)]
            region = windows_of((regions[0][:, None] * 3 + regions[1])[None, :, :, None], self.size)
            bias = bias[:, None] + _hidden(region == region.mT)[:, :, None]
            return bias.flatten(1, 2)
        return bias.repeat(1, num_windows, 1, 1)


def _regions(side: int, size: int, shift: int, device: torch.device) -> Tensor:
    """Return the number of the region of each row (or column) after the shift: 0, 1 or 2."""
    at = torch.arange(side, device=device)
    if shift == 0:
        return torch.zeros_like(at)
    return (at >= side - size).long() + (at >= side - shift).long()


class PartitionAttention(nn.Module):
    """Attention within windows or across a grid, then an MLP: MaxViT's `window_attention` and `grid_attention`.

    A window is P neighbours; a grid takes P positions at equal distances over the whole map.

    Args:
        source: torchvision's `PartitionAttentionLayer`, whose weights it takes over.
    """

    def __init__(self, source: nn.Module) -> None:
        """Take over the weights; no key is dropped."""
        super().__init__()
        attention = source.get_submodule("attn_layer.1")
        side: int = attention.size  # type: ignore[assignment]
        self.size = (side, side)
        self.in_grid = source.partition_type == "grid"
        self.attn_layer, self.mlp_layer = source.get_submodule("attn_layer"), source.get_submodule("mlp_layer")
        self.num_heads: int = attention.n_heads  # type: ignore[assignment]
        self.scale: float = attention.scale_factor  # type: ignore[assignment]
        self.keys = KeyDropout(0.0, side * side)

    def forward(self, x: Tensor) -> Tensor:
        """Attend, and apply the MLP, in x [B, C, h, w]; same shape."""
        batch, _, height, width = x.shape
        padded = [-(-side // size) * size for side, size in zip((height, width), self.size, strict=True)]
        x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, padded[1] - width, 0, padded[0] - height))
        cut = self._cut(x)
        norm, attention = self.attn_layer.get_submodule("0"), self.attn_layer.get_submodule("1")
        qkv = attention.get_submodule("to_qkv")(norm(cut)).unflatten(-1, (3, self.num_heads, -1))
        bias = attention.get_relative_positional_bias().repeat(1, cut.shape[1], 1, 1)  # type: ignore[operator]
        if padded != [height, width]:
            seen = F.pad(torch.ones(1, height, width, 1, device=x.device, dtype=torch.bool),
                         (0, 0, 0, padded[1] - width, 0, padded[0] - height))  # fmt: skip
            seen = self._cut(seen).mT[:, :, None]  # [1, W, 1, 1, P]: of keys
            bias = (bias.unflatten(1, (-1, self.num_heads)) + _hidden(seen)).flatten(1, 2)
        q, k, v = qkv.unbind(3)
        out = attend(q, k, v, self.keys(bias, batch), self.scale)
        cut = cut + attention.get_submodule("merge")(out)
        cut = cut + self.mlp_layer(cut)
        return self._joined(cut, padded)[:, :height, :width].permute(0, 3, 1, 2)

    def _cut(self, x: Tensor) -> Tensor:
        """Return the partitions [B, W, P, C] of a padded map [B, h, w, C]."""
        if not self.in_grid:
            return windows_of(x, self.size)
        return windows_of(x, (x.shape[1] // self.size[0], x.shape[2] // self.size[1])).transpose(1, 2)

    def _joined(self, cut: Tensor, padded: list[int]) -> Tensor:
        if not self.in_grid:
            return from_windows(cut, self.size, padded[0], padded[1])
        distance = (padded[0] // self.size[0], padded[1] // self.size[1])
        return from_windows(cut.transpose(1, 2), distance, padded[0], padded[1])


def replace_attention(net: nn.Module) -> None:
    """Put the modules of this file in the place of torchvision's, in a network of torchvision."""
    from torchvision.models.maxvit import PartitionAttentionLayer
    from torchvision.models.swin_transformer import ShiftedWindowAttention

    for path, module in list(net.named_modules()):
        new: nn.Module
        if type(module) is ShiftedWindowAttention:
            new = ShiftedWindows(module)
        elif type(module) is PartitionAttentionLayer:
            new = PartitionAttention(module)
        else:
            continue
        parent, _, name = path.rpartition(".")
        setattr(net.get_submodule(parent), name, new)
