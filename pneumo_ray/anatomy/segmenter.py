"""The lung segmenter as one plain file, and its use: grey images in, masks out, on one thread of a CPU.

The file is safetensors, whose header carries a JSON text: the format, the widths, where the weights come from and a
hash of all of it. Nothing in it is a pickle.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from pneumo_ray import storage
from pneumo_ray.anatomy.inference import InferenceNet, spread
from pneumo_ray.anatomy.lungs import MASK_SIZE
from pneumo_ray.anatomy.network import LungNet
from pneumo_ray.anatomy.segmenter_file import SegmenterFile, read_segmenter_file
from pneumo_ray.errors import ModelError
from pneumo_ray.model.precision import amp_dtype
from pneumo_ray.records import JsonObject

FORMAT = "pneumo_ray.lungs"
FORMAT_VERSION = 1

Array = TypeVar("Array", bound=NDArray[Any])

_BATCH = 32
"""Images in one forward: more do not fit the caches of a core."""


@dataclass(frozen=True)
class LungSegmenter:
    """A trained network that is ready to find lungs. Finding uses as many threads as torch has been given."""

    network: InferenceNet
    """On the CPU, in the type that it is fast with."""
    hash: str
    """sha256 (hex) of the weights and of what is known of them: part of the key of whatever depends on masks."""
    provenance: JsonObject = field(default_factory=dict)
    """On what it was trained, and how well it does."""

    def find(self, images: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Return where the lungs are.

        Args:
            images: uint8 [N, S, S] with S = `MASK_SIZE`: whole images resized to squares (`resize_grey`).

        Returns:
            bool [N, S, S] in the frame of the image, as the network says it; `lungs_of` judges and cleans it.

        Raises:
            ValueError: if the images are not of this type and size.
        """
        return self._of_batches(images, np.empty(images.shape, np.bool_), lambda logits: logits > 0)

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the logits behind `find`, float32 [N, S, S]. Same arguments and errors."""
        return self._of_batches(images, np.empty(images.shape, np.float32), Tensor.float)

    def _of_batches(self, images: NDArray[np.uint8], out: Array, take: Callable[[Tensor], Tensor]) -> Array:
        """Fill `out` with what is taken of the logits of each batch."""
        if images.dtype != np.uint8 or images.shape[1:] != (MASK_SIZE, MASK_SIZE):
            raise ValueError(f"expected uint8 [N, {MASK_SIZE}, {MASK_SIZE}], got {images.dtype} {list(images.shape)}")
        with torch.inference_mode():
            for start in range(0, len(images), _BATCH):
                out[start : start + _BATCH] = spread(take(self.network(images[start : start + _BATCH]))).numpy()
        return out


def save_segmenter(uri: str, network: LungNet, provenance: JsonObject) -> str:
    """Write a segmenter as one file, complete or not at all; the same arguments give the same bytes.

    Args:
        uri: where.
        network: the trained network.
        provenance: plain JSON values.

    Returns:
        Its hash.

    Raises:
        ModelError: if the provenance cannot be stored exactly.
        StorageError: if the location cannot be written.
    """
    state = {
        name: tensor.detach().cpu().float().contiguous()
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "widths": list(network.widths),
        "provenance": provenance,
    }
    try:
        description = json.loads(json.dumps(description, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ModelError(f"the provenance of a segmenter must be plain finite JSON values ({error})") from error
    digest = _hash(description, state)
    text = json.dumps({**description, "hash": digest}, sort_keys=True)
    storage.write_bytes(uri, safetensors.torch.save(state, metadata={"description": text}))
    return digest


def load_segmenter(uri: str | None = None) -> LungSegmenter:
    """Read a segmenter, after checking that it has not changed since it was saved.

    Args:
        uri: a file that `save_segmenter` wrote; None takes the one that comes with the package.

    Raises:
        ModelError: if it is missing, damaged, changed, or something else.
    """
    return _load(read_segmenter_file(uri))


@lru_cache(maxsize=1)
def own_segmenter() -> LungSegmenter:
    """Return the segmenter that comes with the package, read once a process.

    Raises:
        ModelError: as `load_segmenter`.
    """
    return load_segmenter()


trained_segmenter = lru_cache(maxsize=1)(load_segmenter)
"""The same for one that jobs/lungs.py wrote."""


def _load(file: SegmenterFile) -> LungSegmenter:
    name, data, description, digest = file
    try:
        state = safetensors.torch.load(data)
        known = (description["format"], description["format_version"])
        widths = tuple(description["widths"])
        provenance = dict(description["provenance"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{name} is not a lung segmenter; give a file that jobs/lungs.py wrote") from error
    if known != (FORMAT, FORMAT_VERSION):
        raise ModelError(f"{name} has the format {known[0]} {known[1]}, not {FORMAT} {FORMAT_VERSION}; train it again")
    if digest != _hash(description, state):
        raise ModelError(f"{name} has been changed since it was saved; copy the original again")
    try:
        if not all(isinstance(width, int) and 0 < width <= 1024 for width in widths[:8]) or len(widths) > 8:
            raise RuntimeError("no widths of such a network")
        network = LungNet(widths)
        found = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ModelError(f"{name} does not fit its own description; copy the original again") from error
    if found.unexpected_keys or any(not key.endswith("num_batches_tracked") for key in found.missing_keys):
        raise ModelError(f"{name} does not fit its own description; copy the original again")
    dtype = amp_dtype("auto", torch.device("cpu")) or torch.float32
    return LungSegmenter(InferenceNet(network.eval(), dtype), digest, provenance)


def _hash(description: JsonObject, state: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(description, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
