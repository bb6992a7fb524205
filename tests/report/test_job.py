"""The evaluation job from files to files: what it writes, what it refuses, what it leaves out of the report."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from pneumo_ray.anatomy.masks import encode_mask
from pneumo_ray.anatomy.overlay import RIGHT_COLOUR
from pneumo_ray.data.manifest import fingerprint, read_manifest
from pneumo_ray.errors import ConfigError
from pneumo_ray.evaluate.config import EvaluateConfig
from pneumo_ray.evaluate.robustness import FORMAT
from pneumo_ray.report.job import check_same_model, write_evaluation


@pytest.fixture(scope="module")
def files(drawn, write_scores, write_truth, tmp_path_factory) -> tuple[str, str]:
    """Manifest and scores."""
    folder = tmp_path_factory.mktemp("job")
    scores = write_scores(folder / "scores", drawn[1])
    return str(write_truth(folder / "m.parquet", drawn[0], images=folder / "pictures")), str(scores)


@pytest.fixture
def prob(drawn) -> np.ndarray:
    return (1 / (1 + np.exp(-drawn[1] / 2.0))).astype(np.float32).astype(np.float64)


def test_every_error_is_listed_whatever_the_page_shows(files, drawn, prob, tmp_path):
    write_evaluation(EvaluateConfig(files[0], str(tmp_path), files[1], gallery=0))
    with open(tmp_path / "misclassified.csv") as file:
        rows = list(csv.DictReader(file))
    wrong = np.flatnonzero((prob >= 0.4) != (drawn[0] == 1))
    assert {row["image_id"] for row in rows} == {f"{i}.jpg" for i in wrong}
    residual = [abs(float(row["residual"])) for row in rows]
    assert residual == sorted(residual, reverse=True)
    page = (tmp_path / "report.html").read_text()
    assert f"{len(wrong)} images are misclassified" in page
    assert "No image is misclassified" not in page


def test_errors_have_the_quality_of_their_files(files, tmp_path):
    write_evaluation(EvaluateConfig(files[0], str(tmp_path), files[1], gallery=50))
    with open(tmp_path / "misclassified.csv") as file:
        rows = list(csv.DictReader(file))
    assert all(row["sharpness"] for row in rows[:50])
    assert not all(row["sharpness"] for row in rows)
    assert all(0 < float(row["contrast"]) < 0.5 for row in rows[:50])


def test_numbers_only(files, tmp_path):
    write_evaluation(EvaluateConfig(files[0], str(tmp_path), files[1], report=False))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "metrics.json",
        "metrics.csv",
        "subgroups.csv",
        "referral.csv",
        "zones.csv",
        "failures.csv",
        "gaps.csv",
    }


def test_two_models_are_compared_on_the_same_images(files, drawn, prob, write_scores, tmp_path, capsys):
    other = write_scores(tmp_path / "other", 0.5 * drawn[1] + np.random.default_rng(7).normal(size=len(prob)))
    found = write_evaluation(EvaluateConfig(files[0], str(tmp_path / "out"), files[1], baseline=str(other), gallery=0))
    compared = found.comparison
    assert compared.auc.delong.here == pytest.approx(roc_auc_score(drawn[0], prob))
    assert compared.auc.delong.here > compared.auc.delong.baseline
    b, c = compared.errors.mcnemar.only_here_right, compared.errors.mcnemar.only_baseline_right
    if b + c < 25:
        assert compared.errors.mcnemar.p == pytest.approx(binomtest(b, b + c).pvalue)
    assert "DeLong p" in capsys.readouterr().out
    assert "Against another model" in (tmp_path / "out" / "report.html").read_text()
    same = write_evaluation(EvaluateConfig(files[0], str(tmp_path / "o"), files[1], baseline=files[1], report=False))
    assert same.comparison.auc.delong.p is None
    assert same.comparison.errors.mcnemar.p == 1


def measured(manifest: str, **changes) -> dict:
    record = {
        "condition": "as_it_is", "severity": 0, "description": "the image as it is", "auc_difference": 0.0,
        "auc_difference_interval": [0.0, 0.0], "decisions_changed": 0.0,
        "values": dict.fromkeys(("auc", "recall", "specificity", "ece"), 0.5), "intervals": {"auc": [0.4, 0.6]},
    }  # fmt: skip
    found = {
        "format": FORMAT, "model_hash": "m" * 64, "manifest_fingerprint": fingerprint(read_manifest(manifest)),
        "split": "test", "threshold": 0.4, "pictures": 240, "failed": 0, "lung_boxes": {"manifest": 0, "central": 240},
        "conditions": [record], "metadata_only": {"auc": 0.83, "interval": [0.77, 0.88], "reason": None},
    }  # fmt: skip
    return found | changes


@pytest.mark.parametrize(
    "changes",
    [{"threshold": 0.5}, {"split": "val"}, {"model_hash": "other"}, {"manifest_fingerprint": "other"}, {"format": "2"}],
)
def test_robustness_of_something_else_is_left_out(files, tmp_path, capsys, changes):
    (tmp_path / "robustness.json").write_text(json.dumps(measured(files[0], **changes)))
    write_evaluation(EvaluateConfig(files[0], str(tmp_path), files[1], gallery=0))
    assert "is not in the report" in capsys.readouterr().out
    assert "0.830 (0.770 to 0.880)" not in (tmp_path / "report.html").read_text()


def test_robustness_and_shortcuts_are_in_the_report(files, tmp_path):
    (tmp_path / "robustness.json").write_text(json.dumps(measured(files[0])))
    write_evaluation(EvaluateConfig(files[0], str(tmp_path), files[1], gallery=0))
    page = (tmp_path / "report.html").read_text()
    assert "0.830 (0.770 to 0.880)" in page
    assert "reaches an AUC of 0.830: the classes differ" in page
    assert "central part of the image that includes the heart" in page


@pytest.mark.parametrize("content", ["[]", "not JSON", "3"])
def test_a_broken_robustness_file_breaks_nothing(files, tmp_path, content):
    (tmp_path / "robustness.json").write_text(content)
    write_evaluation(EvaluateConfig(files[0], str(tmp_path), files[1], gallery=0))
    assert "reaches an AUC" not in (tmp_path / "report.html").read_text()


def test_another_models_robustness_is_refused(files, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.json").write_text(json.dumps({"hash": "another"}))
    with pytest.raises(ConfigError, match="are not of --model"):
        check_same_model(files[1], str(model))
    (model / "model.json").write_text(json.dumps({"hash": "m" * 64}))
    check_same_model(files[1], str(model))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give --scores"),
        ({"robustness": True}, "--model RUN/model"),
        ({"scores": "s", "prevalence": 2.0}, "prevalence"),
        ({"scores": "s", "split": "dev"}, "split"),
        ({"scores": "s", "gallery": -1}, "gallery"),
        ({"robustness": True, "model": "m", "baseline": "b"}, "give both"),
        ({"robustness": True, "model": "m", "boxes": "b"}, "--boxes are compared"),
    ],
)
def test_options_that_cannot_work_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        EvaluateConfig("m", "o", **options)


def test_only_the_models_history_is_shown(drawn, write_scores, write_truth, tmp_path):
    records = [
        {"epoch": i + 1, "train_loss": 0.5, "val_loss": 0.4, "val_auc": 0.8 + 0.05 * i, "lr": 1e-3, "best": i == 1}
        for i in range(3)
    ]
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    truth = str(write_truth(tmp_path / "m.parquet", drawn[0]))
    provenance = {"epochs": 3, "best_epoch": 2, "validation": {"auc": 0.85}}
    for change, shown in (
        ({}, True),
        ({"best_epoch": 3}, False),
        ({"validation": {"auc": 0.9}}, False),
        ({"epochs": []}, False),
    ):
        run = {"config": {"model": str(tmp_path / "model")}, "model": {"provenance": provenance | change}}
        scores = write_scores(tmp_path / "s", drawn[1], run=run)
        out: Path = tmp_path / "out"
        write_evaluation(EvaluateConfig(truth, str(out), str(scores), gallery=0))
        assert ("Learning curves of the run" in (out / "report.html").read_text()) == shown, change
    for broken in ("[1]", '{"epoch": 1}', "no JSON", ""):
        (tmp_path / "history.jsonl").write_text(broken)
        write_evaluation(EvaluateConfig(truth, str(out), str(scores), gallery=0))


@pytest.mark.parametrize("run", [{"model": "x"}, {"model": {"provenance": [1]}}, {"config": 3, "versions": "x"}])
def test_foreign_files_beside_scores_break_nothing(drawn, write_scores, write_truth, tmp_path, run):
    scores = write_scores(tmp_path / "s", drawn[1], run=run)
    write_evaluation(
        EvaluateConfig(str(write_truth(tmp_path / "m.parquet", drawn[0])), str(tmp_path / "o"), str(scores))
    )
    page = (tmp_path / "o" / "report.html").read_text()
    assert "how it was chosen is not known" in page or "not available" in page


def test_boxes_are_measured_and_shown_on_the_page(files, drawn, tmp_path, capsys):
    """Maps are drawn at random, so they hit no more than chance: a quarter of the image."""
    ill = [i for i in range(240) if drawn[0][i] == 1]
    lines = [f"{i}.jpg,28,28,56,56,56,56" for i in ill]
    (tmp_path / "boxes.csv").write_text("\n".join(["image_id,x0,y0,x1,y1,width,height", *lines]))
    config = EvaluateConfig(files[0], str(tmp_path / "o"), files[1], gallery=0, boxes=str(tmp_path / "boxes.csv"))
    found = write_evaluation(config).localisation
    assert found.images == found.boxes == len(ill)
    energy = found.groups["all"]["energy"]
    low, high = energy.above_chance_interval
    assert low < 0 < high
    with open(tmp_path / "o" / "localisation.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["image_id"] for row in rows] == [f"{i}.jpg" for i in ill]
    assert np.mean([float(row["energy"]) for row in rows]) == pytest.approx(energy.value)
    assert json.loads((tmp_path / "o" / "metrics.json").read_text())["localisation"]["images"] == len(ill)
    page = (tmp_path / "o" / "report.html").read_text()
    assert "Mean activation of zones (thirds of the height by halves of the width of what the network sees)" in page
    assert "Maps against true boxes" in page
    assert f"{len(ill):,} true boxes in {len(ill):,} images" in page
    assert "localisation.csv" in (out := capsys.readouterr().out)
    assert "pointing game: in" in out


def test_the_report_shows_the_lungs_it_relies_on(drawn, write_scores, write_truth, tmp_path, capsys):
    """Of images with plausible and with doubtful lungs; none where nobody looked, or an image cannot be read."""
    n, mask = len(drawn[0]), np.zeros((128, 128), bool)
    mask[30:100, 20:55] = mask[30:100, 75:110] = True
    quality = ["no_lungs" if i % 40 == 0 else "plausible" for i in range(n)]
    masks = [None if name == "no_lungs" else encode_mask(mask) for name in quality]
    images = tmp_path / "images"
    manifest = write_truth(tmp_path / "m.parquet", drawn[0], images=images, lung_quality=quality, lung_mask=masks)
    scores = write_scores(tmp_path / "scores", drawn[1])

    def made(out: str, gallery: int = 4) -> tuple[str, bool]:
        write_evaluation(EvaluateConfig(str(manifest), str(tmp_path / out), str(scores), gallery=gallery))
        page = (tmp_path / out / "report.html").read_text()
        return page, (tmp_path / out / "figures" / "gallery-lungs.png").exists()

    page, written = made("shown")
    assert written
    assert "Lungs that were found" in page
    picture = cv2.imread(str(tmp_path / "shown" / "figures" / "gallery-lungs.png"))
    assert (picture == RIGHT_COLOUR[::-1]).all(2).sum() > 500
    assert "Lungs that were found" not in made("numbers", gallery=0)[0]
    for i in range(n):
        (images / f"{i}.png").unlink()
    assert made("gone")[1] is False
    assert "the report shows no outlines of lungs: " in capsys.readouterr().out


def names_in(value: object, at: str = "") -> Iterator[str]:
    """The paths of a JSON value; all records of a list have one."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from names_in(part, f"{at}.{key}" if at else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for part in value:
            yield from names_in(part, f"{at}[]")
    else:
        yield at


def test_metrics_json_keeps_its_names_and_their_order(files, drawn, write_scores, write_truth, tmp_path):
    """As of the version before evaluations were records: a baseline, boxes, columns of a label table."""
    n = len(drawn[0])
    ages = ["infant" if i < 10 else "child" for i in range(n)]
    truth = str(write_truth(tmp_path / "m.parquet", drawn[0], age=ages, remark=[str(i) for i in range(n)]))
    lines = [f"{i}.jpg,10,12,40,44,64,64" for i in np.flatnonzero(drawn[0])]
    (tmp_path / "boxes.csv").write_text("\n".join(["image_id,x0,y0,x1,y1,width,height", *lines]))
    other = str(write_scores(tmp_path / "other", -drawn[1]))
    boxes = str(tmp_path / "boxes.csv")
    write_evaluation(EvaluateConfig(truth, str(tmp_path), files[1], baseline=other, boxes=boxes, report=False))
    found = json.loads((tmp_path / "metrics.json").read_text())
    expected = (Path(__file__).parents[1] / "formats" / "metrics_names.txt").read_text().splitlines()
    kept = set(expected)
    assert [name for name in dict.fromkeys(names_in(found)) if name in kept] == expected
