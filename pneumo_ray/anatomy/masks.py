"""Masks as files: a 1-bit PNG each, in the column `mask_png` of a table or in a folder of files."""

import re
from collections import Counter

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
from numpy.typing import NDArray

from pneumo_ray import storage
from pneumo_ray.anatomy.lungs import MASK_SIZE
from pneumo_ray.console import log
from pneumo_ray.errors import ManifestError

Mask = NDArray[np.bool_]

MASK_COLUMN = "mask_png"
_LARGEST_SIDE = 8192
_PNG_HEAD = re.compile(rb"\x89PNG\r\n\x1a\n.{4}IHDR(?P<width>.{4})(?P<height>.{4})", re.DOTALL)


class MaskError(ManifestError):
    """Bytes that are no mask. The text does not name the image: whoever reads a table does."""


def encode_mask(mask: Mask) -> bytes:
    """Return a mask, bool [H, W], as a PNG of 1 bit a pixel; lungs at 128 x 128 take some 300 bytes."""
    # Level 9 takes three times as long and saves nothing: masks are long runs.
    settings = [cv2.IMWRITE_PNG_BILEVEL, 1, cv2.IMWRITE_PNG_COMPRESSION, 6]
    return bytes(cv2.imencode(".png", mask.astype(np.uint8) * 255, settings)[1].tobytes())


def decode_mask(png: bytes) -> Mask:
    """Return a mask, bool [H, W], from a PNG of any depth: what is at least half white is lung.

    Raises:
        MaskError: if it is no PNG, damaged, or larger than 8192 pixels.
    """
    head = _PNG_HEAD.match(png)
    if head is None:
        raise MaskError("is no PNG")
    if not all(0 < int.from_bytes(head[side], "big") <= _LARGEST_SIDE for side in ("width", "height")):
        raise MaskError(f"is empty or larger than {_LARGEST_SIDE} pixels")
    grey = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE)
    if grey is None:
        raise MaskError("is damaged")
    return np.asarray(grey >= 128)


def resize_mask(mask: Mask, size: int = MASK_SIZE) -> NDArray[np.uint8]:
    """Return a mask, bool [H, W], squashed to a square: the share of each pixel that is lung, times 255."""
    grey = mask.astype(np.uint8) * np.uint8(255)
    shrunk = cv2.resize(grey, (min(grey.shape[1], size), min(grey.shape[0], size)), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(shrunk, (size, size), interpolation=cv2.INTER_LINEAR))


def read_masks(uri: str, image_ids: list[str], option: str = "--masks") -> list[bytes | None]:
    """Return the masks of some images, as PNG bytes, in the order asked for; None for an image that has none.

    One log line has the number of these images that have a mask, and of masks that name none of them, or several.

    Args:
        uri: a Parquet table with the columns `image_id` and `mask_png`, or a folder of PNG files. An image is named by
            its full id or, where that is unique on both sides, by its file name; a file may leave out the image's
            extension: `train/NORMAL/IM-1.png` and `IM-1.jpeg.png` are masks of `train/NORMAL/IM-1.jpeg`.
        image_ids: what to look for; the table may hold more.
        option: its name, for the error message.

    Raises:
        ManifestError: if the place cannot be read, lacks a column, names an image twice, or has none of the images.
    """
    is_table = storage.base_name(uri).lower().endswith((".parquet", ".pq"))
    try:
        names, contents = _read_table(uri, option) if is_table else _read_folder(uri)
    except FileNotFoundError as error:
        raise ManifestError(f"{option} {uri} does not exist") from error
    except storage.RetriesExhaustedError:
        raise
    except (OSError, pa.ArrowInvalid) as error:
        raise ManifestError(
            f"{option} {uri} is neither a Parquet table nor a folder that can be read: {error}"
        ) from error
    found = dict(zip(names, contents, strict=True))
    if len(found) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise ManifestError(f"{option} {uri} has two masks of {twice!r}; leave one of them out")
    by_base = {_base(name): name for name in names}
    counts = Counter(_base(name) for name in names)
    bases = Counter(map(_base, image_ids))

    def name_of(image_id: str) -> str | None:
        for name in (image_id, image_id.rpartition(".")[0]):
            if name in found:
                return name
            base = _base(name)
            if counts[base] == 1 and bases[_base(image_id)] == 1:
                return by_base[base]
        return None

    named = [name_of(image_id) for image_id in image_ids]
    out = [None if name is None else found[name] for name in named]
    if all(png is None for png in out):
        raise ManifestError(
            f"{option} {uri} has a mask of none of {len(image_ids):,} images; its names must be those of the manifest"
        )
    masked, foreign = len(out) - out.count(None), sum(found[name] is not None for name in found.keys() - set(named))
    left_out = f"; {foreign:,} further masks name none of them, or several, and are left out" if foreign else ""
    log(f"{option} {storage.base_name(uri)}: masks of {masked:,} of {len(image_ids):,} images{left_out}")
    return out


def _base(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _read_table(uri: str, option: str) -> tuple[list[str], list[bytes | None]]:
    table = storage.read_table(uri)
    missing = [name for name in ("image_id", MASK_COLUMN) if name not in table.column_names]
    if missing:
        raise ManifestError(
            f"{option} {uri} has no column {missing[0]}; its columns are {', '.join(table.column_names)}"
        )
    if not pa.types.is_binary(table.schema.field(MASK_COLUMN).type) and table[MASK_COLUMN].null_count < len(table):
        raise ManifestError(f"{option} {uri} has a column {MASK_COLUMN} that holds no bytes; write PNG files into it")
    return table["image_id"].cast(pa.string()).to_pylist(), table[MASK_COLUMN].to_pylist()


def _read_folder(uri: str) -> tuple[list[str], list[bytes | None]]:
    """Return the names of a folder's PNG files, relative to it and without .png, and their contents."""
    fs, path = storage.filesystem(uri)
    infos = storage.retried("list", uri, lambda: fs.get_file_info(pafs.FileSelector(path, recursive=True)))
    paths = sorted(i.path for i in infos if i.type == pafs.FileType.File and i.path.lower().endswith(".png"))
    names = [file[len(path) :].lstrip("/") for file in paths]
    return [name[: -len(".png")] for name in names], list(
        storage.ahead(lambda name: storage.read_bytes(storage.join(uri, *name.split("/"))), names)
    )
