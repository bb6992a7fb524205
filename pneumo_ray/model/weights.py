"""Pretrained weights: torchvision's downloads, and local files that are never executed.

A pickle can run code when it is opened, so `.pth` files are read with torch's restricted unpickler only.
"""

import re
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError

import safetensors.torch
import torch
from torch import Tensor, nn

from pneumo_ray.errors import ModelError
from pneumo_ray.model.config import ModelConfig
from pneumo_ray.model.trunks import Trunk, find_trunk

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's red, green and blue on the scale 0..1, as torchvision uses them."""

# The published DenseNet files predate the ban on dots in module names: `norm.1` is now `norm1`.
_OLD_DENSENET_KEY = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.(\d\..*)$")


def load_weights(net: nn.Module, config: ModelConfig) -> None:
    """Load weights into a PneumoniaNet, in place.

    A torchvision state dict fills the trunk and leaves the classifier as it is; the weights of one of our bundles
    (keys `prefix.*`, `tail.*`, `classifier.*`) fill everything.

    Args:
        net: the network; its keys are torchvision's behind `prefix.` or `tail.`.
        config: what it was built from; `weights` is `imagenet`, or the path of a `.safetensors`, `.pth` or `.pt` file.

    Raises:
        ModelError: if the weights cannot be downloaded, read or trusted, or belong to another architecture.
    """
    arch, weights = config.arch, config.weights
    if weights == "imagenet":
        state, source = _download(arch), f"the ImageNet weights of {arch}"
    else:
        state, source = _read_state_dict(Path(weights)), weights
    from_torchvision = not any(key.startswith("prefix.") for key in state)
    if from_torchvision:
        state = _renamed(state, net, config.trunk)
    _check(state, net, arch, source)
    if from_torchvision and arch == "inception_v3":
        _fold_input_transform(state)
    # Not strict: files from before torch 0.4.1 lack BatchNorm's batch counters, and a trunk has no classifier.
    net.load_state_dict(state, strict=False)


def _download(arch: str) -> dict[str, Tensor]:
    import torchvision  # as in steps.py

    if find_trunk(arch).build is not None:
        raise ModelError(
            f"there are no ImageNet weights of {arch}, which is not torchvision's; give a file with --model.weights FILE or "
            "train from scratch with --model.weights none"
        )
    try:
        return dict(torchvision.models.get_model_weights(arch).DEFAULT.get_state_dict(progress=False, check_hash=True))
    except (OSError, HTTPException, RuntimeError, EOFError, UnpicklingError) as error:
        raise ModelError(
            f"ImageNet weights for {arch} could not be downloaded (no network?); give a local file with "
            "--model.weights FILE or train from scratch with --model.weights none"
        ) from error


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"model.weights {str(path)!r} is not a file; give the path of a file, or imagenet or none")
    if path.suffix not in {".safetensors", ".pth", ".pt"}:
        raise ModelError(f"{path} is not a weights file; give a .safetensors, .pth or .pt file with --model.weights")
    state: object
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ModelError(
            f"{path} holds Python objects other than tensors and was not opened; save only the state dict, "
            "best as .safetensors"
        ) from error
    except Exception as error:  # a damaged file can raise any exception in torch
        raise ModelError(f"{path} cannot be read as weights (damaged or truncated?); copy it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(
            f"{path} is not a state dict of named tensors; save `model.state_dict()` itself, best as .safetensors"
        )
    return dict(state)


def _renamed(state: dict[str, Tensor], net: nn.Module, cuts: Trunk) -> dict[str, Tensor]:
    """Rename torchvision's keys to those of PneumoniaNet and drop what is no part of the trunk; unknown keys are kept for `_check`."""
    pooled_norm, ends = cuts.pooled_norm, tuple(f"{end}." for end in (*cuts.ends, "AuxLogits"))
    if pooled_norm is not None:
        state = {
            f"norm{key.removeprefix(pooled_norm)}" if key.startswith(f"{pooled_norm}.") else key: value
            for key, value in state.items()
        }
    trunk = {_OLD_DENSENET_KEY.sub(r"\1\2", key): value for key, value in state.items()}
    trunk = {key: value for key, value in trunk.items() if not key.startswith(ends)}
    ours = {key.partition(".")[2]: key for key in net.state_dict() if not key.startswith("classifier.")}
    return {ours.get(key, key): value for key, value in trunk.items()}


def _fold_input_transform(state: dict[str, Tensor]) -> None:
    """Make the published Inception weights, trained on x / 0.5 - 1, fit inputs with ImageNet's mean and std.

    torchvision rescales the input at run time (`transform_input`). The first convolution has no padding and is
    followed by BatchNorm, so the same scale and shift go into its weight and its running mean, exactly.
    """
    weight = state["prefix.Conv2d_1a_3x3.conv.weight"]
    running_mean = state["prefix.Conv2d_1a_3x3.bn.running_mean"]
    scale = (torch.tensor(IMAGENET_STD) / 0.5).view(1, 3, 1, 1)
    shift = ((torch.tensor(IMAGENET_MEAN) - 0.5) / 0.5).view(1, 3, 1, 1)
    state["prefix.Conv2d_1a_3x3.conv.weight"] = weight * scale
    state["prefix.Conv2d_1a_3x3.bn.running_mean"] = running_mean - (weight * shift).sum((1, 2, 3))


def _check(state: dict[str, Tensor], net: nn.Module, arch: str, source: str) -> None:
    """Refuse weights of another architecture: a missing, surplus or differently shaped tensor."""
    expected = net.state_dict()
    needed = {key for key in expected if not key.endswith("num_batches_tracked")}
    if not any(key.startswith("classifier.") for key in state):
        needed = {key for key in needed if not key.startswith("classifier.")}
    for key in sorted(needed | state.keys()):
        if key not in state:
            fault = f"{key} is missing"
        elif key not in expected:
            fault = f"{key} is not part of it"
        elif state[key].shape != expected[key].shape:
            fault = f"{key} has shape {list(state[key].shape)}, not {list(expected[key].shape)}"
        else:
            continue
        raise ModelError(
            f"{source} does not fit {arch} ({fault}); name the architecture that it was made for with --model.arch"
        )
