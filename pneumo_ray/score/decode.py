"""Decoding of listed images to the network's inputs and their frames, or to the stage and the reason of a failure."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pneumo_ray.anatomy.lungs import PLAUSIBLE
from pneumo_ray.anatomy.masks import encode_mask
from pneumo_ray.data.dataset import decoding_size
from pneumo_ray.data.image_bytes import read_images
from pneumo_ray.data.inspect import describe
from pneumo_ray.data.spans import Span
from pneumo_ray.dicomweb.web import ServerError
from pneumo_ray.errors import DecodeError
from pneumo_ray.images.augment import resize_grey
from pneumo_ray.images.decode import ImageInfo, decode_with_note, inspect_image
from pneumo_ray.images.fit import OF_LUNGS
from pneumo_ray.images.framing import Shape
from pneumo_ray.images.isolation import DECODE_SECONDS, Call, guarded
from pneumo_ray.model import Preprocessing
from pneumo_ray.records import Row
from pneumo_ray.score.facts import FACT_FIELDS, ImageFacts
from pneumo_ray.score.frame import (
    NUM_FUNCTIONALS,
    Decoded,
    Framed,
    box_in_input,
    frame_images,
    known_lungs,
    map_functionals,
)


class ManyFramesError(DecodeError):
    """A file that was listed as one image contains several."""

    kind = "many_frames"


FATAL = "fatal"
"""Stage of the failure that ends the job: it stands in no row of the scores."""


class Failure(NamedTuple):
    """Why an image has no scores."""

    stage: str
    """list, read, decode or explain; or `FATAL`."""
    error: str
    """`kind: reason`; never holds pixels, patients or paths of other files."""


def load_image(uri: str, member: str | None, frame: int | None, preprocessing: Preprocessing) -> np.ndarray | Failure:
    """Return the network's input of one image, uint8 [S, S], by the same steps as in training.

    Args:
        uri: of its file.
        member: of that file, where it is an archive.
        frame: of a file that holds several images, from 0.
        preprocessing: what the model expects; `lungs` finds them.
    """
    row = dict.fromkeys(("error", "shape_width", "shape_height", "lung_quality", "lung_mask"))
    row |= {"uri": uri, "member": member, "frame": frame}
    (loaded,) = load_images([row], preprocessing, find=preprocessing.fit in OF_LUNGS)
    return loaded if isinstance(loaded, Failure) else loaded.pixels


def load_images(
    listed: list[Row],
    preprocessing: Preprocessing,
    *,
    find: bool,
    decode_seconds: float = DECODE_SECONDS,
    careful: bool = False,
) -> list[Framed | Failure]:
    """Return images in the frame of the network's input, in order.

    Args:
        listed: rows of the list.
        preprocessing: what the model expects.
        find: look for lungs that the list does not know.
        decode_seconds: that the decoding of one image may take.
        careful: an image among them may have ended the process that tried before; see `guarded`.

    Raises:
        ServerError: if the PACS that has one is not there.
    """
    decoded: list[Decoded | Failure] = []
    contents = read_images(
        [(row["uri"], row["member"], Span.of(row.get("span"))) for row in listed if row["error"] is None]
    )
    with guarded(decode_seconds, careful=careful) as call:
        for row in listed:
            if row["error"] is not None:
                decoded.append(Failure("list", f"archive: {row['error']}"))
            else:
                decoded.append(_decode(next(contents), row, decoding_size(preprocessing.image_size), call))
    good = [(image, known_lungs(row)) for image, row in zip(decoded, listed, strict=True) if isinstance(image, Decoded)]
    framed = iter(frame_images([image for image, _ in good], [lungs for _, lungs in good], preprocessing, find=find))
    return [image if isinstance(image, Failure) else next(framed) for image in decoded]


def load_shard(
    rows: pa.Table,
    shard: int,
    preprocessing: Preprocessing,
    *,
    find: bool = False,
    map_size: tuple[int, int] | None = None,
    decode_seconds: float = DECODE_SECONDS,
    careful: bool = False,
) -> pa.Table:
    """Return the decoded images of one shard.

    Args:
        rows: n rows of the list.
        shard: its number.
        preprocessing: what the model expects.
        find: look for lungs that the list does not know.
        map_size: of the network's maps; None leaves out what measures them.
        decode_seconds: that the decoding of one image may take.
        careful: an image among them may have ended the process that tried before; see `guarded`.

    Returns:
        n rows: `shard`, `image_id`, `box` (in pixels of the input), `stage`, `error`, and, null where it failed,
        `note` (see `Decoded`), `pixels` (S * S bytes), `window`, `lung_quality`, `view`, `lung_mask` (PNG) and `functionals` (float32 bytes of
        `map_functionals`), the last two also null without plausible lungs, and the columns `FACT_FIELDS`. Where the server
        that has the images is not there, all n have the stage `FATAL`.
    """
    size, listed = preprocessing.image_size, rows.to_pylist()
    loaded: Sequence[Framed | Failure]
    try:
        loaded = load_images(listed, preprocessing, find=find, decode_seconds=decode_seconds, careful=careful)
    except ServerError as error:  # Ray would wrap an exception in its own text
        loaded = [Failure(FATAL, str(error))] * len(listed)
    failures = [item if isinstance(item, Failure) else None for item in loaded]
    frames = [None if isinstance(item, Failure) else item for item in loaded]
    lungs = [None if frame is None else frame.lungs for frame in frames]
    measures = [None if frame is None or map_size is None else map_functionals(frame, map_size) for frame in frames]
    cells = 0 if map_size is None else map_size[0] * map_size[1]
    return pa.table(
        {
            "shard": pa.array([shard] * len(rows), pa.int64()),
            "image_id": rows["image_id"],
            "box": pa.array(
                [_box(row, frame, size) for row, frame in zip(listed, frames, strict=True)], pa.list_(pa.int32(), 4)
            ),
            "stage": pa.array([failure and failure.stage for failure in failures], pa.string()),
            "error": pa.array([failure and failure.error for failure in failures], pa.string()),
            "note": pa.array([frame and frame.decoded.note for frame in frames], pa.string()),
            "pixels": pa.array([frame and frame.pixels.tobytes() for frame in frames], pa.binary(size * size)),
            "window": pa.array([frame and frame.window for frame in frames], pa.list_(pa.float32(), 4)),
            "lung_quality": pa.array([found and found.quality for found in lungs], pa.string()),
            "view": pa.array([found and found.view for found in lungs], pa.string()),
            "lung_mask": pa.array(
                [
                    encode_mask(found.mask) if found and found.quality == PLAUSIBLE and found.mask is not None else None
                    for found in lungs
                ],
                pa.binary(),
            ),
            "functionals": pa.array(
                [None if values is None else values.tobytes() for values in measures],
                pa.binary(4 * NUM_FUNCTIONALS * cells),
            ),
            **_fact_columns(listed, frames),
        }
    )


def _fact_columns(listed: list[Row], frames: list[Framed | None]) -> dict[str, pa.Array]:
    rows = [
        {}
        if frame is None or frame.decoded.facts is None
        else frame.decoded.facts.row(row, frame.lungs.area if frame.lungs else None)
        for row, frame in zip(listed, frames, strict=True)
    ]
    return {field.name: pa.array([row.get(field.name) for row in rows], field.type) for field in FACT_FIELDS}


def _box(row: Row, frame: Framed | None, size: int) -> tuple[int, int, int, int] | None:
    if frame is None or row["image_box"] is None:
        return row["box"]
    return box_in_input(row["image_box"], frame.window, size)


def _decode(content: bytes | Exception, row: Row, size: int, call: Call) -> Decoded | Failure:
    if isinstance(content, Exception):
        return Failure("read", describe(content))
    try:
        image, note, info = call(_decoded, content, row["frame"], size)
    except DecodeError as error:
        return Failure("decode", describe(error))
    width, height = info.width, info.height
    if row["shape_width"] and row["shape_height"]:
        width, height = row["shape_width"], row["shape_height"]
    return Decoded(image, Shape(width, height), note, ImageFacts.of(info, len(content), image))


def _decoded(data: bytes, frame: int | None, size: int) -> tuple[np.ndarray, str | None, ImageInfo]:
    info = inspect_image(data)
    if frame is None and info.frames > 1:
        raise ManyFramesError(
            f"the file contains {info.frames} images and was listed as one; give it the extension .dcm or .tif"
        )
    grey, note = decode_with_note(data, min_size=size, frame=frame or 0)
    return resize_grey(grey, size), note, info
