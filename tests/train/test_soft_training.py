"""Training on what readers say, on a real Ray: the loss, the validation and the calibration are those of the soft labels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.special import expit
from sklearn.metrics import log_loss

from pneumo_ray.data.manifest import read_manifest, usable, write_manifest
from pneumo_ray.data.prepare import load_training_rows
from pneumo_ray.data.soft_labels import soft_labels
from pneumo_ray.errors import ConfigError, ManifestError
from pneumo_ray.evaluate.calibration import fit_soft_calibration
from pneumo_ray.images.augment_config import AugmentConfig
from pneumo_ray.model import ModelConfig, load_bundle
from pneumo_ray.train.batches import PADDING, BatchSource
from pneumo_ray.train.config import DataConfig, OptimConfig, TrainConfig
from pneumo_ray.train.launch import fit
from pneumo_ray.train.state import load_state


def with_opinions(manifest: pa.Table, target: np.ndarray, weight: np.ndarray) -> pa.Table:
    readers = pa.array(np.full(len(manifest), 3, np.int32))
    for name, column in (
        ("label_soft", pa.array(target)),
        ("label_weight", pa.array(weight)),
        ("num_readers", readers),
    ):
        manifest = manifest.append_column(name, column)
    return manifest


@pytest.fixture(scope="module")
def opinions(phantom_run, tmp_path_factory) -> str:
    """The manifest of the phantoms with opinions that doubt their labels."""
    manifest = read_manifest(str(phantom_run / "manifest.parquet"))
    rng = np.random.default_rng(0)
    label = manifest["label"].to_numpy().astype(float)
    target = np.abs(label - rng.choice([0, 1 / 3, 0.4], len(label)))
    path = str(tmp_path_factory.mktemp("opinions") / "manifest.parquet")
    write_manifest(with_opinions(manifest, target, rng.uniform(0.2, 1, len(label))), path)
    return path


def config(manifest: str, out: Path, **changes) -> TrainConfig:
    base = TrainConfig(
        manifest=manifest,
        out=str(out),
        model=ModelConfig(arch="resnet18", weights="none"),
        data=DataConfig(image_size=32),
        optim=OptimConfig(lr=1e-3),
        batch_size=16,
        epochs=2,
        balance="sampler",
        labels="soft",
    )
    return replace(base, **changes)


@pytest.fixture(scope="module")
def run(ray_cluster, opinions, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("soft")
    fit(config(opinions, out))
    return out


def test_tickets_carry_the_opinions_of_their_images(opinions):
    _, train, val = load_training_rows(opinions)
    soft = soft_labels(train, opinions)
    source = BatchSource(train, val, 32, "sampler", AugmentConfig(), 3, 8, soft=soft)
    schedule = source.schedule(1)
    for ticket in (0, schedule.train_steps - 1):
        batch = source.batch(ticket, schedule)
        rows = batch["row"][batch["row"] != PADDING]
        np.testing.assert_allclose(batch["target"], soft.target[rows], rtol=1e-6)
        np.testing.assert_allclose(batch["weight"], soft.weight[rows], rtol=1e-6)
    assert "target" not in replace(source, soft=None).batch(0, schedule)


def test_validation_is_against_the_opinions(run, opinions):
    state = load_state(str(run))
    val = usable(read_manifest(opinions), "val")
    target, weight = val["label_soft"].to_numpy(), val["label_weight"].to_numpy()
    logit = state.best_val["logit"].numpy()
    twice = np.concatenate([np.ones(len(val)), np.zeros(len(val))])
    shares = np.concatenate([weight * target, weight * (1 - target)])
    expected = log_loss(twice, np.tile(expit(logit), 2), sample_weight=shares)
    assert state.history[state.best_epoch - 1].val_loss == pytest.approx(expected, abs=1e-6)


def test_the_bundle_is_calibrated_on_the_opinions(run, opinions):
    state, bundle = load_state(str(run)), load_bundle(run / "model")
    soft = soft_labels(usable(read_manifest(opinions), "val"), opinions)
    wanted = fit_soft_calibration(state.applied_logits, soft.target, soft.weight)
    assert bundle.temperature == pytest.approx(wanted.temperature, rel=1e-6)
    assert bundle.intercept == pytest.approx(wanted.intercept, abs=1e-6)
    found = bundle.provenance["validation"]
    assert found["soft_log_loss"] == pytest.approx(state.history[-1].loss_scaled, abs=1e-9)
    assert found["soft_brier"] < 0.3
    assert bundle.provenance["config"]["labels"] == "soft"


@pytest.mark.faults
def test_a_weight_of_zero_hides_an_image(ray_cluster, opinions, tmp_path):
    """Labels of images without a weight cannot move the network."""
    manifest = read_manifest(opinions)
    hidden = np.arange(len(manifest)) % 3 == 0
    weight = np.where(hidden, 0.0, 1.0)
    trained = []
    for name in ("a", "b"):
        target = np.where(hidden & (name == "b"), 0.5, manifest["label_soft"].to_numpy())
        path = str(tmp_path / f"{name}.parquet")
        write_manifest(
            with_opinions(manifest.drop_columns(["label_soft", "label_weight", "num_readers"]), target, weight), path
        )
        fit(config(path, tmp_path / name, epochs=1, balance="none"))
        trained.append(load_state(str(tmp_path / name)).model)
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def test_other_readings_do_not_continue_a_run(run, opinions, tmp_path):
    manifest = read_manifest(opinions)
    column = manifest.column_names.index("label_soft")
    changed = manifest.set_column(column, "label_soft", pa.array(np.full(len(manifest), 0.5)))
    write_manifest(changed, str(tmp_path / "m.parquet"))
    with pytest.raises(ConfigError, match="other readings"):
        fit(config(str(tmp_path / "m.parquet"), run, epochs=3))
    with pytest.raises(ConfigError, match="labels"):
        fit(config(opinions, run, labels="hard", epochs=3))


def test_a_manifest_without_opinions_is_refused(ray_cluster, phantom_run, tmp_path):
    with pytest.raises(ManifestError, match="no column label_soft"):
        fit(config(str(phantom_run / "manifest.parquet"), tmp_path))


def test_permuted_opinions_are_refused():
    with pytest.raises(ConfigError, match="--labels hard"):
        config("m", Path("o"), permute_labels=True)
