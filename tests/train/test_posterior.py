"""The Laplace fit as a job on a real Ray: the sum is that of the images, whoever made it, and the bundle keeps it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pneumo_ray.data.dataset import load_inputs
from pneumo_ray.data.prepare import load_training_rows
from pneumo_ray.errors import ConfigError
from pneumo_ray.explain.laplace import Curvature, fit_laplace
from pneumo_ray.model import load_bundle, save_bundle
from pneumo_ray.score.config import ExplainConfig, ScoringScale
from pneumo_ray.score.model_set import load_models
from pneumo_ray.train.config import ScalingConfig, TrainConfig
from pneumo_ray.train.posterior import fit_posterior, posterior_of
from pneumo_ray.train.posterior_config import PosteriorConfig


def config(model: Path, phantom_run: Path, **changes) -> PosteriorConfig:
    options = {"posterior": "both", "scale": ScoringScale(batch_size=16), "amp": "off"} | changes
    return PosteriorConfig(str(model), str(phantom_run / "manifest.parquet"), **options)


@pytest.fixture(scope="module")
def fitted(ray_cluster, model, phantom_run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("laplace") / "model"
    shutil.copytree(model, folder)
    fit_posterior(config(folder, phantom_run))
    return folder


def test_the_fit_takes_resources_of_the_training():
    scaling = ScalingConfig(use_gpu=True, allocator="system", wait_seconds=7.0)
    asked = posterior_of(TrainConfig("manifest", "run", scaling=scaling, posterior="both"), "model")
    assert asked.scale == ScoringScale(use_gpu=True, allocator="system", wait_seconds=7.0)


def covariance(folder: Path) -> torch.Tensor:
    posterior = load_bundle(folder).posterior
    assert posterior is not None
    return posterior.factor.double() @ posterior.factor.double().mT


def test_the_posterior_is_that_of_the_training_images(fitted, model, phantom_run):
    """The same sum in this process, image by image."""
    _, train, _ = load_training_rows(str(phantom_run / "manifest.parquet"))
    bundle = load_bundle(model)
    net = bundle.model
    found = Curvature(torch.cat([net.classifier.weight[0], net.classifier.bias]).detach().double().numpy())
    with torch.inference_mode():
        for row in range(len(train)):
            grey = torch.from_numpy(load_inputs(train.slice(row, 1), 64))
            pooled = net.feature_maps(bundle.preprocessing.normalise(grey)).mean((2, 3))
            found.add(pooled.numpy(), train["label"].to_numpy()[row : row + 1].astype(np.int64))
    expected = fit_laplace(found)
    stored = load_bundle(fitted).posterior
    assert stored is not None
    assert stored.images == len(train)
    assert stored.prior_precision == pytest.approx(expected.prior_precision, rel=1e-4)
    sigma = expected.factor @ expected.factor.T
    assert np.abs(covariance(fitted).numpy() - sigma).max() < 1e-4 * np.abs(sigma).max()


def test_the_number_of_workers_changes_nothing(fitted, model, phantom_run, tmp_path):
    shutil.copytree(model, tmp_path / "model")
    fit_posterior(config(tmp_path / "model", phantom_run, scale=ScoringScale(num_actors=2, batch_size=16)))
    one, two = covariance(fitted), covariance(tmp_path / "model")
    assert (one - two).abs().max() < 1e-6 * one.abs().max()


def test_weights_and_dropout_stay_as_they_were(fitted, model):
    before, after = load_bundle(model), load_bundle(fitted)
    assert after.hash != before.hash
    assert {path.name for path in fitted.iterdir()} == {"model.json", "weights.safetensors", "posterior.safetensors"}
    for name, value in before.model.state_dict().items():
        assert torch.equal(after.model.state_dict()[name], value)
    assert (after.temperature, after.operating_point) == (before.temperature, before.operating_point)
    assert load_models(str(fitted)).posterior == "dropout"
    assert load_models(str(fitted), "laplace").calibration != load_models(str(fitted)).calibration


def test_the_default_moves_without_another_fit(fitted, phantom_run, tmp_path, capsys):
    shutil.copytree(fitted, tmp_path / "model")
    fit_posterior(config(tmp_path / "model", phantom_run))
    assert "nothing to do" in capsys.readouterr().out
    fit_posterior(config(tmp_path / "model", phantom_run, posterior="laplace"))
    assert load_models(str(tmp_path / "model")).posterior == "laplace"
    assert torch.equal(covariance(tmp_path / "model"), covariance(fitted))
    fit_posterior(config(tmp_path / "model", phantom_run, posterior="dropout"))
    assert load_bundle(tmp_path / "model").posterior is None
    assert json.loads((tmp_path / "model" / "model.json").read_text())["format_version"] == 2


def test_another_manifest_is_refused(fitted, phantom_run, tmp_path):
    bundle = load_bundle(fitted)
    save_bundle(
        tmp_path / "model",
        bundle.model,
        preprocessing=bundle.preprocessing,
        provenance={"manifest": {"fingerprint": "another"}},
    )
    with pytest.raises(ConfigError, match=r"is not the one that .* was trained on"):
        fit_posterior(config(tmp_path / "model", phantom_run))


def test_scoring_under_laplace_has_its_own_threshold(fitted, phantom_run, tmp_path):
    from pneumo_ray.evaluate.scores import read_scores
    from pneumo_ray.score.job import explain_archive

    manifest = str(phantom_run / "manifest.parquet")
    for passes in ("exact", 200):
        options = {"manifest": manifest, "amp": "off", "zones": "image", "posterior": "laplace", "passes": passes}
        explain_archive(ExplainConfig(model=str(fitted), out=str(tmp_path / str(passes)), **options))
    exact, sampled = (read_scores(str(tmp_path / name)).ok() for name in ("exact", "200"))
    stored = load_bundle(fitted).posterior
    assert stored is not None
    assert exact.threshold == sampled.threshold == stored.operating_point["threshold"]
    assert exact.calibration == stored.calibration
    assert exact.zone_groups() is None
    for mean, std in (("prob_mean", "prob_std"), ("zone_mean_right_upper", "zone_std_right_upper")):
        standard_error = sampled.numbers(std) / np.sqrt(200)
        assert (np.abs(exact.numbers(mean) - sampled.numbers(mean)) < 5 * standard_error).all()
    assert np.allclose(exact.numbers("logit"), sampled.numbers("logit"), rtol=1e-4, atol=1e-4)
