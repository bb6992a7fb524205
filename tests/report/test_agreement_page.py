"""The job of agreement from files to files, and its page in a real headless Chromium."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumo_ray.errors import ManifestError
from pneumo_ray.readers.config import AgreeConfig
from pneumo_ray.report.agreement import write_agreement

HOSTILE = "<img src=x onerror=window.broken=1>&\"'</script> $x_$"
N = 240


def write_readings(path: Path, label: np.ndarray, readers: dict[str, float], again: int = 40) -> Path:
    """Write answers of readers who are right with a probability; some images are read again."""
    rng = np.random.default_rng(3)
    lines = ["image_id,reader,label,confidence,seconds,blinded,at"]
    for reader, skill in readers.items():
        quoted = '"' + reader.replace('"', '""') + '"'
        for day, images in ((1, len(label)), (2, again)):
            for number in range(images):
                said = label[number] if rng.random() < skill else 1 - label[number]
                lines.append(f"{number}.jpg,{quoted},{said},1,{rng.gamma(4):.1f},true,2026-01-0{day}T00:00:00Z")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def folder(write_scores, write_truth, drawn, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("agreement")
    label, logit = drawn
    write_scores(out / "scores", logit)
    write_truth(out / "m.parquet", label)
    write_readings(out / "r.csv", label, {HOSTILE: 0.95, "Bo": 0.9, "Cy": 0.75})
    config = AgreeConfig((str(out / "r.csv"),), str(out / "a"), str(out / "m.parquet"), str(out / "scores"))
    write_agreement(config)
    return out


@pytest.fixture
def opened(browser, folder, watched) -> Iterator[Any]:
    """What opens the page at a width; whatever the browser complains of fails the test."""
    contexts = []

    def at(width: int) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900})
        contexts.append(context)
        page = context.new_page()
        watched(page)
        page.goto((folder / "a" / "agreement.html").as_uri())
        return page

    yield at
    for context in contexts:
        context.close()


@pytest.mark.parametrize("width", [1280, 768, 360])
def test_the_page_fits_every_screen(opened, width):
    page = opened(width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("window.broken") is None
    for anchor in page.locator("nav a").all():
        assert page.locator(anchor.get_attribute("href")).count() == 1
    assert page.locator("figure svg").count() == 1


def test_the_page_shows_every_reader(opened):
    page = opened(1280)
    assert page.locator("#pairs tbody tr").count() == 3
    names = [row.inner_text() for row in page.locator("#readers table").first.locator("tbody th").all()]
    assert sorted(names) == sorted([HOSTILE, "Bo", "Cy"])
    assert page.locator("#model tbody tr").count() == 4
    page.locator("#readers").get_by_role("button", name="kappa").click()
    rows = page.locator("#readers table").nth(1).locator("tbody th").all()
    assert {rows[0].inner_text(), rows[2].inner_text()} >= {"Cy"}


def test_the_numbers_are_in_the_file(folder):
    values = json.loads((folder / "a" / "agreement.json").read_text())
    assert values["images"] == N
    assert values["patients"] == N // 2
    assert {pair["agreement"]["images"] for pair in values["pairs"]} == {N}
    assert {group["value"] for group in values["groups"]} >= {"normal", "pneumonia", "bacteria"}
    assert values["krippendorff"]["coefficient"]["interval"][0] < values["krippendorff"]["coefficient"]["value"]
    assert values["methods"]["unit"] == "patient"


def test_readings_alone_are_enough(folder, tmp_path, capsys):
    found = write_agreement(AgreeConfig((str(folder / "r.csv"),), str(tmp_path)))
    assert found.model == found.groups == ()
    assert "Krippendorff's alpha" in capsys.readouterr().out
    assert 'id="model"' not in (tmp_path / "agreement.html").read_text()


def test_other_archives_are_refused(folder, write_truth, write_scores, tmp_path):
    names = [f"x{k}.jpg" for k in range(30)]
    write_truth(tmp_path / "m.parquet", np.zeros(30, int), n=30, names=names)
    config = AgreeConfig((str(folder / "r.csv"),), str(tmp_path / "a"), str(tmp_path / "m.parquet"))
    with pytest.raises(ManifestError, match="not in the manifest"):
        write_agreement(config)
    write_scores(tmp_path / "s", np.zeros(30), names=names)
    with pytest.raises(ManifestError, match="--scores have none"):
        write_agreement(AgreeConfig((str(folder / "r.csv"),), str(tmp_path / "a"), scores=str(tmp_path / "s")))
    assert not (tmp_path / "a").exists()
