"""From a manifest row to the square grey image that training and scoring start from.

There is one path: decode, resize to the decoding size, resize to the base of the network's input. The cache holds
the image after the first resize, so that the input is the same with and without a cache.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from pneumo_ray.data.cache import read_cached
from pneumo_ray.data.image_bytes import read_image
from pneumo_ray.data.inspect import describe
from pneumo_ray.data.lungs import windows
from pneumo_ray.data.manifest import SPAN_FIELD
from pneumo_ray.data.spans import Span
from pneumo_ray.errors import ManifestError, PneumoError
from pneumo_ray.images.augment import base_size, center_crop, resize_grey
from pneumo_ray.images.decode import decode_image
from pneumo_ray.images.fit import MARGIN, Fit
from pneumo_ray.images.framing import Box, enlarged, framed

CACHE_SIZE = 256
"""Rows and columns of a cached image: enough for an input of 224 pixels."""


def decoding_size(image_size: int) -> int:
    """Return the side to which a file is decoded for a network input of `image_size` pixels."""
    return max(CACHE_SIZE, base_size(image_size))


def square(data: bytes, size: int, frame: int = 0) -> np.ndarray:
    """Decode a file and resize it to uint8 [size, size].

    Raises:
        DecodeError: if the bytes are not a radiograph.
    """
    return resize_grey(decode_image(data, min_size=size, frame=frame), size)


def seen_by_network(grey: np.ndarray, resize_size: int, image_size: int) -> np.ndarray:
    """Return the network's input, uint8 [image_size, image_size], of a decoded image, uint8 [H, W].

    Multiplying both sizes by one number gives the same part of the image at another size.
    """
    base = resize_grey(grey, decoding_size(image_size))
    return center_crop(resize_grey(base, resize_size), image_size)


def base_of(image: np.ndarray, window: Box | None, image_size: int) -> np.ndarray:
    """Return the base of an image, which training augments and crops.

    Args:
        image: uint8 [C, C], the image or a mask of it, squashed to a square.
        window: what the network's input shows of it; None for all of it, squashed, and then cropped.
        image_size: side S of the network's input, in pixels.

    Returns:
        uint8 [R, R] with R = `base_size(image_size)`: the window, R / S times as wide and high.
    """
    base = base_size(image_size)
    if window is not None:
        return framed(image, enlarged(window, base / image_size), base)
    return image if len(image) == base else resize_grey(image, base)


def input_of(image: np.ndarray, window: Box | None, image_size: int) -> np.ndarray:
    """Return what the network sees of an image where nothing is augmented: of the same arguments, uint8 [S, S]."""
    if window is not None:
        return framed(image, window, image_size)
    return center_crop(base_of(image, None, image_size), image_size)


def load_bases(
    rows: pa.Table, image_size: int, cache_folder: str | None = None, fit: Fit = "squash", margin: float = MARGIN
) -> np.ndarray:
    """Return the bases of some manifest rows, from the cache where it has them.

    Args:
        rows: n manifest rows.
        image_size: side of the network's input, in pixels.
        cache_folder: folder of the shards that `cache_file` names; they hold images of `CACHE_SIZE` pixels.
        fit: how images are fitted.
        margin: see `windows`.

    Returns:
        uint8 [n, R, R] with R = `base_size(image_size)`.

    Raises:
        ManifestError: naming a file that can no longer be read.
    """
    squares = load_squares(rows, decoding_size(image_size), cache_folder)
    return _framed_by(base_of, squares, windows(rows, fit, margin), image_size)


def load_inputs(
    rows: pa.Table, image_size: int, cache_folder: str | None = None, fit: Fit = "squash", margin: float = MARGIN
) -> np.ndarray:
    """Return what the network sees of some manifest rows in evaluation, uint8 [n, S, S]; arguments as for `load_bases`.

    Raises:
        ManifestError: naming a file that can no longer be read.
    """
    squares = load_squares(rows, decoding_size(image_size), cache_folder)
    return _framed_by(input_of, squares, windows(rows, fit, margin), image_size)


def _framed_by(
    frame: Callable[[np.ndarray, Box | None, int], np.ndarray],
    squares: np.ndarray,
    windows: list[Box | None],
    image_size: int,
) -> np.ndarray:
    return np.stack([frame(image, window, image_size) for image, window in zip(squares, windows, strict=True)])


def load_squares(rows: pa.Table, size: int, cache_folder: str | None = None) -> np.ndarray:
    """Return the images of some manifest rows at their decoding size, from the cache where it has them.

    Args:
        rows: n manifest rows.
        size: side in pixels; the cache has only `CACHE_SIZE`.
        cache_folder: folder of the shards that `cache_file` names.

    Returns:
        uint8 [n, size, size].

    Raises:
        ManifestError: naming a file that can no longer be read.
    """
    columns = {name: rows[name].to_pylist() for name in ("image_id", "uri", "member", "frame")}
    has_spans = SPAN_FIELD.name in rows.column_names
    spans = [Span.of(span) for span in rows[SPAN_FIELD.name].to_pylist()] if has_spans else [None] * len(rows)
    images = np.empty((len(rows), size, size), np.uint8)
    cached = [False] * len(rows)
    if cache_folder is not None and size == CACHE_SIZE and "cache_file" in rows.column_names:
        files, places = rows["cache_file"].to_pylist(), rows["cache_row"].to_pylist()
        hits = [position for position, file in enumerate(files) if file is not None]
        try:
            images[hits] = read_cached(cache_folder, size, [files[i] for i in hits], [places[i] for i in hits])
            cached = [file is not None for file in files]
        except OSError:  # the cache may have been deleted; read the original files
            pass
    for position in range(len(rows)):
        if not cached[position]:
            try:
                data = read_image(columns["uri"][position], columns["member"][position], spans[position])
                images[position] = square(data, size, columns["frame"][position] or 0)
            except (PneumoError, OSError) as error:
                raise ManifestError(
                    f"{columns['image_id'][position]} was readable when the manifest was made but is not any more "
                    f"({describe(error)}); run jobs/prepare.py again"
                ) from error
    return images
