"""Masks as PNG files, in tables and in folders."""

import io

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lung_shapes import LUNGS, RIGHT, SIZE, rectangle
from PIL import Image

from pneumo_ray.anatomy.masks import MaskError, decode_mask, encode_mask, read_masks, resize_mask
from pneumo_ray.errors import ManifestError


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), height=st.integers(1, 60), width=st.integers(1, 60))
def test_any_mask_returns_from_its_png(seed, height, width):
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    np.testing.assert_array_equal(decode_mask(encode_mask(mask)), mask)


def test_png_has_one_bit_and_pillow_agrees():
    png = encode_mask(LUNGS)
    image = Image.open(io.BytesIO(png))
    assert image.mode == "1"
    np.testing.assert_array_equal(np.array(image), LUNGS)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1))
def test_two_blobs_take_under_a_kilobyte(seed):
    """Outlines as rough as a segmenter's: circles whose radius wobbles in 24 directions."""
    rng, mask = np.random.default_rng(seed), np.zeros((SIZE, SIZE), np.uint8)
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    for centre in ((36, 64), (92, 64)):
        radius = rng.uniform(14, 30, (24, 1))
        points = centre + radius * np.stack([np.cos(angles), 1.8 * np.sin(angles)], axis=1)
        cv2.fillPoly(mask, [points.astype(np.int32)], 1)
    assert len(encode_mask(mask.astype(bool))) < 1000


def test_grey_and_colour_masks_are_read():
    grey = np.where(LUNGS, 200, 90).astype(np.uint8)
    for image in (grey, np.repeat(grey[:, :, None], 3, axis=2)):
        np.testing.assert_array_equal(decode_mask(cv2.imencode(".png", image)[1].tobytes()), LUNGS)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no PNG"),
        (b"GIF89a" + bytes(40), "no PNG"),
        (encode_mask(LUNGS)[:33], "damaged"),
        (encode_mask(LUNGS)[:16] + b"\x00\x10\x00\x00" * 2 + encode_mask(LUNGS)[24:], "larger"),
    ],
)
def test_bytes_that_are_no_mask_are_refused(data, words):
    with pytest.raises(MaskError, match=words):
        decode_mask(data)


def test_resized_masks_keep_their_area():
    mask = rectangle(32, 16, 96, 112, 224)
    assert resize_mask(mask).mean() / 255 == pytest.approx(mask.mean(), abs=2e-3)
    assert resize_mask(RIGHT[:64, :32]).shape == (SIZE, SIZE)


def table(tmp_path, rows):
    path = tmp_path / "masks.parquet"
    names, contents = zip(*rows, strict=True)
    pq.write_table(pa.table({"image_id": pa.array(names), "mask_png": pa.array(contents, pa.binary())}), path)
    return str(path)


def test_tables_name_images_in_full_or_by_file(tmp_path):
    a, b = encode_mask(LUNGS), encode_mask(RIGHT)
    uri = table(tmp_path, [("train/NORMAL/1.jpeg", a), ("2.jpeg", b), ("absent.jpeg", a), ("x/3.jpeg", None)])
    assert read_masks(uri, ["train/NORMAL/1.jpeg", "train/NORMAL/2.jpeg", "x/3.jpeg"]) == [a, b, None]


def test_a_file_name_of_two_images_names_neither(tmp_path):
    a = encode_mask(LUNGS)
    uri = table(tmp_path, [("1.jpeg", a), ("2.jpeg", a)])
    assert read_masks(uri, ["train/1.jpeg", "test/1.jpeg", "test/2.jpeg"]) == [None, None, a]


def test_masks_of_other_images_are_counted(tmp_path, capsys):
    """One of another image, one whose name two images share; a row without a mask is none."""
    a = encode_mask(LUNGS)
    uri = table(tmp_path, [("2.jpeg", a), ("1.jpeg", a), ("other.jpeg", a), ("absent.jpeg", None)])
    read_masks(uri, ["train/1.jpeg", "test/1.jpeg", "test/2.jpeg"], "--lungs")
    words = "--lungs masks.parquet: masks of 1 of 3 images; 2 further masks name none of them, or several, and are left out\n"
    assert capsys.readouterr().out == words
    read_masks(table(tmp_path, [("2.jpeg", a)]), ["test/2.jpeg"])
    assert capsys.readouterr().out == "--masks masks.parquet: masks of 1 of 1 images\n"


def test_folders_may_leave_out_the_extension(tmp_path):
    a, b = encode_mask(LUNGS), encode_mask(RIGHT)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "1.png").write_bytes(a)
    (tmp_path / "2.jpeg.png").write_bytes(b)
    (tmp_path / "notes.txt").write_text("no mask")
    assert read_masks(str(tmp_path), ["train/1.jpeg", "test/2.jpeg", "test/3.jpeg"]) == [a, b, None]


def test_tables_of_no_use_are_one_sentence(tmp_path):
    a = encode_mask(LUNGS)
    with pytest.raises(ManifestError, match="none of 1 images"):
        read_masks(table(tmp_path, [("other.jpeg", a)]), ["1.jpeg"])
    with pytest.raises(ManifestError, match=r"two masks of '1.jpeg'"):
        read_masks(table(tmp_path, [("1.jpeg", a), ("1.jpeg", a)]), ["1.jpeg"])
    with pytest.raises(ManifestError, match="does not exist"):
        read_masks(str(tmp_path / "gone.parquet"), ["1.jpeg"])
    with pytest.raises(ManifestError, match="does not exist"):
        read_masks(str(tmp_path / "gone"), ["1.jpeg"])
    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(ManifestError, match="neither"):
        read_masks(str(tmp_path / "text.parquet"), ["1.jpeg"])
    pq.write_table(pa.table({"image_id": ["1.jpeg"]}), tmp_path / "bare.parquet")
    with pytest.raises(ManifestError, match="no column mask_png"):
        read_masks(str(tmp_path / "bare.parquet"), ["1.jpeg"])
    pq.write_table(pa.table({"image_id": ["1.jpeg"], "mask_png": ["text"]}), tmp_path / "words.parquet")
    with pytest.raises(ManifestError, match="holds no bytes"):
        read_masks(str(tmp_path / "words.parquet"), ["1.jpeg"])
