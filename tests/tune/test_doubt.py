"""Out-of-fold probabilities, and what a study of doubtful labels leaves: by arithmetic, and once on a real Ray."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pneumo_ray.data.dataset import load_inputs
from pneumo_ray.data.manifest import SCHEMA, read_manifest, usable
from pneumo_ray.errors import ConfigError
from pneumo_ray.explain import BayesGradCAM
from pneumo_ray.model import ModelConfig, load_bundle
from pneumo_ray.train.config import DataConfig, OptimConfig
from pneumo_ray.tune.config import StudyConfig
from pneumo_ray.tune.doubt import out_of_fold, rank_labels, softened, weighted, with_confidence
from pneumo_ray.tune.held_out import HELD_OUT
from pneumo_ray.tune.study import Study, Trial, plan, read_study


def rows(labels: list[int]) -> pa.Table:
    return pa.Table.from_pylist(
        [{"image_id": f"{i}", "label": c, "split": "train", "status": "ok"} for i, c in enumerate(labels)],
        schema=SCHEMA,
    )


def test_probabilities_come_from_trials_without_the_image(tmp_path):
    """Two folds with two seeds each; the fourth image is of no fold."""
    fold, trials = np.array([0, 0, 1, -1]), []
    for number, (k, seed) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        trials.append(Trial(f"t{number}", "a", {}, seed, k))
        table = pa.table({"image_id": ["3", "2", "1", "0"], "prob": [0.1 * (number + 1)] * 4})
        (tmp_path / "trials" / f"t{number}").mkdir(parents=True)
        pq.write_table(table, tmp_path / "trials" / f"t{number}" / HELD_OUT)
    found = out_of_fold(str(tmp_path), rows([0, 1, 0, 1]), fold, trials)
    np.testing.assert_allclose(found, [0.2, 0.2, 0.3, 0.25])


def test_the_least_likely_label_comes_first():
    doubt = rank_labels(rows([1, 0, 1, 0]), np.array([0, 1, 0, -1]), np.array([0.9, 0.7, 0.1, 0.2]))
    assert doubt.table["image_id"].to_pylist() == ["2", "1", "3", "0"]
    np.testing.assert_allclose(doubt.table["self_confidence"], [0.1, 0.3, 0.8, 0.9])
    assert doubt.table["rank"].to_pylist() == [1, 2, 3, 4]
    assert doubt.table["fold"].to_pylist() == [0, 1, None, 0]
    assert doubt.doubtful["image_id"].to_pylist() == ["2", "1"]


def test_doubtful_labels_count_for_nothing_or_for_half():
    manifest = rows([1, 0, 1, 0]).append_column("label_weight", pa.array([0.5, None, 1.0, 1.0]))
    doubt = rank_labels(rows([1, 0, 1, 0]), np.zeros(4, np.int64), np.array([0.9, 0.7, 0.1, 0.2]))
    chosen = doubt.doubtful
    assert weighted(manifest, chosen)["label_weight"].to_pylist() == [0.5, 0.0, 0.0, 1.0]
    assert weighted(manifest, chosen)["label_soft"].to_pylist() == [1, 0, 1, 0]
    np.testing.assert_allclose(softened(manifest, chosen)["label_soft"], [1, 0.35, 0.55, 0])
    assert softened(manifest, chosen)["label"].to_pylist() == [1, 0, 1, 0]
    np.testing.assert_allclose(with_confidence(manifest, doubt)["self_confidence"], [0.9, 0.3, 0.1, 0.8])


def test_folds_multiply_the_trials_and_compare_nothing():
    from pneumo_ray.train.config import TrainConfig

    base = TrainConfig(manifest="m", out="/o")
    trials = plan(Study("labels", "folds", arms={"left-out": {}}, folds=3, seeds=2), base)
    assert [(t.seed, t.fold) for t in trials] == [(s, k) for s in (0, 1) for k in (0, 1, 2)]
    assert len({t.name for t in trials}) == 6
    assert trials[1].settings["manifest"] == trials[4].settings["manifest"] == "/o/folds/fold-1.parquet"
    with pytest.raises(ConfigError, match="give it one arm"):
        Study("two", "arms", arms={"a": {}, "b": {}}, folds=3)


def config(phantom_run: Path, out: Path, **changes) -> StudyConfig:
    options = {
        "model": ModelConfig(arch="resnet18", weights="none"),
        "data": DataConfig(image_size=32),
        "optim": OptimConfig(lr=1e-3),
        "batch_size": 16,
        "epochs": 1,
        "study": "labels",
        "folds": 2,
    }
    return StudyConfig(manifest=str(phantom_run / "manifest.parquet"), out=str(out), **options | changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"folds": 1}, "at least 2"),
        ({"study": "balance", "folds": 3}, "leaves no folds out"),
        ({"arms": ("x",)}, "no arm"),
    ],
)
def test_folds_that_cannot_work_are_refused(tmp_path, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        config(tmp_path, tmp_path, **changes).chosen()


@pytest.fixture(scope="module")
def study(phantom_run, ray_cluster, tmp_path_factory) -> Path:
    from pneumo_ray.tune.job import run_study

    out = tmp_path_factory.mktemp("study")
    run_study(config(phantom_run, out))
    return out


def test_a_label_study_ranks_held_out_images(phantom_run, study):
    out = study
    doubt = pq.read_table(out / "doubtful.parquet").to_pylist()
    manifest = read_manifest(str(phantom_run / "manifest.parquet"))
    assert {row["image_id"] for row in doubt} == set(usable(manifest)["image_id"].to_pylist())
    patients = dict(zip(manifest["image_id"].to_pylist(), manifest["patient_id"].to_pylist(), strict=True))
    folds = {
        (patients[row["image_id"]], row["fold"])
        for row in doubt
        if row["fold"] is not None and patients[row["image_id"]]
    }
    assert len(folds) == len({patient for patient, _ in folds})
    for k in (0, 1):
        mine = [row for row in doubt if row["fold"] == k]
        bundle = load_bundle(str(out / "trials" / f"left-out-seed0-fold{k}" / "model"))
        assert {row["split"] for row in mine} == {"train"}
        engine = BayesGradCAM(bundle.model, None, 0, temperature=bundle.temperature, intercept=bundle.intercept)
        place = [manifest["image_id"].to_pylist().index(row["image_id"]) for row in mine]
        seen = bundle.preprocessing
        grey = load_inputs(manifest.take(place), seen.image_size, None, seen.fit, seen.margin)
        expected = engine(seen.normalise(torch.from_numpy(grey))).prob_mean.numpy()
        np.testing.assert_allclose([row["prob"] for row in mine], expected, atol=1e-4)
    again = read_study(str(out / "retrain.json"))
    assert list(again.arms) == ["as-given", "without", "softened"]
    assert [settings["labels"] for settings in again.arms.values()] == ["hard", "soft", "soft"]
    for settings in again.arms.values():
        assert len(read_manifest(str(settings["manifest"]))) == len(manifest)
    assert not (out / "best.json").exists()
    assert json.loads((out / "study.json").read_text())["study"]["folds"] == 2


def test_a_study_with_other_folds_is_refused(phantom_run, study):
    from pneumo_ray.tune.job import run_study

    with pytest.raises(ConfigError, match="another number of folds"):
        run_study(config(phantom_run, study, folds=3))


def test_retraining_compares_what_doubtful_labels_count_for(phantom_run, study, tmp_path):
    """Three trainings of one seed; they differ where there are doubtful labels, and nowhere else."""
    from pneumo_ray.tune.job import run_study

    again = {"study": None, "folds": None, "space": str(study / "retrain.json"), "seeds": 1, "balance": "none"}
    records = run_study(config(phantom_run, tmp_path / "again", **again))
    assert [(r.arm, r.status) for r in records] == [(a, "finished") for a in ("as-given", "without", "softened")]
    doubt = pq.read_table(study / "doubtful.parquet").to_pylist()
    count = sum(row["doubtful"] and row["split"] == "train" for row in doubt)
    assert f"what {count} doubtful training labels count for" in (tmp_path / "again" / "ablation.md").read_text()
    losses = {record.history[0]["train_loss"] for record in records}
    assert len(losses) == (3 if count else 1)
