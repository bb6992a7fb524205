"""Fused maps: the evidence of each cell of the last stage, divided among the finer cells of the stage before.

The last stage knows of which class a cell speaks, but its cells are coarse; earlier stages have finer cells and know no
class (LayerCAM, Jiang et al. 2021, doi 10.1109/TIP.2021.3089943, fuses stages for this reason). With S_c the signed map of the
last stage, U_fc the bilinear upsampling from its cells c to finer cells f, and E_f = sum_k F_kf^2 the activation there
(activation-based attention, Zagoruyko and Komodakis 2017, arXiv 1612.03928),

    fused_f = sum_c P_fc S_c,    P_fc = U_fc E_f / sum_f' U_f'c E_f'

Every column of P sums to 1: as in layer-wise relevance propagation (Bach et al. 2015, doi 10.1371/journal.pone.0130140)
evidence is divided, and none is added or lost, so the fused map still sums to the logit. But where within its neighbourhood
a cell's evidence lies is no longer exact: E is no derivative of the logit, and is the same for both classes.

The stage before lies ahead of all dropout, so P is the same in all passes, and fusing is linear: samples, covariances and
closed forms are those of the last stage times P.
"""

import contextlib
from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from pneumo_ray.errors import ModelError
from pneumo_ray.explain.zones import upsampling
from pneumo_ray.model.config import ModelConfig
from pneumo_ray.model.network import PneumoniaNet

_LEAST = 1e-6
"""Added to activations as a share of the largest, so that cells without any still divide what is theirs."""


@lru_cache(maxsize=64)
def finer_step(config: ModelConfig, image_size: int) -> tuple[str, tuple[int, int]]:
    """Return the last step before the last stage whose output is finer than the maps: its module's name and its grid.

    Args:
        config: of the network.
        image_size: rows and columns of its images, in pixels.

    Returns:
        The name in the network, and rows and columns (h, w) of what the module returns.

    Raises:
        ModelError: if no step is finer.
    """
    last_axis = config.trunk.channels_last
    sizes: dict[str, tuple[int, int]] = {}
    with torch.device("meta"):
        net = PneumoniaNet(config).eval()
        with contextlib.ExitStack() as hooks:
            for name in net.early_steps:

                def record(_: object, __: object, output: Tensor, name: str = name) -> None:
                    sizes[name] = (
                        (output.shape[1], output.shape[2]) if last_axis else (output.shape[2], output.shape[3])
                    )

                hooks.callback(net.get_submodule(name).register_forward_hook(record).remove)
            maps = net.feature_maps(torch.empty(1, 3, image_size, image_size))
    for name in reversed(net.early_steps):
        if sizes[name][0] > maps.shape[2] and sizes[name][1] > maps.shape[3]:
            return name, sizes[name]
    raise ModelError(
        f"{config.arch} has no stage before its last one with maps finer than {maps.shape[2]} x {maps.shape[3]} at {image_size} px; "
        "leave --maps fused out"
    )


@contextlib.contextmanager
def watched(net: PneumoniaNet, image_size: int) -> Iterator[list[Tensor]]:
    """Keep the activations E of the stage before, float32 [B, h', w'] of each forward pass, while the network runs.

    The network is left as it was.

    Args:
        net: the network.
        image_size: rows and columns of its images, in pixels.

    Raises:
        ModelError: if no stage before is finer than its maps.
    """
    channels = 3 if net.config.trunk.channels_last else 1
    found: list[Tensor] = []

    def keep(_: object, __: object, output: Tensor) -> None:
        found.append(output.float().square().sum(channels))  # now: later layers may work in place

    handle = net.get_submodule(finer_step(net.config, image_size)[0]).register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def shares(energy: Tensor, map_size: Sequence[int]) -> Tensor:
    """Return the matrix P that divides coarse cells among finer ones.

    Args:
        energy: E, not negative, [B, h', w'].
        map_size: rows and columns (h, w) of the coarse map, at most h' and w'.

    Returns:
        float32 [B, h' w', h w]; columns sum to 1.
    """
    rows, columns = upsampling((map_size[0], map_size[1]), (energy.shape[1], energy.shape[2]))
    weights = torch.kron(torch.from_numpy(rows), torch.from_numpy(columns)).float().to(energy.device)
    flat = energy.float().flatten(1)
    largest = flat.amax(1, keepdim=True)
    flat = torch.where(largest > 0, flat / largest, 0.0) + _LEAST
    parts = weights * flat[:, :, None]
    return parts / parts.sum(1, keepdim=True)
