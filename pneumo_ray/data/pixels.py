"""From a manifest row to the square grey picture that training and scoring both begin with.

There is one path: decode, resize to the decoding size, resize to the base of the network's input. The cache holds
the picture after the first resize, so that a model sees the same pixels with a cache and without.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from pneumo_ray.data.archive import read_picture
from pneumo_ray.data.augment import base_size, center_crop, resize_grey
from pneumo_ray.data.cache import read_cached
from pneumo_ray.data.decode import Decoded, decode_image, decode_with_note
from pneumo_ray.data.inspect import describe
from pneumo_ray.errors import ManifestError, PneumoError

CACHE_SIZE = 256
"""Rows and columns of a cached picture: enough for an input of 224 pixels."""


def decoding_size(image_size: int) -> int:
    """Return the side to which a file is decoded for a network input of `image_size` pixels."""
    return max(CACHE_SIZE, base_size(image_size))


def square(data: bytes, size: int, frame: int = 0) -> np.ndarray:
    """Decode a file and resize it to uint8 [size, size].

    Raises:
        DecodeError: if the bytes are not a radiograph.
    """
    return resize_grey(decode_image(data, min_size=size, frame=frame), size)


def network_input(data: bytes, frame: int | None, resize_size: int, image_size: int) -> Decoded:
    """Decode a file as the network sees it.

    Args:
        data: content of a file.
        frame: of a file that holds several pictures, from 0.
        resize_size: side of the square that the picture is resized to.
        image_size: side of its centre crop.

    Returns:
        uint8 [image_size, image_size], and what of the file took no part in it.

    Raises:
        DecodeError: if the bytes are not a radiograph.
    """
    grey, note = decode_with_note(data, min_size=decoding_size(image_size), frame=frame or 0)
    return Decoded(seen_by_network(grey, resize_size, image_size), note)


def seen_by_network(grey: np.ndarray, resize_size: int, image_size: int) -> np.ndarray:
    """Return of a decoded picture, uint8 [H, W], what the network sees, uint8 [image_size, image_size].

    Both sizes may be multiplied by one number, to show people the same part of the picture at another size.
    """
    base = resize_grey(grey, decoding_size(image_size))
    return center_crop(resize_grey(base, resize_size), image_size)


def load_bases(rows: pa.Table, image_size: int, cache_folder: str | None = None) -> np.ndarray:
    """Return the pictures of some manifest rows, from the cache where it has them.

    Args:
        rows: n manifest rows.
        image_size: side of the network's input, in pixels.
        cache_folder: folder of the shards that `cache_file` names; they hold pictures of `CACHE_SIZE` pixels.

    Returns:
        uint8 [n, R, R] with R = `base_size(image_size)`.

    Raises:
        ManifestError: naming a file that can no longer be read.
    """
    size, base = decoding_size(image_size), base_size(image_size)
    pictures = load_squares(rows, size, cache_folder)
    if base == size:
        return pictures
    return np.stack([resize_grey(picture, base) for picture in pictures])


def load_squares(rows: pa.Table, size: int, cache_folder: str | None = None) -> np.ndarray:
    """Return the pictures of some manifest rows at their decoding size, from the cache where it has them.

    Args:
        rows: n manifest rows.
        size: side in pixels; the cache has only `CACHE_SIZE`.
        cache_folder: folder of the shards that `cache_file` names.

    Returns:
        uint8 [n, size, size].

    Raises:
        ManifestError: naming a file that can no longer be read.
    """
    columns: dict[str, list[Any]] = {name: rows[name].to_pylist() for name in ("image_id", "uri", "member", "frame")}
    pictures = np.empty((len(rows), size, size), np.uint8)
    cached = [False] * len(rows)
    if cache_folder is not None and size == CACHE_SIZE and "cache_file" in rows.column_names:
        files, places = rows["cache_file"].to_pylist(), rows["cache_row"].to_pylist()
        hits = [position for position, file in enumerate(files) if file is not None]
        try:
            pictures[hits] = read_cached(cache_folder, size, [files[i] for i in hits], [places[i] for i in hits])
            cached = [file is not None for file in files]
        except OSError:  # a cache can be deleted at any time; the originals are still there
            pass
    for position in range(len(rows)):
        if not cached[position]:
            try:
                data = read_picture(columns["uri"][position], columns["member"][position])
                pictures[position] = square(data, size, columns["frame"][position] or 0)
            except (PneumoError, OSError) as error:
                raise ManifestError(
                    f"{columns['image_id'][position]} was readable when the manifest was made and is not now "
                    f"({describe(error)}); run jobs/prepare.py again"
                ) from error
    return pictures
