"""The reading page: the images of a queue in one offline file, on which a reader answers, blinded or with the model's score and map.

What a blinded reader must not know (score, map, label, why an image was chosen) is not in the file. The names of the
images are, because the export needs them, but they are not shown.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pneumo_ray import storage
from pneumo_ray.console import log, progress
from pneumo_ray.data.image_bytes import read_image
from pneumo_ray.data.lungs import shapes
from pneumo_ray.data.manifest import read_manifest
from pneumo_ray.data.table_cells import read_columns
from pneumo_ray.errors import ConfigError, ManifestError, PneumoError
from pneumo_ray.images.decode import decode_image
from pneumo_ray.images.framing import Shape, resized
from pneumo_ray.readers.page_config import PageConfig
from pneumo_ray.report.embedded import colour_table
from pneumo_ray.report.reading_scores import ModelView, Opinion, model_view
from pneumo_ray.report.shell import made, render

MAX_IMAGES = 500
"""Images of a page."""
LARGE_PAGE = 250_000_000
"""Bytes of a page above which a tablet may not open it."""
_JPEG_QUALITY = 92


@dataclass(frozen=True)
class PageItem:
    """One place of the reading list, as the page's script has it."""

    id: str
    """Name of the image."""
    image: int
    """Number of the image in the file; a repeated image is there once."""
    model: Opinion | None
    """None on a blinded page."""


def write_reading_page(config: PageConfig) -> int:
    """Write the page; return the number of images on it.

    Raises:
        PneumoError: if the queue, the manifest and the scores do not fit together, or no image can be read.
    """
    names = read_queue(config.queue)
    manifest = read_manifest(storage.absolute(config.manifest))
    place = pc.index_in(pa.array(names, pa.string()), value_set=manifest["image_id"].combine_chunks())
    if place.null_count:
        missing = names[place.is_null().to_pylist().index(True)]
        raise ManifestError(
            f"--queue {config.queue}: {place.null_count:,} of {len(names):,} images are not in the manifest "
            f"{config.manifest}, such as {missing!r}; give the manifest that the queue was made with"
        )
    different = list(dict.fromkeys(names))
    rows = manifest.take(pc.index_in(pa.array(different, pa.string()), value_set=manifest["image_id"].combine_chunks()))
    view = None if config.scores is None else model_view(config.scores, different)
    images = read_jpegs(rows, config.max_side)
    number = {name: i for i, name in enumerate(name for name, image in zip(different, images, strict=True) if image)}
    readable = [image for image in images if image is not None]
    if not readable:
        raise ConfigError(f"--queue {config.queue}: none of its images can be read any more; run jobs/prepare.py again")
    items = [PageItem(n, number[n], None if view is None else view.opinions[n]) for n in names if n in number]
    page = render_reading(items, readable, view, config).encode("utf-8", "replace")
    storage.write_bytes(storage.absolute(config.out), page)
    if lost := len(different) - len(readable):
        log(f"warning: {lost:,} image(s) cannot be read any more and are not on the page")
    log(f"wrote {config.out}: {len(items):,} images to read, {len(page) / 1e6:.1f} MB")
    if len(page) > LARGE_PAGE:
        log("warning: a browser may be slow with a page of this size; give a shorter queue, or --max-side 1024")
    return len(items)


def read_queue(uri: str) -> list[str]:
    """Return the names of the images to read, in order; an image may occur again.

    Raises:
        ManifestError: if the file is no queue, has nothing in it, or has more images than a page holds.
    """
    found = read_columns(uri, "--queue")
    if "image_id" not in found.names:
        raise ManifestError(f"--queue {uri} has no column image_id; make one with jobs/readers.py queue")
    names = found.values[found.names.index("image_id")].to_pylist()
    if not names or not all(isinstance(name, str) for name in names):
        raise ManifestError(f"--queue {uri} has {'a row without a name' if names else 'no images'} in it")
    if len(names) > MAX_IMAGES:
        raise ManifestError(
            f"--queue {uri} has {len(names):,} images, and a page holds at most {MAX_IMAGES}; make shorter queues"
        )
    return names


def render_reading(items: Sequence[PageItem], images: Sequence[str], view: ModelView | None, config: PageConfig) -> str:
    """Return the page.

    Args:
        items: what to read, in order.
        images: JPEG files in base64, by the numbers that the items have.
        view: score and map; None on a blinded page.
        config: what was asked for.
    """
    identity = json.dumps([[item.id for item in items], config.reveal])
    data = {
        "page": hashlib.sha256(identity.encode("utf-8", "replace")).hexdigest()[:16],
        "reveal": config.reveal,
        "items": [asdict(item) for item in items],
        "threshold": None if view is None else view.threshold,
        "map_size": None if view is None else list(view.map_size),
        "colours": None if view is None else colour_table("inferno"),
    }
    blinding = {
        "never": "Blinded: this file holds neither scores nor maps nor labels.",
        "after": "The model's probability and map are shown after each answer, which then stays as it was given.",
        "start": "Not blinded: the model's probability and map are shown from the start.",
    }[config.reveal]
    context = {
        "title": "Reading list",
        "subtitle": f"{len(items):,} images. {blinding}",
        "sections": [("summary", "Reading"), ("answers", "Answers"), ("keys", "Keys")],
        "figures": {},
        "reader": config.reader,
        "shows_model": view is not None,
        "images": images,
        "data": data,
        "made": made(),
    }
    return render(
        "reading.html", context, scripts=("maps.js", "reading.js", "reading_view.js"), styles=("reading.css",)
    )


def read_jpegs(rows: pa.Table, max_side: int) -> list[str | None]:
    """Return the images of manifest rows in their true shape, as JPEG files in base64; None where a file cannot be read.

    Args:
        rows: n rows of a manifest.
        max_side: longest side of an image, in pixels.
    """
    places = list(zip(*(rows[name].to_pylist() for name in ("uri", "member", "frame")), shapes(rows), strict=True))

    def read(place: tuple[str, str | None, int | None, Shape]) -> str | None:
        uri, member, frame, shape = place
        try:
            grey = decode_image(read_image(uri, member), frame=frame or 0)
        except (PneumoError, OSError):
            return None
        _, data = cv2.imencode(".jpg", in_true_shape(grey, shape, max_side), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        return base64.b64encode(data.tobytes()).decode()

    images = []
    with ThreadPoolExecutor(4) as pool, progress("reading images", len(places)) as tick:
        for image in pool.map(read, places):
            images.append(image)
            tick()
    return images


def in_true_shape(grey: NDArray[np.uint8], shape: Shape, max_side: int) -> NDArray[np.uint8]:
    """Return an image in its true shape, with no side longer than `max_side`.

    Args:
        grey: uint8 [H, W]; as wide as high where a square copy was made of it.
        shape: its true shape, of which only the ratio counts.
        max_side: in pixels.

    Returns:
        uint8; `grey` itself where nothing has to change. A squashed image is stretched along its shorter side.
    """
    height, width = grey.shape
    ratio = shape.width / shape.height
    if abs(width / height / ratio - 1) > 0.02:  # a squashed copy
        width, height = (max(width, round(height * ratio)), height) if ratio > width / height else (
            width, max(height, round(width / ratio)))  # fmt: skip
    scale = min(1.0, max_side / max(width, height))
    width, height = max(1, round(scale * width)), max(1, round(scale * height))
    return grey if (height, width) == grey.shape else resized(grey, width, height)
