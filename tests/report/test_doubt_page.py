"""The page of doubtful labels in a real headless Chromium: its numbers, its order, and names that are text."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pneumo_ray import storage
from pneumo_ray.data.manifest import read_manifest, usable, write_manifest
from pneumo_ray.report.doubt_page import SHOWN, write_doubt_page
from pneumo_ray.tune.doubt import rank_labels, with_confidence

HOSTILE = "train/<img src=x onerror=window.broken=1>\"'.png"
WRONG = 7
"""Images, all labelled normal, of whose labels the models say the opposite."""


@pytest.fixture(scope="module")
def study(write_truth, tmp_path_factory) -> Path:
    """What a study of labels leaves: 80 images in two folds; the name of the most doubtful is hostile, one file is gone."""
    folder = tmp_path_factory.mktemp("study")
    label = np.array([0] * 30 + [1] * 50)
    prob = np.where(label == 1, 0.9, 0.1)
    prob[:WRONG] = 0.99 - 0.01 * np.arange(WRONG)
    manifest = read_manifest(str(write_truth(folder / "m.parquet", label, len(label), images=folder / "images")))
    for name, values in (("image_id", [HOSTILE]), ("split", ["train"] * len(label))):
        column = pa.array([*values, *manifest[name].to_pylist()[len(values) :]], manifest.schema.field(name).type)
        manifest = manifest.set_column(manifest.column_names.index(name), manifest.schema.field(name), column)
    (folder / "images" / "2.png").unlink()
    doubt = rank_labels(usable(manifest), np.arange(len(label)) % 2, prob)
    storage.write_table(doubt.table, str(folder / "doubtful.parquet"))
    write_manifest(with_confidence(manifest, doubt), str(folder / "confidence.parquet"))
    write_doubt_page(str(folder))
    return folder


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (820, 1180)])
def test_the_least_likely_labels_come_first(browser, study, watched, width, height):
    page = browser.new_page(viewport={"width": width, "height": height})
    watched(page)
    page.goto((study / "doubtful.html").as_uri())
    cards = page.locator(".case").all_inner_texts()
    assert len(cards) == SHOWN
    for place, text in enumerate(cards[:WRONG]):
        assert f"{place + 1}. labelled normal" in text
        assert f"{0.99 - 0.01 * place:.2f}" in text
    assert HOSTILE in cards[0]
    assert page.evaluate("window.broken") is None
    assert [("no longer readable" in text) for text in cards].index(True) == 2
    assert [("not called doubtful" in text) for text in cards] == [place >= WRONG for place in range(SHOWN)]
    page.locator(".case img").nth(0).scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('.case img').naturalWidth > 0")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_numbers_of_doubtful_labels_are_those_planted(browser, study):
    page = browser.new_page()
    page.goto((study / "doubtful.html").as_uri())
    shown = [text.split("\n") for text in page.locator(".numbers li").all_inner_texts()]
    assert [(name, value) for name, value, *_ in shown] == [
        ("labels", "80"),
        ("doubtful", str(WRONG)),
        ("labelled normal", str(WRONG)),
        ("labelled pneumonia", "0"),
    ]
    rows = page.locator("#summary tbody tr").all_inner_texts()
    assert [row.split("\t")[:4] for row in rows] == [
        ["train, normal", "30", str(WRONG), f"{100 * WRONG / 30:.1f} %"],
        ["train, pneumonia", "50", "0", "0.0 %"],
    ]
    page.close()
