"""A trained model as a folder of plain files under one hash: `weights.safetensors`, `model.json`, and `posterior.safetensors`
where it has a posterior beside its dropout.

It contains no pickle, so a foreign bundle cannot run code.
"""

import hashlib
import json
import shutil
import uuid
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from pneumo_ray import storage
from pneumo_ray.errors import ModelError, PneumoError, StorageError
from pneumo_ray.model.calibrated import Calibration
from pneumo_ray.model.config import CLASSES, ModelConfig
from pneumo_ray.model.network import PneumoniaNet
from pneumo_ray.model.preprocessing import Preprocessing
from pneumo_ray.model.stored_posterior import StoredPosterior
from pneumo_ray.records import JsonObject

FORMAT = "pneumo_ray.model"
FORMAT_VERSION = 2
"""Version 1 had no `intercept`, no `output_stride` and no `fit`; a reader of that version must not leave one out silently,
so it refuses version 2."""
WITH_POSTERIOR = 3
"""Version of a bundle with a `posterior`, which a reader of version 2 must not leave out silently either."""
_READABLE = (1, FORMAT_VERSION, WITH_POSTERIOR)
_WEIGHTS = "weights.safetensors"
_DESCRIPTION = "model.json"
_POSTERIOR = "posterior.safetensors"
_FILES = frozenset({_WEIGHTS, _DESCRIPTION, _POSTERIOR})


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
    """sha256 (hex) of the other files and of the canonical JSON of the rest."""
    posterior: StoredPosterior | None = None
    """The Laplace posterior of its head, where one was fitted."""

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
    posterior: StoredPosterior | None = None,
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
        posterior: of its head, beside its dropout.

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
    description: JsonObject = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION if posterior is None else WITH_POSTERIOR,
        "model": asdict(replace(model.config, weights="none")),
        "preprocessing": asdict(preprocessing),
        "classes": CLASSES,
        "temperature": float(calibration.temperature),
        "intercept": float(calibration.intercept),
        "operating_point": {"threshold": 0.5, "rule": "default"} if operating_point is None else operating_point,
        "provenance": provenance or {},
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    files = {_WEIGHTS: weights}
    if posterior is not None:
        described, files[_POSTERIOR] = posterior.packed()
        description["posterior"] = described | {"sha256": hashlib.sha256(files[_POSTERIOR]).hexdigest()}
    try:
        # Through JSON once, so that what is hashed is what will be read: tuples are lists, keys are strings.
        description = json.loads(json.dumps(description, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"operating_point, provenance and posterior of a bundle must be plain finite JSON values ({error}); convert them"
        ) from error
    digest = _hash(description)
    text = json.dumps({**description, "hash": digest}, indent=2, allow_nan=False) + "\n"
    files[_DESCRIPTION] = text.encode()
    if storage.is_local(str(folder)):
        _write_folder(Path(storage.absolute(str(folder))), files)
    else:  # object storage cannot rename a folder; a reader between the two writes sees a hash that does not match
        for name, content in files.items():
            storage.write_bytes(storage.join(str(folder), name), content)
    return digest


def load_bundle(folder: str | Path) -> Bundle:
    """Read a bundle, after checking that none of its files has changed since it was saved.

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
            f"{', '.join(map(str, _READABLE))}; use the pneumo_ray that wrote it"
        )
    if hashlib.sha256(weights).hexdigest() != description.get("weights_sha256"):
        raise ModelError(f"{_WEIGHTS} in {folder} is not the file that was saved with {_DESCRIPTION}; copy both again")
    digest = description.pop("hash", None)
    try:
        unchanged = _hash(description) == digest
        if unchanged:
            return _assemble(description, weights, digest, _posterior_file(str(folder), description))
    except _ChangedFileError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError, PneumoError) as error:
        raise ModelError(
            f"{folder} is not a valid pneumo_ray model (description and weights do not fit together); save it again"
        ) from error
    raise ModelError(f"{_DESCRIPTION} in {folder} has been changed since it was saved; copy the original again")


class _ChangedFileError(ModelError):
    """A file beside the description is missing or not the one that was saved."""


def _posterior_file(folder: str, description: JsonObject) -> bytes | None:
    """Return the content of the file of the posterior, checked; None where the bundle has none."""
    if (description["format_version"] == WITH_POSTERIOR) != ("posterior" in description):
        raise ValueError("format_version and posterior do not fit together")
    if "posterior" not in description:
        return None
    try:
        content = _read_file(folder, _POSTERIOR)
    except ModelError as error:
        raise _ChangedFileError(str(error)) from error
    if hashlib.sha256(content).hexdigest() != description["posterior"]["sha256"]:
        raise _ChangedFileError(
            f"{_POSTERIOR} in {folder} is not the file that was saved with {_DESCRIPTION}; copy both again"
        )
    return content


def _assemble(description: JsonObject, weights: bytes, digest: str, factor: bytes | None) -> Bundle:
    # On the meta device, because initial weights would cost time and random numbers only to be overwritten.
    with torch.device("meta"):
        model = PneumoniaNet(ModelConfig(**description["model"]))
    model.load_state_dict(safetensors.torch.load(weights), assign=True)
    preprocessing = description["preprocessing"]
    calibration = Calibration(description["temperature"], description.get("intercept", 0.0))
    posterior = None
    if factor is not None:
        facts = {name: value for name, value in description["posterior"].items() if name != "sha256"}
        posterior = StoredPosterior.unpacked(facts, factor, model.classifier.in_features)
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
        posterior=posterior,
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
        if folder.exists() and (not folder.is_dir() or any(entry.name not in _FILES for entry in folder.iterdir())):
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
