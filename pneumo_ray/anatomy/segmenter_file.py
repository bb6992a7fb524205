"""What the file of a lung segmenter says of itself; without torch, for those who only ask which segmenter it is."""

import json
from importlib.resources import files
from typing import NamedTuple

from pneumo_ray import storage
from pneumo_ray.errors import ModelError
from pneumo_ray.records import JsonObject


class SegmenterFile(NamedTuple):
    """The file of a segmenter, before anybody has checked its weights."""

    name: str
    """For messages."""
    data: bytes
    """All of it, in the format of safetensors."""
    description: JsonObject
    """What it was saved with, without the hash."""
    hash: str
    """Of description and weights, as saved (sha256, hex)."""


def read_segmenter_file(uri: str | None = None) -> SegmenterFile:
    """Read the file of a segmenter.

    Args:
        uri: a file that `save_segmenter` wrote; None takes the one that comes with the package.

    Raises:
        ModelError: if it is missing, or something else.
    """
    name = uri or "the lung segmenter of this installation"
    try:
        data = files("pneumo_ray.anatomy").joinpath("lungs.safetensors").read_bytes() if uri is None else None
        data = storage.read_bytes(str(uri)) if data is None else data
    except OSError as error:
        hint = "install pneumo_ray again" if uri is None else "give the file that jobs/lungs.py wrote"
        raise ModelError(f"{name} cannot be read ({error.strerror or error}); {hint}") from error
    try:
        # safetensors reads a header's text only from files: 8 bytes of length, then JSON.
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        description = dict(json.loads(header["__metadata__"]["description"]))
        return SegmenterFile(name, data, description, str(description.pop("hash")))
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{name} is not a lung segmenter; give a file that jobs/lungs.py wrote") from error
