"""Do the maps show what the network uses, and where the disease is? Measures from the literature, one function each.

Maps are coarse [h, w] and are upsampled bilinearly to the picture, as everywhere here. Boxes are half-open in pixels.
"""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from pneumo_ray.explain.bayes import eval_mode
from pneumo_ray.explain.cam import signed_maps
from pneumo_ray.explain.zones import Box
from pneumo_ray.model.network import PneumoniaNet

Maps = NDArray[np.float32]


def upsample(maps: Maps, image_size: tuple[int, int]) -> Maps:
    """Return maps [n, h, w] at the size of the picture, float32 [n, H, W]."""
    return F.interpolate(torch.from_numpy(np.ascontiguousarray(maps))[:, None], size=image_size, mode="bilinear")[
        :, 0
    ].numpy()


def inside_mask(boxes: Sequence[Box], image_size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return [H, W], true inside any of the boxes; what lies outside the picture is cut off."""
    mask = np.zeros(image_size, bool)
    for x0, y0, x1, y1 in boxes:
        mask[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
    return mask


def pointing_game(maps: Maps, boxes: Sequence[Sequence[Box]], image_size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return whether the maximum of each map lies in a true box (Zhang et al. 2016, arXiv 1608.00507).

    The maximum is the centre of the largest cell of the native map. Bilinear upsampling has its maximum there too, but
    on a plateau: two pixels on each side of an inner cell's centre, half a cell up to the image's edge, so that its first
    pixel favours one side. Of several equal largest cells every centre must lie in a box: a flat map points nowhere.

    A blank map is a miss, and so is an image without a box. A centre on the edge of a box is inside it; no other
    tolerance is added. Mirroring or transposing map and boxes changes no verdict.

    Args:
        maps: [n, h, w], after ReLU.
        boxes: true boxes of each image, in its pixels.
        image_size: rows and columns of the images.

    Returns:
        bool [n].
    """
    hits = np.zeros(len(maps), bool)
    height, width = image_size
    rows, columns = maps.shape[1:]
    for number, (coarse, true) in enumerate(zip(maps, boxes, strict=True)):
        if coarse.max() > 0:
            row, column = np.nonzero(coarse == coarse.max())
            # Twice the centre times the number of cells, and the edges alike: integers, in which equality is exact.
            y, x = (2 * row + 1) * height, (2 * column + 1) * width
            inside = np.zeros(len(row), bool)
            for x0, y0, x1, y1 in true:
                if x0 < x1 and y0 < y1:
                    across = (2 * columns * x0 <= x) & (x <= 2 * columns * x1)
                    inside |= across & (2 * rows * y0 <= y) & (y <= 2 * rows * y1)
            hits[number] = inside.all()
    return hits


def energy_in_box(maps: Maps, boxes: Sequence[Sequence[Box]], image_size: tuple[int, int]) -> NDArray[np.float64]:
    """Return the share of each map that lies in its true boxes (Wang et al. 2020, arXiv 1910.01279); NaN for a blank map."""
    shares = np.full(len(maps), np.nan)
    for number, (fine, true) in enumerate(zip(upsample(maps, image_size), boxes, strict=True)):
        if (total := float(fine.sum(dtype=np.float64))) > 0:
            shares[number] = float(fine[inside_mask(true, image_size)].sum(dtype=np.float64)) / total
    return shares


def overlap(
    maps: Maps, boxes: Sequence[Sequence[Box]], image_size: tuple[int, int], threshold: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return IoU and Dice of `map >= threshold * its maximum` with the true boxes, each [n]; 0 for a blank map."""
    iou, dice = np.zeros(len(maps)), np.zeros(len(maps))
    for number, (fine, true) in enumerate(zip(upsample(maps, image_size), boxes, strict=True)):
        marked = (fine >= threshold * fine.max()) & (fine > 0)
        truth = inside_mask(true, image_size)
        both, either = int((marked & truth).sum()), int((marked | truth).sum())
        iou[number] = both / either if either else 0.0
        dice[number] = 2 * both / (either + both) if either else 0.0
    return iou, dice


def tune_overlap_threshold(maps: Maps, boxes: Sequence[Sequence[Box]], image_size: tuple[int, int]) -> float:
    """Return the threshold, as a share of the maximum, with the best mean IoU. Tune on validation, measure on test."""
    candidates = [step / 20 for step in range(1, 20)]
    means = [float(overlap(maps, boxes, image_size, threshold)[0].mean()) for threshold in candidates]
    return candidates[int(np.argmax(means))]


@torch.inference_mode()
def insertion_deletion(
    score: Callable[[Tensor], Tensor], x: Tensor, maps: Tensor, *, steps: int = 20, blur_sigma: float = 10.0
) -> tuple[Tensor, Tensor]:
    """Return the areas under the insertion and the deletion curve (Petsiuk et al. 2018, arXiv 1806.07421).

    Pixels go from the most to the least important between the picture and its blurred self: blurring takes the evidence
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

    A map that stays the same shows the picture and not the network. The class that is explained stays pneumonia, and
    maps are compared before ReLU, where a blank map cannot pass for a similar one. The network is not changed.

    Args:
        net: the network.
        x: [B, 3, H, W], normalised.
        seed: of the random weights.

    Returns:
        For each stage, from none to all of the network randomised: the name of the last layer that was, and the mean
        Spearman correlation with the maps of the true network over the pictures.
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
