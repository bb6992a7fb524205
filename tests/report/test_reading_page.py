"""The reading page in a real headless Chromium: what readers see and press, and what their export holds."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pneumo_ray.errors import ConfigError, ManifestError
from pneumo_ray.images.framing import Shape
from pneumo_ray.readers.page_config import PageConfig
from pneumo_ray.readers.readings import read_readings
from pneumo_ray.report.reading_page import in_true_shape, write_reading_page

HOSTILE = "<img src=x onerror=window.broken=1>\"', Dr.</script>"
QUEUE = ["3.jpg", "0.jpg", "7.jpg", "0.jpg"]
"""What is read here, one image twice."""
HOT = 0.875
"""Probability of every image here."""
CELL = 2
"""The one cell of a 2 x 2 map with evidence: at the left, below."""


def write_queue(path: Path, names: list[str]) -> str:
    pq.write_table(pa.table({"image_id": names, "reason": ["suspicious"] * len(names)}), path)
    return str(path)


@pytest.fixture(scope="module")
def pages(write_scores, write_truth, drawn, tmp_path_factory) -> dict[str, Path]:
    """The page of one queue, blinded and with the model after the answer and from the start."""
    folder = tmp_path_factory.mktemp("reading")
    label, logit = drawn
    maps = np.zeros((len(logit), 4), np.float32)
    maps[:, CELL] = 1
    corners = {f"crop_{name}": np.full(len(logit), v, np.float32) for name, v in zip(("x0", "y0", "x1", "y1"), (0, 0, 1, 1), strict=True)}  # fmt: skip
    scores = write_scores(folder / "s", logit, prob_mean=np.full(len(logit), HOT, np.float32), cam_mean=maps, **corners)
    manifest = write_truth(folder / "m.parquet", label, images=folder / "images")
    queue = write_queue(folder / "q.parquet", QUEUE)
    found = {}
    for reveal in ("never", "after", "start"):
        found[reveal] = folder / f"{reveal}.html"
        given = None if reveal == "never" else str(scores)
        config = PageConfig(queue, str(manifest), str(found[reveal]), reveal, given, reader="Ann")
        assert write_reading_page(config) == len(QUEUE)
    return found


@pytest.fixture
def reading(browser, pages, watched) -> Iterator[Callable[..., Any]]:
    """What opens a page; whatever the browser complains of, or asks the network for, fails the test."""
    contexts = []

    def at(name: str = "never", width: int = 1280, height: int = 800, before: str = "", **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        watched(page)
        page.add_init_script(before)
        page.goto(pages[name].as_uri())
        return page

    yield at
    for context in contexts:
        context.close()


def start(page: Any, name: str | None = None) -> Any:
    if name is not None:
        page.fill("#name", name)
    page.press("#name", "Enter")
    return wait_for(page, 0)


def wait_for(page: Any, place: int) -> Any:
    """Wait until an image is on the screen; answers count only then."""
    page.wait_for_selector(f'#image[data-place="{place}"]')
    return page


def answer(page: Any, *presses: str) -> Any:
    """Press some keys for each image, one image after the other."""
    for place, keys in enumerate(presses):
        wait_for(page, place)
        for key in keys.split():
            page.keyboard.press(key)
    return page


def exported(page: Any, folder: Path) -> list[dict[str, Any]]:
    with page.expect_download() as download:
        page.locator("#panel .export").click()
    path = folder / "export.csv"
    download.value.save_as(path)
    return read_readings([str(path)]).table.to_pylist()


def shown_pixels(page: Any, canvas: str = "image") -> np.ndarray:
    png = page.evaluate("(id) => document.getElementById(id).toDataURL().split(',')[1]", canvas)
    return cv2.imdecode(np.frombuffer(base64.b64decode(png), np.uint8), cv2.IMREAD_UNCHANGED)


def test_a_blinded_file_holds_no_opinion(pages):
    text = pages["never"].read_text()
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert [item["model"] for item in data["items"]] == [None] * len(QUEUE)
    assert [data[name] for name in ("threshold", "map_size", "colours")] == [None] * 3
    for word in ("suspicious", "bacteria", "virus", str(HOT)):
        assert word not in text
    assert str(HOT) in pages["start"].read_text()


def test_keys_become_readings(reading, tmp_path):
    rows = exported(answer(start(reading()), "p 3", "n 1", "c Enter", "p n Enter"), tmp_path)
    assert [row["image_id"] for row in rows] == QUEUE
    assert [row["label"] for row in rows] == [1, 0, None, 0]
    assert [row["confidence"] for row in rows] == [1, pytest.approx(1 / 3, abs=1e-3), None, None]
    assert {row["reader"] for row in rows} == {"Ann"}
    assert {row["blinded"] for row in rows} == {True}
    assert all(0 <= row["seconds"] < 60 for row in rows)
    assert [row["at"] for row in rows] == sorted(row["at"] for row in rows)


def test_fingers_can_do_what_keys_do(reading, tmp_path):
    page = start(reading("never", 820, 1180, has_touch=True))
    page.get_by_role("button", name="Pneumonia").tap()
    page.get_by_role("button", name="Very").tap()
    wait_for(page, 1)
    page.get_by_role("button", name="Cannot say").tap()
    page.get_by_role("button", name="Next").tap()
    wait_for(page, 2)
    assert [(row["label"], row["confidence"]) for row in exported(page, tmp_path)] == [(1, 1), (None, None)]


def test_an_answer_can_be_changed_later(reading, tmp_path):
    page = answer(start(reading()), "p 2", "n 2")
    wait_for(page, 2).keyboard.press("Backspace")
    wait_for(page, 1).keyboard.press("ArrowLeft")
    assert wait_for(page, 0).locator("[data-label='1']").get_attribute("aria-pressed") == "true"
    page.keyboard.press("c")
    page.keyboard.press("Enter")
    rows = exported(wait_for(page, 1), tmp_path)
    assert [row["label"] for row in rows] == [None, 0]


def test_no_answer_without_a_choice(reading):
    page = start(reading())
    for key in ("Enter", "3", "ArrowRight"):
        page.keyboard.press(key)
    assert page.locator("#place").inner_text() == "Image 1 of 4; 0 answered."
    assert page.locator("#panel .export").is_disabled()


def test_progress_is_kept_by_reader(reading, tmp_path):
    page = answer(start(reading(), "Bo"), "p 3", "n 2")
    page.reload()
    page.fill("#name", "Bo")
    page.press("#name", "Enter")
    wait_for(page, 2)
    assert "2 answers of Bo" in page.locator("#kept").inner_text()
    page.locator("#leave").click()
    page.fill("#name", "Cy")
    page.press("#name", "Enter")
    wait_for(page, 0)
    assert "0 answered" in page.locator("#place").inner_text()


REFUSING = "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no', 'SecurityError') }})"
FULL = "Storage.prototype.setItem = () => { throw new DOMException('no', 'QuotaExceededError') }"


@pytest.mark.parametrize(("before", "why"), [(REFUSING, "SecurityError"), (FULL, "QuotaExceededError")])
def test_reading_goes_on_without_local_storage(reading, tmp_path, before, why):
    page = reading(before=before)
    assert why in page.locator("#kept").inner_text()
    page = answer(start(page), "p 3", "n 3", "n 3", "c Enter")
    assert "export them" in page.locator("#kept").inner_text()
    assert [row["label"] for row in exported(page, tmp_path)] == [1, 0, 0, None]


def test_a_name_with_html_is_a_name(reading, tmp_path):
    page = answer(start(reading(), HOSTILE), "p 3")
    wait_for(page, 1)
    assert HOSTILE in page.locator("#count").inner_text()
    assert page.evaluate("window.broken") is None
    assert exported(page, tmp_path)[0]["reader"] == HOSTILE


def test_window_and_invert_follow_their_formula(reading, pages):
    page = start(reading())
    before = shown_pixels(page)
    grey = before[..., 0].astype(float)
    original = cv2.imread(str(pages["never"].parent / "images" / "3.png"), cv2.IMREAD_GRAYSCALE)
    assert np.abs(grey - original).mean() < 3  # JPEG
    assert (before[..., 3] == 255).all()
    page.locator("#level").fill("100")
    page.locator("#width").fill("50")
    expected = np.floor(255 * np.clip((grey - 100) / 50 + 0.5, 0, 1) + 0.5)
    assert set(np.unique(expected)) > {0, 255}
    np.testing.assert_array_equal(shown_pixels(page)[..., 0], expected)
    page.keyboard.press("i")
    np.testing.assert_array_equal(shown_pixels(page)[..., 2], 255 - expected)
    page.keyboard.press("r")
    np.testing.assert_array_equal(shown_pixels(page), before)


@pytest.mark.parametrize("ratio", [1, 2])
def test_full_size_is_pixel_for_pixel(reading, ratio):
    page = start(reading(device_scale_factor=ratio))
    assert page.locator("#image").bounding_box()["height"] == pytest.approx(800 - 5 * 16, abs=1)
    page.keyboard.press("f")
    assert page.locator("#image").bounding_box()["width"] * ratio == pytest.approx(64)


@pytest.mark.parametrize("size", [(1280, 800), (1920, 1080), (1180, 820), (820, 1180), (360, 740)])
def test_image_and_answers_fit_the_screen(reading, size):
    page = start(reading("never", *size))
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    for name in ("#image", "#labels", "#sure") if size[0] > 400 else ("#image", "#labels"):
        box = page.locator(name).bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= size[1], name
        assert box["x"] + box["width"] <= size[0]


def test_the_model_answers_after_the_reader(reading, tmp_path):
    page = start(reading("after"))
    page.keyboard.press("n")
    assert not page.locator("#model").is_visible()
    assert not page.locator("#map").is_visible()
    page.keyboard.press("2")
    assert "0.88" in page.locator("#opinion").inner_text()
    assert page.locator("#map").is_visible()
    page.keyboard.press("p")
    page.keyboard.press("3")
    wait_for(page, 0).keyboard.press("Enter")
    wait_for(page, 1)
    assert not page.locator("#model").is_visible()
    assert [(row["label"], row["blinded"]) for row in exported(page, tmp_path)] == [(0, True)]


def test_a_map_lies_where_the_evidence_is(reading, tmp_path):
    page = start(reading("start"))
    opacity = shown_pixels(page, "map")[..., 3]
    row, column = np.unravel_index(opacity.argmax(), opacity.shape)
    assert row > opacity.shape[0] / 2 > column
    assert opacity[: len(opacity) // 4].max() == 0
    page.keyboard.press("m")
    assert not page.locator("#map").is_visible()
    page.keyboard.press("p")
    page.keyboard.press("3")
    assert exported(wait_for(page, 1), tmp_path)[0]["blinded"] is False


def test_a_squashed_copy_gets_its_shape_back():
    square = np.zeros((100, 100), np.uint8)
    assert in_true_shape(square, Shape(150, 100), 2048).shape == (100, 150)
    assert in_true_shape(square, Shape(50, 100), 2048).shape == (200, 100)
    assert in_true_shape(square, Shape(300, 100), 150).shape == (50, 150)
    assert in_true_shape(square, Shape(1, 1), 2048) is square


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ([], "no images"),
        (["strange.jpg"], "not in the manifest"),
        (["0.jpg"] * 501, "at most 500"),
        (["bad.jpg"], "none of its images can be read"),
    ],
)
def test_a_queue_that_cannot_be_shown_is_refused(names, sentence, write_truth, drawn, tmp_path):
    manifest = write_truth(tmp_path / "m.parquet", drawn[0], images=tmp_path / "images")
    queue = write_queue(tmp_path / "q.parquet", names)
    with pytest.raises((ConfigError, ManifestError), match=sentence):
        write_reading_page(PageConfig(queue, str(manifest), str(tmp_path / "page.html")))
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("options", [{"reveal": "after"}, {"scores": "s"}, {"max_side": 10}])
def test_options_that_contradict_each_other_are_refused(options):
    with pytest.raises(ConfigError):
        PageConfig("q", "m", "o", **options)
