"""Pages of a TIFF: thumbnails, levels of a pyramid and masks are no images, and two radiographs are two."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from pneumo_ray.data.frames import count_frames
from pneumo_ray.images.decode import decode_image, inspect_image


def film(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """A smooth image of its own, `size` columns and rows."""
    rough = np.random.default_rng(seed).integers(0, 256, (6, 8), dtype=np.uint8)
    return Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC)


def tiff(*pages: Image.Image, marks: dict[int, dict[int, int]] | None = None) -> bytes:
    """A TIFF of several pages; `marks` gives tags of some, by number."""
    for number, page in enumerate(pages):
        tags = ImageFileDirectory_v2()
        for tag, value in (marks or {}).get(number, {}).items():
            tags[tag] = value
        page.encoderinfo = {"tiffinfo": tags}
    stream = io.BytesIO()
    pages[0].save(stream, "TIFF", save_all=True, append_images=pages[1:], tiffinfo=pages[0].encoderinfo["tiffinfo"])
    return stream.getvalue()


def kept(data: bytes, pages: list[Image.Image]) -> list[int]:
    """Which of the pages the frames are, by their pixels."""
    found = [decode_image(data, frame=k) for k in range(inspect_image(data).frames)]
    return [next(k for k, page in enumerate(pages) if np.array_equal(np.asarray(page), grey)) for grey in found]


@pytest.mark.parametrize("reducing", [2, 3, 5])
@pytest.mark.parametrize("resample", [Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS])
def test_a_smaller_copy_is_no_image(reducing, resample, tmp_path):
    first, second = film(1), film(2)
    small = [page.resize((320 // reducing, 240 // reducing), resample) for page in (first, second)]
    for pages, own in (
        ([first, small[0]], [0]),
        ([first, small[0], second, small[1]], [0, 2]),
        ([first, second, small[1]], [0, 1]),
        ([first, second, small[0]], [0, 1]),
    ):
        data = tiff(*pages)
        assert kept(data, pages) == own
        (tmp_path / "x.tif").write_bytes(data)
        assert count_frames(str(tmp_path / "x.tif"), None) == len(own)


def test_a_pyramid_is_one_image():
    pages = [film(1).resize((640 >> k, 480 >> k), Image.Resampling.BOX) for k in range(5)]
    assert kept(tiff(*pages), pages) == [0]


@pytest.mark.parametrize("mark", [{254: 1}, {254: 3}, {255: 2}, {254: 4}])
def test_marked_copies_and_masks_are_no_images(mark):
    """Even where it shows something else, and where it comes first."""
    pages = [film(1), film(2, (160, 120)), film(3)]
    assert kept(tiff(*pages, marks={1: mark}), pages) == [0, 2]
    assert kept(tiff(*pages, marks={0: mark}), pages) == [1, 2]


@pytest.mark.parametrize("mark", [{254: 0}, {254: 2}, {255: 1}, {255: 3}])
def test_a_page_of_a_document_is_an_image(mark):
    pages = [film(1), film(2)]
    assert kept(tiff(*pages, marks={0: mark, 1: mark}), pages) == [0, 1]


def test_reduced_pages_alone_give_the_first():
    pages = [film(1), film(2)]
    assert kept(tiff(*pages, marks={0: {254: 1}, 1: {254: 1}}), pages) == [0]


@pytest.mark.parametrize("size", [(320, 240), (160, 120), (640, 480), (160, 130)])
def test_another_film_is_an_image_whatever_its_size(size):
    pages = [film(1), film(2, size)]
    assert kept(tiff(*pages), pages) == [0, 1]


def test_an_equally_large_copy_is_an_image():
    pages = [film(1), film(1)]
    assert inspect_image(tiff(*pages)).frames == 2


def test_smaller_real_radiographs_of_one_shape_are_images(full_size_archive):
    """Film behind film of one shape; the most alike pair of all 160 has a correlation of 0.948."""
    films = [
        Image.open(path).convert("L").resize((400, 320)) for path in sorted(full_size_archive.rglob("*.jp*g"))[:24]
    ]
    for one, other in itertools.pairwise(films):
        pages = [one, other.resize((200, 160))]
        assert kept(tiff(*pages), pages) == [0, 1]
