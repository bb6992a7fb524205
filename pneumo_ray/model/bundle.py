"""A trained model as a folder of two plain files: `weights.safetensors` and `model.json`, under one hash.

It contains no pickle, so a foreign bundle cannot run code.
"""

import hashlib
import json
import math
import shutil
import uuid
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import get_args

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pneumo_ray import storage
from pneumo_ray.config import require
from pneumo_ray.errors import ModelError, PneumoError, StorageError
from pneumo_ray.images.fit import MARGIN, Fit
from pneumo_ray.model.calibrated import Calibration
from pneumo_ray.model.config import ModelConfig
from pneumo_ray.model.network import PneumoniaNet
from pneumo_ray.model.weights import IMAGENET_MEAN, IMAGENET_STD
from pneumo_ray.records import JsonObject

FORMAT = "pneumo_ray.model"
FORMAT_VERSION = 2
"""Version 1 had no `intercept`, no `output_stride` and no `fit`; a reader of that version must not leave one out silently,
so it refuses version 2."""
_READABLE = (1, FORMAT_VERSION)
CLASSES = ("normal", "pneumonia")
_WEIGHTS = "weights.safetensors"
_DESCRIPTION = "model.json"


@dataclass(frozen=True)
class Preprocessing:
    """Conversion of a grey image to the network's input, the same in training, scoring and explaining."""

    image_size: int = 224
    """Height and width of the network's input, in pixels; with `squash` a centre crop."""
    resize_size: int = 256
    """Height and width that the image is resized to before the crop, in pixels."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted from each channel after the division by 255."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Divides each channel after the mean is subtracted."""
    fit: Fit = "squash"
    """How an image is fitted into the input. With `pad` and `lungs` it is a window of the image (`framing.window_of`) at
    image_size, and no centre crop; bundles that do not say so are of `squash`."""
    margin: float = MARGIN
    """With `lungs`, the margin around them, as a share of their box's longer true side."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ConfigError: if the crop is larger than the image, the mean and std are not three usable numbers, or there is
                no such fit or margin.
        """
        require(self.fit in get_args(Fit), f"fit must be one of {', '.join(get_args(Fit))}, got {self.fit!r}")
        require(0 <= self.margin <= 1, f"margin must be between 0 and 1, got {self.margin}")
        require(
            0 < self.image_size <= self.resize_size,
            f"image_size must be positive and at most resize_size, got {self.image_size} and {self.resize_size}",
        )
        require(
            len(self.mean) == 3 and all(math.isfinite(value) for value in self.mean),
            f"mean must be three finite numbers, got {self.mean}",
        )
        require(
            len(self.std) == 3 and all(0 < value < math.inf for value in self.std),
            f"std must be three positive numbers, got {self.std}",
        )

    def normalise(self, batch: Tensor, *, channels_last: bool = False) -> Tensor:
        """Turn grey images into the network's input: (x / 255 - mean) / std, the grey in all three channels.

        It is one multiply-add per value, without a copy of the image for each channel.

        Args:
            batch: uint8 [B, H, W] on any device.
            channels_last: lay the result out as B, H, W, 3, which convolutions prefer on many devices.

        Returns:
            float32 [B, 3, H, W] on the same device.

        Raises:
            ValueError: if the batch is not uint8 [B, H, W].
        """
        if batch.dtype != torch.uint8 or batch.ndim != 3:
            raise ValueError(f"expected uint8 [B, H, W], got {batch.dtype} {list(batch.shape)}")
        scale = torch.tensor([1 / (255 * std) for std in self.std], device=batch.device).view(1, 3, 1, 1)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)], device=batch.device)
        num_images, height, width = batch.shape
        result = torch.empty(
            (num_images, 3, height, width),
            device=batch.device,
            memory_format=torch.channels_last if channels_last else torch.contiguous_format,
        )
        return torch.addcmul(shift.view(1, 3, 1, 1), batch.unsqueeze(1).float(), scale, out=result)


@dataclass
class Bundle:
    """A model with all settings that its scores depend on."""

    model: PneumoniaNet
    """In eval mode, on the CPU; its `config.weights` is `none`, because they came with the bundle."""
    preprocessing: Preprocessing
    temperature: float = 1.0
    """Calibrated probability of pneumonia = sigmoid(logit / temperature + intercept)."""
    intercept: float = 0.0
    """See `temperature`; 0 in bundles of format version 1."""
    operating_point: JsonObject = field(default_factory=dict)
    """`threshold` on the calibrated probability, the `rule` that chose it, and what the rule measured."""
    classes: tuple[str, ...] = CLASSES
    """Names of label 0 and label 1."""
    provenance: JsonObject = field(default_factory=dict)
    """Where it came from: data, configuration, versions, metrics."""
    hash: str = ""
    """sha256 (hex) of the weights file and of the canonical JSON of the rest."""

    @property
    def calibration(self) -> Calibration:
        """How its raw logits become probabilities."""
        return Calibration(self.temperature, self.intercept)


def save_bundle(
    folder: str | Path,
    model: PneumoniaNet,
    *,
    preprocessing: Preprocessing,
    temperature: float = 1.0,
    intercept: float = 0.0,
    operating_point: JsonObject | None = None,
    provenance: JsonObject | None = None,
) -> str:
    """Write a bundle, replacing an older one as a whole.

    The same model and facts give the same bytes on any device and in any memory format.

    Args:
        folder: where, a path or a `pyarrow.fs` URI; a local one must not exist, be empty, or hold an older bundle and
            nothing else.
        model: the network itself, without a DDP or torch.compile wrapper.
        preprocessing: of its inputs.
        temperature: divides the logit before the sigmoid; positive.
        intercept: added to the logit after the division.
        operating_point: see `Bundle`; a threshold of 0.5 where none is given.
        provenance: plain JSON values.

    Returns:
        The bundle's hash.

    Raises:
        ModelError: if a value cannot be stored exactly, or the folder holds something else.
        StorageError: if the folder cannot be written.
    """
    calibration = Calibration(temperature, intercept)
    state = model.state_dict()
    weights = safetensors.torch.save(
        {
            # Contiguous, because safetensors refuses channels_last tensors.
            key: (value.float() if value.is_floating_point() else value).detach().cpu().contiguous()
            for key, value in state.items()
        }
    )
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": asdict(replace(model.config, weights="none")),
        "preprocessing": asdict(preprocessing),
        "classes": CLASSES,
        "temperature": float(calibration.temperature),
        "intercept": float(calibration.intercept),
        "operating_point": {"threshold": 0.5, "rule": "default"} if operating_point is None else operating_point,
        "provenance": provenance or {},
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    try:
        # Through JSON once, so that what is hashed is what will be read: tuples are lists, keys are strings.
        description = json.loads(json.dumps(description, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"operating_point and provenance of a bundle must be plain finite JSON values ({error}); convert them"
        ) from error
    digest = _hash(description)
    text = json.dumps({**description, "hash": digest}, indent=2, allow_nan=False) + "\n"
    files = {_WEIGHTS: weights, _DESCRIPTION: text.encode()}
    if storage.is_local(str(folder)):
        _write_folder(Path(storage.absolute(str(folder))), files)
    else:  # object storage cannot rename a folder; a reader between the two writes sees a hash that does not match
        for name, content in files.items():
            storage.write_bytes(storage.join(str(folder), name), content)
    return digest


def load_bundle(folder: str | Path) -> Bundle:
    """Read a bundle, after checking that neither file has changed since it was saved.

    Raises:
        ModelError: if the folder is not a bundle of this format version, or its content is missing, changed or foreign.
    """
    text = _read_file(str(folder), _DESCRIPTION)
    weights = _read_file(str(folder), _WEIGHTS)
    try:
        description = json.loads(text)
        known = isinstance(description, dict) and description.get("format") == FORMAT
    except (ValueError, RecursionError):
        known = False
    if not known:
        raise ModelError(
            f"{folder} is not a pneumo_ray model ({_DESCRIPTION} is damaged or of another program); copy it again"
        )
    if description.get("format_version") not in _READABLE:
        raise ModelError(
            f"{folder} has model format {description.get('format_version')!r}, but this version reads "
            f"{' and '.join(map(str, _READABLE))}; use the pneumo_ray that wrote it"
        )
    if hashlib.sha256(weights).hexdigest() != description.get("weights_sha256"):
        raise ModelError(f"{_WEIGHTS} in {folder} is not the file that was saved with {_DESCRIPTION}; copy both again")
    digest = description.pop("hash", None)
    try:
        unchanged = _hash(description) == digest
        if unchanged:
            return _assemble(description, weights, digest)
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError, PneumoError) as error:
        raise ModelError(
            f"{folder} is not a valid pneumo_ray model (description and weights do not fit together); save it again"
        ) from error
    raise ModelError(f"{_DESCRIPTION} in {folder} has been changed since it was saved; copy the original again")


def _assemble(description: JsonObject, weights: bytes, digest: str) -> Bundle:
    # On the meta device, because initial weights would cost time and random numbers only to be overwritten.
    with torch.device("meta"):
        model = PneumoniaNet(ModelConfig(**description["model"]))
    model.load_state_dict(safetensors.torch.load(weights), assign=True)
    preprocessing = description["preprocessing"]
    calibration = Calibration(description["temperature"], description.get("intercept", 0.0))
    return Bundle(
        model=model.eval(),
        preprocessing=Preprocessing(
            **{**preprocessing, "mean": tuple(preprocessing["mean"]), "std": tuple(preprocessing["std"])}
        ),
        temperature=calibration.temperature,
        intercept=calibration.intercept,
        operating_point=dict(description["operating_point"]),
        classes=tuple(description["classes"]),
        provenance=dict(description["provenance"]),
        hash=digest,
    )


def _hash(description: JsonObject) -> str:
    canonical = json.dumps(description, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _read_file(folder: str, name: str) -> bytes:
    try:
        return storage.read_bytes(storage.join(folder, name))
    except OSError as error:
        raise ModelError(
            f"{folder} is not a complete pneumo_ray model ({name}: {error.strerror or error}); give the folder that "
            "jobs/train.py wrote"
        ) from error


def _write_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Write the files beside the folder and rename them into place, so that no reader sees half a bundle."""
    folder = folder.resolve()
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    old = temporary.with_name(f"{temporary.name}.old")
    try:
        if folder.exists() and (not folder.is_dir() or any(entry.name not in files for entry in folder.iterdir())):
            raise ModelError(f"{folder} contains files other than a model, which would be lost; choose another folder")
        temporary.mkdir(parents=True)
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        if folder.exists():
            folder.rename(old)
        try:
            temporary.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    except OSError as error:
        raise StorageError(
            f"the model cannot be written to {folder} ({error.strerror}); choose another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
