"""Do the maps show what the network uses? Measures from the literature, one function each.

Maps are coarse [h, w] and are upsampled bilinearly to the image, as everywhere here.
"""

import copy
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from pneumo_ray.explain.cam import signed_maps
from pneumo_ray.explain.tail import eval_mode
from pneumo_ray.model.network import PneumoniaNet


@torch.inference_mode()
def insertion_deletion(
    score: Callable[[Tensor], Tensor], x: Tensor, maps: Tensor, *, steps: int = 20, blur_sigma: float = 10.0
) -> tuple[Tensor, Tensor]:
    """Return the areas under the insertion and the deletion curve (Petsiuk et al. 2018, arXiv 1806.07421).

    Pixels go from the most to the least important between the image and its blurred self: blurring takes the evidence
    away without the sharp edges of a grey patch. A faithful map has a high insertion and a low deletion area.

    Args:
        score: from images [n, 3, H, W] to the score of the explained class, [n].
        x: [B, 3, H, W], normalised.
        maps: [B, h, w], after ReLU.
        steps: points of the curves besides the first.
        blur_sigma: of the baseline, in pixels.

    Returns:
        Insertion and deletion, float32 [B] each, by the trapezoidal rule over the share of pixels changed.
    """
    size = x.shape[-2:]
    kernel = min(2 * int(3 * blur_sigma) + 1, (min(size) - 1) // 2 * 2 + 1)
    blurred = gaussian_blur(x, [kernel, kernel], [blur_sigma, blur_sigma])
    fine = F.interpolate(maps[:, None].float(), size=tuple(size), mode="bilinear")[:, 0].flatten(1)
    rank = fine.argsort(dim=1, descending=True, stable=True).argsort(dim=1).unflatten(1, tuple(size))[:, None]
    curves: tuple[list[Tensor], list[Tensor]] = ([], [])
    for step in range(steps + 1):
        important = rank < round(step / steps * size[0] * size[1])
        curves[0].append(score(torch.where(important, x, blurred)).float())
        curves[1].append(score(torch.where(important, blurred, x)).float())
    insertion, deletion = (torch.trapezoid(torch.stack(curve, 1), dx=1 / steps, dim=1) for curve in curves)
    return insertion, deletion


def parameter_randomisation(net: PneumoniaNet, x: Tensor, *, seed: int = 0) -> list[tuple[str, float]]:
    """Compare maps with those of networks whose layers are random from the top down (Adebayo et al. 2018, arXiv 1810.03292).

    A map that stays the same depends on the image and not on the network. The explained class stays pneumonia, and
    maps are compared before ReLU, where a blank map does not count as similar. The network is not changed.

    Args:
        net: the network.
        x: [B, 3, H, W], normalised.
        seed: of the random weights.

    Returns:
        For each stage, from none to all of the network randomised: the name of the last layer that was, and the mean
        Spearman correlation with the maps of the true network over the images.
    """
    original = _signed(net, x)
    randomised = copy.deepcopy(net).eval()
    layers = [
        (name, module)
        for name, module in randomised.named_modules()
        if not list(module.children()) and hasattr(module, "reset_parameters")
    ]
    out = [("nothing", 1.0)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stage = ""
        for position, (name, module) in enumerate(reversed(layers)):
            module.reset_parameters()  # of BatchNorm also its running statistics
            stage = name
            ahead = layers[len(layers) - position - 2][0] if position + 1 < len(layers) else ""
            if _block(ahead) != _block(name):
                out.append((stage, _rank_correlation(original, _signed(randomised, x))))
    return out


def _block(name: str) -> str:
    """Return the part of a network that a layer belongs to: `prefix.layer3` of `prefix.layer3.0.conv1`."""
    return ".".join(name.split(".")[:2])


def _signed(net: PneumoniaNet, x: Tensor) -> NDArray[np.float32]:
    with torch.inference_mode(), eval_mode(net):
        return signed_maps(net.feature_maps(x), net.classifier.weight).flatten(1).cpu().numpy()


def _rank_correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Return the mean Spearman correlation of the rows; a constant row correlates with nothing."""
    values = [
        spearmanr(left, right).statistic if np.ptp(left) and np.ptp(right) else 0.0
        for left, right in zip(a, b, strict=True)
    ]
    return float(np.mean(values))
