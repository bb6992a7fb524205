"""One round of the reading loop: 20 % of the labels are wrong, two planted readers answer on the page, and the model gets better."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pneumo_ray.data.config import PrepareConfig
from pneumo_ray.data.manifest import read_manifest
from pneumo_ray.evaluate.config import EvaluateConfig
from pneumo_ray.model import ModelConfig
from pneumo_ray.phantom.synthetic import PhantomConfig, write_phantom_archive
from pneumo_ray.readers.config import AgreeConfig, QueueConfig
from pneumo_ray.readers.page_config import PageConfig
from pneumo_ray.readers.readings import read_readings
from pneumo_ray.report.reading_page import write_reading_page
from pneumo_ray.score.config import ExplainConfig
from pneumo_ray.train.config import DataConfig, OptimConfig, TrainConfig

pytestmark = pytest.mark.faults

NOISE = 0.2
"""Share of the labels of the training folder that are wrong."""
ERROR = {"Ann": 0.05, "Bo": 0.1}
"""Share of the images about which a reader is wrong."""
READ = 200


def noisy_labels(archive: Path, path: Path) -> dict[str, int]:
    """Write the labels of an archive, some of the training folder flipped; return the true ones."""
    rng = np.random.default_rng(0)
    names = sorted(str(file.relative_to(archive)) for file in archive.rglob("*.jpeg"))
    truth = {name: int("PNEUMONIA" in name) for name in names}
    trains = [name for name in names if name.startswith("train/")]
    flipped = set(rng.choice(trains, round(NOISE * len(trains)), replace=False))
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [("image_id", "label"), *((name, label ^ (name in flipped)) for name, label in truth.items())]
        )
    return truth


def prepared(archive: Path, labels: Path, out: Path, readings: tuple[str, ...] = ()) -> str:
    from pneumo_ray.data.prepare import prepare
    from pneumo_ray.readers.merge import read_opinions

    config = PrepareConfig((str(archive),), str(out), "official", str(labels), readings, lungs="none", cache=True)
    prepare(config, read_opinions(readings, config.consensus) if readings else None)
    return str(out / "manifest.parquet")


def trained_and_scored(manifest: str, out: Path) -> str:
    from pneumo_ray.score.job import explain_archive
    from pneumo_ray.train.launch import fit

    config = TrainConfig(
        manifest,
        str(out),
        model=ModelConfig(arch="resnet18", weights="none"),
        data=DataConfig(image_size=64),
        optim=OptimConfig(lr=1e-3),
        batch_size=32,
        epochs=3,
    )
    fit(config)
    explain_archive(ExplainConfig(model=str(out / "model"), out=str(out / "scores"), manifest=manifest, passes=2))
    return str(out / "scores")


def auc(manifest: str, scores: str, out: Path) -> float:
    from pneumo_ray.report.job import write_evaluation

    measured = write_evaluation(EvaluateConfig(manifest, str(out), scores, report=False)).measured
    assert measured is not None
    assert measured.metrics.stored.values.auc is not None
    return measured.metrics.stored.values.auc


def read(browser: Any, page_file: Path, reader: str, wanted: list[int], folder: Path) -> str:
    """Answer every image of a page by the keyboard; return the file of the export."""
    page = browser.new_page()
    page.goto(page_file.as_uri())
    page.fill("#name", reader)
    page.press("#name", "Enter")
    for place, label in enumerate(wanted):
        page.wait_for_selector(f'#image[data-place="{place}"]')
        page.keyboard.press("p" if label else "n")
        page.keyboard.press("3")
    with page.expect_download() as download:
        page.locator("#panel .export").click()
    path = folder / f"{reader}.csv"
    download.value.save_as(path)
    page.close()
    return str(path)


def share_right(manifest: str, truth: dict[str, int]) -> float:
    rows = [row for row in read_manifest(manifest).to_pylist() if row["split"] in ("train", "val")]
    return float(np.mean([row["label"] == truth[row["image_id"]] for row in rows]))


def test_two_readers_make_a_model_better(browser, ray_cluster, tmp_path):
    from pneumo_ray.readers.queue import write_queue
    from pneumo_ray.report.agreement import write_agreement

    archive = write_phantom_archive(
        tmp_path / "archive", PhantomConfig(num_images=480, image_size=128, difficulty=0.0, images_per_patient=1)
    )
    truth = noisy_labels(archive, tmp_path / "labels.csv")
    first = prepared(archive, tmp_path / "labels.csv", tmp_path / "first")
    assert share_right(first, truth) == pytest.approx(1 - NOISE, abs=0.005)
    scores = trained_and_scored(first, tmp_path / "first")

    queue = str(tmp_path / "queue.parquet")
    page = tmp_path / "page.html"
    write_queue(QueueConfig(first, queue, scores, by=("suspicious",), count=READ, repeats=0, split="train"))
    names = pq.read_table(queue)["image_id"].to_pylist()
    write_reading_page(PageConfig(queue, first, str(page)))
    rng = np.random.default_rng(1)
    wrong = {reader: rng.random(len(names)) < error for reader, error in ERROR.items()}
    files = tuple(
        read(
            browser,
            page,
            reader,
            [truth[name] ^ int(w) for name, w in zip(names, wrong[reader], strict=True)],
            tmp_path,
        )
        for reader in ERROR
    )
    rows = read_readings(files).table.to_pylist()
    assert len(rows) == 2 * len(names)
    errors = {
        reader: [row["label"] != truth[row["image_id"]] for row in rows if row["reader"] == reader] for reader in ERROR
    }
    assert {reader: sum(found) for reader, found in errors.items()} == {r: int(w.sum()) for r, w in wrong.items()}

    agreement = write_agreement(AgreeConfig(files, str(tmp_path / "agreement"), first, scores))
    alike = np.mean(wrong["Ann"] == wrong["Bo"])
    assert agreement.krippendorff.observed.value == pytest.approx(alike)
    second = prepared(archive, tmp_path / "labels.csv", tmp_path / "second", files)
    again = trained_and_scored(second, tmp_path / "second")
    before, after = (
        auc(manifest, found, tmp_path / name)
        for manifest, found, name in ((first, scores, "before"), (second, again, "after"))
    )
    assert share_right(second, truth) > share_right(first, truth) + NOISE / 4
    assert after > before
