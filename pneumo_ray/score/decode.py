"""Decoding of listed images to the network's grey input, or to the stage and the reason of a failure."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pneumo_ray.data.archive import read_images
from pneumo_ray.data.dataset import network_input
from pneumo_ray.data.inspect import describe
from pneumo_ray.errors import DecodeError
from pneumo_ray.images.decode import Decoded, inspect_image
from pneumo_ray.images.isolation import DECODE_SECONDS, Call, guarded, unguarded
from pneumo_ray.model import Preprocessing


class ManyFramesError(DecodeError):
    """A file that was listed as one image contains several."""

    kind = "many_frames"


class Failure(NamedTuple):
    """Why an image has no scores."""

    stage: str
    """list, read, decode or explain."""
    error: str
    """`kind: reason`; never holds pixels, patients or paths of other files."""


def load_image(uri: str, member: str | None, frame: int | None, preprocessing: Preprocessing) -> np.ndarray | Failure:
    """Return the network's input of one image, uint8 [S, S], by the same steps as in training.

    Args:
        uri: of its file.
        member: of that file, where it is an archive.
        frame: of a file that holds several images, from 0.
        preprocessing: what the model expects.
    """
    (content,) = read_images([(uri, member)])
    loaded = _decode(content, frame, preprocessing, unguarded)
    return loaded if isinstance(loaded, Failure) else loaded.pixels


def _decode(
    content: bytes | Exception, frame: int | None, preprocessing: Preprocessing, call: Call
) -> Decoded | Failure:
    if isinstance(content, Exception):
        return Failure("read", describe(content))
    try:
        return call(_decoded, content, frame, preprocessing.resize_size, preprocessing.image_size)
    except DecodeError as error:
        return Failure("decode", describe(error))


def _decoded(data: bytes, frame: int | None, resize_size: int, image_size: int) -> Decoded:
    if frame is None and not data.startswith((b"\xff\xd8", b"\x89PNG", b"RIFF")):
        frames = inspect_image(data).frames
        if frames > 1:
            raise ManyFramesError(
                f"the file contains {frames} images and was listed as one; give it the extension .dcm or .tif"
            )
    return network_input(data, frame, resize_size, image_size)


def load_shard(
    rows: pa.Table,
    shard: int,
    preprocessing: Preprocessing,
    *,
    decode_seconds: float = DECODE_SECONDS,
    careful: bool = False,
) -> pa.Table:
    """Return the decoded images of one shard.

    Args:
        rows: n rows of the list.
        shard: its number.
        preprocessing: what the model expects.
        decode_seconds: time limit for decoding one image.
        careful: an image among them may have ended an earlier process; see `guarded`.

    Returns:
        n rows: `shard`, `image_id`, `box`, `stage`, `error`, `note`, and `pixels` (S * S bytes), null where it failed.
    """
    size = preprocessing.image_size
    loaded: list[Decoded | Failure] = []
    listed = rows.to_pylist()
    contents = read_images([(row["uri"], row["member"]) for row in listed if row["error"] is None])
    with guarded(decode_seconds, careful=careful) as call:
        for row in listed:
            if row["error"] is not None:
                loaded.append(Failure("list", f"archive: {row['error']}"))
            else:
                loaded.append(_decode(next(contents), row["frame"], preprocessing, call))
    pixels = [None if isinstance(item, Failure) else item.pixels.tobytes() for item in loaded]
    return pa.table(
        {
            "shard": pa.array([shard] * len(rows), pa.int64()),
            "image_id": rows["image_id"],
            "box": rows["box"],
            "stage": pa.array([item.stage if isinstance(item, Failure) else None for item in loaded], pa.string()),
            "error": pa.array([item.error if isinstance(item, Failure) else None for item in loaded], pa.string()),
            "note": pa.array([None if isinstance(item, Failure) else item.note for item in loaded], pa.string()),
            "pixels": pa.array(pixels, pa.binary(size * size)),
        }
    )
