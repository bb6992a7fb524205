"""Guidance, frames, averaged weights and planned rates in whole runs on a real Ray."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pneumo_ray.data.manifest import LUNG_FIELDS, read_manifest, write_manifest
from pneumo_ray.data.prepare import load_training_rows
from pneumo_ray.errors import ConfigError
from pneumo_ray.images.augment_config import AugmentConfig
from pneumo_ray.model import ModelConfig, load_bundle
from pneumo_ray.train.config import (
    DataConfig,
    GuideConfig,
    LossConfig,
    OptimConfig,
    ScalingConfig,
    TrainConfig,
)
from pneumo_ray.train.launch import fit
from pneumo_ray.train.lungs_use import decide_lungs
from pneumo_ray.train.state import TrainState, load_state

EVERYTHING = {
    "model": ModelConfig("resnet18", "none", output_stride=16),
    "data": DataConfig(image_size=64, fit="auto", margin=0.1),
    "augment": AugmentConfig(gamma=0.3, histogram=0.3, outside="swap", outside_probability=0.4),
    "optim": OptimConfig(lr=1e-3, schedule="onecycle", ema=0.9),
    "loss": LossConfig(smoothing=0.1),
    "guide": GuideConfig(weight=1.0),
    "epochs": 3,
}


@pytest.fixture(scope="module")
def without_lungs(phantom_run, tmp_path_factory) -> str:
    """The manifest of the phantoms, as if nobody had looked for their lungs."""
    manifest = read_manifest(str(phantom_run / "manifest.parquet"))
    lungs = {field.name for field in LUNG_FIELDS} & set(manifest.column_names)
    path = tmp_path_factory.mktemp("without-lungs") / "manifest.parquet"
    write_manifest(manifest.drop_columns(sorted(lungs)), str(path))
    return str(path)


@pytest.fixture(scope="module")
def with_lungs(without_lungs, lung_columns, tmp_path_factory) -> str:
    """The manifest of the phantoms with lungs, which are doubtful in two images of three."""
    manifest = read_manifest(without_lungs)
    for name, column in lung_columns(len(manifest), doubtful=tuple(i for i in range(len(manifest)) if i % 3)).items():
        manifest = manifest.append_column(name, column)
    path = tmp_path_factory.mktemp("with-lungs") / "manifest.parquet"
    write_manifest(manifest, str(path))
    return str(path)


def config(manifest: str, out: Path, workers: int = 1, **changes) -> TrainConfig:
    base = TrainConfig(
        manifest=manifest,
        out=str(out),
        model=ModelConfig("resnet18", "none"),
        data=DataConfig(image_size=32),
        optim=OptimConfig(lr=1e-3),
        scaling=ScalingConfig(num_workers=workers),
        batch_size=16,
        epochs=2,
    )
    return replace(base, **changes)


def differences(one: TrainState, other: TrainState, *fields: str) -> list[str]:
    return [
        f"{field}.{name}"
        for field in fields
        for name, tensor in vars(one)[field].items()
        if not torch.equal(tensor, vars(other)[field][name])
    ]


@pytest.fixture(scope="module")
def everything(ray_cluster, with_lungs, tmp_path_factory) -> Path:
    """A run with everything on, which nothing interrupted."""
    out = tmp_path_factory.mktemp("everything")
    fit(config(with_lungs, out, **EVERYTHING))
    return out


@pytest.mark.faults
def test_guidance_weight_0_changes_nothing_bitwise(ray_cluster, without_lungs, with_lungs, tmp_path):
    fit(config(without_lungs, tmp_path / "without"))
    fit(config(with_lungs, tmp_path / "with"))
    without, known = (load_state(str(tmp_path / name)) for name in ("without", "with"))
    assert differences(without, known, "model", "best", "best_val") == []
    for old, new in zip(without.history, known.history, strict=True):
        assert (new.train_loss, new.val_loss, new.lr) == (old.train_loss, old.val_loss, old.lr)
        assert 0 <= new.val_outside_share <= 1
        assert (old.val_outside_share, old.outside_share, new.outside_share) == (None, None, None)


def test_a_run_with_everything_on_continues_bitwise(everything, with_lungs, tmp_path):
    shutil.copytree(everything, tmp_path / "run")
    for name in ("state/epoch-00003.pt", "model/model.json"):
        (tmp_path / "run" / name).unlink()
    fit(config(with_lungs, tmp_path / "run", **EVERYTHING))
    whole, again = load_state(str(everything)), load_state(str(tmp_path / "run"))
    assert differences(whole, again, "model", "averaged", "best", "best_val") == []
    keys = ("train_loss", "val_loss", "outside_share", "val_outside_share", "lr")
    assert [[getattr(r, k) for k in keys] for r in whole.history] == [
        [getattr(r, k) for k in keys] for r in again.history
    ]


def test_the_bundle_has_average_and_fit(everything):
    bundle, state = load_bundle(everything / "model"), load_state(str(everything))
    assert (bundle.preprocessing.fit, bundle.preprocessing.margin) == ("lungs-squash", 0.1)
    assert bundle.model.config.output_stride == 16
    assert json.loads((everything / "train.json").read_text())["data"]["fit"] == "lungs-squash"
    assert all(torch.equal(tensor, state.best[name]) for name, tensor in bundle.model.state_dict().items())
    if state.best_epoch == state.epoch:
        assert all(torch.equal(tensor, state.averaged[name]) for name, tensor in state.best.items())
    assert not torch.equal(state.averaged["classifier.weight"], state.model["classifier.weight"])


def test_validation_scores_the_averaged_network(everything, with_lungs):
    from pneumo_ray.data.dataset import load_inputs
    from pneumo_ray.model.precision import amp_dtype, autocast

    _, _, val = load_training_rows(with_lungs)
    bundle, state = load_bundle(everything / "model"), load_state(str(everything))
    pixels = torch.from_numpy(load_inputs(val, 64, None, bundle.preprocessing.fit, bundle.preprocessing.margin))
    device = torch.device("cpu")
    with torch.inference_mode(), autocast(amp_dtype("auto", device), device):
        logits = bundle.model(bundle.preprocessing.normalise(pixels))
    torch.testing.assert_close(state.best_val["logit"].float(), logits.float(), atol=0.05, rtol=0)


@pytest.mark.faults
def test_two_workers_guide_as_one_does(ray_cluster, with_lungs, tmp_path):
    """With BatchNorm frozen nothing but rounding can differ, whichever images with lungs each worker has."""
    frozen = {
        "model": ModelConfig("resnet18", "none", freeze="backbone", dropout=0.5),
        "data": DataConfig(image_size=64),
        "optim": OptimConfig(lr=2e-3, ema=0.5),
        "guide": GuideConfig(weight=5.0),
        "amp": "off",
    }
    for workers in (1, 2):
        fit(config(with_lungs, tmp_path / str(workers), workers=workers, **frozen))
    one, two = (load_state(str(tmp_path / str(workers))) for workers in (1, 2))
    for name in ("train_loss", "outside_share", "val_outside_share", "val_loss"):
        assert [getattr(r, name) for r in two.history] == pytest.approx(
            [getattr(r, name) for r in one.history], rel=1e-3
        ), name
    for field in ("model", "averaged"):
        weights = [vars(state)[field]["classifier.weight"] for state in (one, two)]
        # Adam takes a whole step where rounding turns a gradient of nearly 0 around; those are few.
        assert (weights[0] - weights[1]).abs().mean() < 1e-4
    assert one.history[-1].outside_share < one.history[0].outside_share


def test_a_planned_rate_keeps_its_epochs(everything, with_lungs):
    with pytest.raises(ConfigError, match="begun with epochs 3 and not 5"):
        fit(config(with_lungs, everything, **EVERYTHING | {"epochs": 5}))


def test_a_run_is_not_continued_with_other_lungs(everything, with_lungs, tmp_path):
    manifest = read_manifest(with_lungs)
    quality = ["plausible"] * len(manifest)
    position = manifest.column_names.index("lung_quality")
    write_manifest(manifest.set_column(position, "lung_quality", pa.array(quality)), str(tmp_path / "m.parquet"))
    with pytest.raises(ConfigError, match="other lungs of the same images"):
        fit(config(str(tmp_path / "m.parquet"), everything, **EVERYTHING))


# ---- what is decided before anything is trained, without Ray --------------------------------------------------------


def decided(uri: str, **changes):
    manifest, train, _ = load_training_rows(uri)
    return decide_lungs(config(uri, Path("o"), **changes), manifest, train)


def test_auto_is_lungs_where_there_are_some(without_lungs, with_lungs):
    auto = {"data": DataConfig(image_size=32, fit="auto")}
    for uri, fit_ in ((without_lungs, "squash"), (with_lungs, "lungs-squash")):
        found, use = decided(uri, **auto)
        assert (found.data.fit, use.fit) == (fit_, fit_)


def test_lungs_that_nobody_found_are_refused_or_said(without_lungs):
    uri = without_lungs
    with pytest.raises(ConfigError, match=r"jobs/prepare\.py with --lungs found"):
        decided(uri, data=DataConfig(fit="lungs"))
    assert decided(uri, data=DataConfig(fit="pad"))[1].fit == "pad"
    _, use = decided(uri, guide=GuideConfig(weight=1), augment=AugmentConfig(outside="blur"))
    assert (use.guided, use.maps, use.fingerprint) == (False, None, None)
    assert "--guide.weight and --augment.outside change nothing" in use.sentences[0]


def test_only_used_lungs_identify_a_run(with_lungs):
    assert decided(with_lungs)[1].fingerprint is None
    for changes in (
        {"guide": GuideConfig(weight=1)},
        {"augment": AugmentConfig(outside="black")},
        {"data": DataConfig(image_size=32, fit="pad")},
    ):
        assert decided(with_lungs, **changes)[1].fingerprint is not None


@pytest.mark.parametrize(
    ("kind", "changes", "option"),
    [
        (DataConfig, {"fit": "crop"}, "data.fit"),
        (DataConfig, {"margin": -0.1}, "data.margin"),
        (DataConfig, {"margin": float("nan")}, "data.margin"),
        (GuideConfig, {"weight": -1}, "guide.weight"),
        (GuideConfig, {"target": "lungs"}, "guide.target"),
        (LossConfig, {"smoothing": 1.0}, "loss.smoothing"),
    ],
)
def test_values_that_cannot_work_are_refused(kind, changes, option):
    with pytest.raises(ConfigError, match=option):
        kind(**changes)


def test_smoothing_moves_labels_towards_a_half():
    labels = np.array([0.0, 1.0])
    assert (labels + 0.1 * (0.5 - labels)).tolist() == [0.05, 0.95]
