"""What is done with one hostile file, and what must be true afterwards.

Either the file is an image (an archive, a model), or it is refused with a `PneumoError`. An `OSError` of the file
system is allowed where the contract of a function allows it. Everything else is a defect.
"""

import os
import uuid
from functools import cache
from pathlib import Path

import numpy as np

from pneumo_ray.data.archive import Entry, list_archives
from pneumo_ray.data.frames import count_frames
from pneumo_ray.data.image_bytes import read_image
from pneumo_ray.data.inspect import InspectConfig, inspect_entries
from pneumo_ray.errors import ModelError, PneumoError
from pneumo_ray.images.augment import resize_grey
from pneumo_ray.images.decode import DecodeError, decode_image, inspect_image

SECRETS = ("SECRET7", "DOE^JANE")
"""Patient's ID and name in the DICOM seeds."""


class DefectError(AssertionError):
    """A promise that was broken without an exception of another kind."""


def examine(kind: str, data: bytes, folder: Path) -> str:
    """Do with the bytes what the jobs would do; return `ok` or the kind of refusal.

    Args:
        kind: `image`, or the extension of an archive.
        data: the hostile file.
        folder: for files that have to lie somewhere; what is left there is removed.
    """
    if kind == "image":
        return _examine_image(data, folder)
    return _examine_archive(data, folder, kind)


def _examine_image(data: bytes, folder: Path) -> str:
    frames = 1
    try:
        info = inspect_image(data)
        frames = info.frames
        _require(min(info.width, info.height, frames) >= 1, f"the header gives {info}")
        _require(not any(secret in info.mode for secret in SECRETS), "the mode names the patient")
    except DecodeError as error:
        _check_message(error)
    outcome = _decode(data, 0)
    if frames > 1:
        _decode(data, frames - 1)
    path = folder / f"{uuid.uuid4().hex}.dcm"
    path.write_bytes(data)
    try:
        _require(count_frames(str(path), None) == frames, "the frames are counted differently")
        if frames <= 20:
            rows = inspect_entries([Entry("a.dcm", str(path), None, "a.dcm")], InspectConfig(size=64, salt=b"0"))
            _require(len(rows) == frames, f"{len(rows)} rows of {frames} frames")
            failures = [row["error"] for row in rows.to_pylist() if row["status"] == "failed"]
            _require(not any(secret in str(rows.to_pylist()) for secret in SECRETS), "a row names the patient")
            _require((outcome == "ok" and failures == []) or bool(failures) or frames > 1, "the row says otherwise")
    finally:
        path.unlink()
    return outcome


def _decode(data: bytes, frame: int) -> str:
    outcome = "ok"
    for min_size in (None, 32):
        try:
            grey = decode_image(data, frame=frame, min_size=min_size)
        except DecodeError as error:
            _check_message(error)
            outcome = error.kind
            continue
        _require(grey.dtype == np.uint8 and grey.ndim == 2, f"{grey.dtype} {grey.shape}")
        _require(grey.size > 0 and grey.flags.c_contiguous and grey.flags.writeable, f"{grey.shape} {grey.flags}")
        _require(resize_grey(grey, 64).shape == (64, 64), "it cannot be resized")
    return outcome


def _examine_archive(data: bytes, folder: Path, extension: str) -> str:
    path = folder / f"{uuid.uuid4().hex}.{extension}"
    path.write_bytes(data)
    before = sorted(os.listdir(folder))
    outcomes = set()
    try:
        entries = list(list_archives([str(path)]))
        _require(len({entry.image_id for entry in entries}) == len(entries), "two images have one name")
        for entry in entries[:20]:
            entry.image_id.encode("utf-8")
            if entry.error is not None:
                outcomes.add("ends early")
                continue
            try:
                content = read_image(entry.uri, entry.member)
                _require(not content.startswith(b"root:"), "a file of the host was read")
                outcomes.add("ok")
            except DecodeError as error:
                outcomes.add(error.kind)
            except (PneumoError, OSError):
                outcomes.add("unreadable member")
        inspect_entries(entries[:20], InspectConfig(size=64, salt=b"0"))
        _require(sorted(os.listdir(folder)) == before, "something was unpacked")
    except PneumoError as error:
        _check_message(error)
        outcomes.add("refused")
    finally:
        path.unlink()
    return next((name for name in ("unreadable member", "ends early", "ok") if name in outcomes), "no images")


def examine_bundle(description: bytes, weights: bytes, folder: Path) -> str:
    """Load a hostile bundle and, where it loads, use it once."""
    import torch

    from pneumo_ray.model import load_bundle

    folder.mkdir(exist_ok=True)
    (folder / "model.json").write_bytes(description)
    (folder / "weights.safetensors").write_bytes(weights)
    try:
        bundle = load_bundle(folder)
    except ModelError as error:
        _check_message(error)
        return "refused"
    _require(not any(value.is_meta for value in bundle.model.state_dict().values()), "weights are missing")
    _require(0 < bundle.temperature < float("inf"), f"temperature {bundle.temperature}")
    bundle.preprocessing.normalise(torch.zeros(1, 8, 8, dtype=torch.uint8))
    return "ok"


@cache
def seeded_bundle() -> tuple[bytes, bytes]:
    """Return description and weights of the bundle that mutations start from."""
    import tempfile

    from seeds import bundle_seed

    with tempfile.TemporaryDirectory() as temporary:
        bundle_seed(Path(temporary) / "model")
        return tuple((Path(temporary) / "model" / name).read_bytes() for name in ("model.json", "weights.safetensors"))  # type: ignore[return-value]


def _check_message(error: PneumoError) -> None:
    text = str(error)
    _require(not any(secret in text for secret in SECRETS), "a message names the patient")
    text.encode("utf-8")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise DefectError(otherwise)
