"""Sets of models without Ray: what may be scored as one, and that a set is explained as its members are."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pneumo_ray.errors import ModelError
from pneumo_ray.explain.laplace import Curvature, fit_laplace
from pneumo_ray.model import load_bundle, save_bundle
from pneumo_ray.model.stored_posterior import StoredPosterior
from pneumo_ray.score.config import ExplainConfig, ScoringScale
from pneumo_ray.score.explainer import Explainer, ModelPayload
from pneumo_ray.score.model_set import ModelSet, load_models

Columns = dict[str, np.ndarray]


def columns(models: ModelSet, **options) -> Columns:
    """Return the columns of the scores of five images of noise."""
    config = ExplainConfig(model="", out="", archive=("x",), amp="off", **options)
    config = config.resolved(models.first.model.config.dropout_site, posterior=models.posterior)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 64, 64)).astype(np.uint8)
    explainer = Explainer(ModelPayload.of(models, config), config, torch.device("cpu"))
    found = explainer.columns(pixels, [None] * 5)
    table = explainer.model.facts.table([str(i) for i in range(5)], [None] * 5, found)
    assert len(table) == 5
    return found


def equal(one: Columns, other: Columns) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n], equal_nan=True) for n in one)


@pytest.mark.parametrize("passes", [20, "exact"])
def test_the_order_of_members_changes_no_bit(members: list[str], passes: int | str) -> None:
    one, other = load_models(tuple(members)), load_models(tuple(reversed(members)))
    assert one.hash == other.hash
    assert equal(columns(one, passes=passes), columns(other, passes=passes))


@pytest.mark.parametrize("passes", [20, "exact"])
def test_a_set_of_one_is_the_model_bitwise(members: list[str], passes: int | str) -> None:
    alone, one = load_models(members[1]), load_models((members[1],))
    assert alone.hash == one.hash == load_bundle(members[1]).hash
    found = columns(one, passes=passes)
    assert equal(columns(alone, passes=passes), found)
    assert "logit_std_between" not in found


def test_no_member_stays_compiled_where_one_cannot_be(members: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    models = load_models(tuple(members))
    scale = ScoringScale(batch_size=5)
    config = ExplainConfig(model="", out="", archive=("x",), amp="off", scale=scale).resolved("head")
    compiled: list[object] = []

    def fails(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no compiler on this machine")

    def compile_first(function: Callable[..., torch.Tensor], **_: object) -> Callable[..., torch.Tensor]:
        compiled.append(function)
        return function if len(compiled) == 1 else fails

    monkeypatch.setattr(torch, "compile", compile_first)
    explainer = Explainer(ModelPayload.of(models, config), config, torch.device("cpu"))
    explainer.compile()
    assert len(compiled) == len(members)
    explainer.warm_up()
    assert not explainer.compiled
    pixels = np.random.default_rng(0).integers(0, 256, (5, 64, 64)).astype(np.uint8)
    assert equal(explainer.columns(pixels, [None] * 5), columns(models))


def test_a_set_predicts_by_its_mean_threshold(members: list[str]) -> None:
    models = load_models(tuple(members))
    assert models.operating_point["threshold"] == pytest.approx((0.3 + 0.4 + 0.5) / 3)
    found, alone = columns(models), [columns(load_models(path)) for path in members]
    assert np.allclose(found["prob_mean"], np.mean([one["prob_mean"] for one in alone], 0), atol=1e-6)
    assert np.array_equal(found["predicted"], found["prob_mean"] >= models.operating_point["threshold"])
    total = found["prob_std_between"] ** 2 + found["prob_std_within"] ** 2
    assert np.allclose(found["prob_std"] ** 2, total, rtol=1e-4)


@pytest.fixture
def with_posterior(members: list[str], tmp_path: Path) -> Callable[..., str]:
    """Save the first member with a Laplace posterior: (default=False)."""

    def made(*, default: bool = False) -> str:
        bundle = load_bundle(members[0])
        classifier = bundle.model.classifier
        rng = np.random.default_rng(0)
        curvature = Curvature(torch.cat([classifier.weight[0], classifier.bias]).detach().double().numpy())
        curvature.add(rng.random((100, 512)).astype(np.float32), rng.integers(0, 2, 100))
        fitted = fit_laplace(curvature)
        factor = torch.from_numpy(fitted.factor).float()
        point = {"threshold": 0.6, "rule": "youden"}
        posterior = StoredPosterior(factor, fitted.prior_precision, 100, 1.7, -0.2, point, default)
        save_bundle(tmp_path / "model", bundle.model, preprocessing=bundle.preprocessing, posterior=posterior)
        return str(tmp_path / "model")

    return made


def test_laplace_has_its_own_calibration_and_threshold(with_posterior) -> None:
    folder = with_posterior()
    models = load_models(folder, "laplace")
    assert (models.calibration.temperature, models.calibration.intercept) == (1.7, -0.2)
    assert models.operating_point["threshold"] == 0.6
    sampled, exact = columns(models, passes=2000), columns(models, passes="exact")
    assert np.abs(sampled["logit_std"] / exact["logit_std"] - 1).max() < 0.1
    assert not np.allclose(columns(load_models(folder, "dropout"))["logit_std"], exact["logit_std"])


@pytest.mark.parametrize(("default", "name"), [(False, "dropout"), (True, "laplace")])
def test_the_bundle_says_what_is_taken_by_default(with_posterior, default: bool, name: str) -> None:
    assert load_models(with_posterior(default=default)).posterior == name


def test_a_model_without_a_posterior_says_so(members: list[str]) -> None:
    with pytest.raises(ModelError, match=r"the model has no Laplace posterior; fit it with jobs/posterior\.py"):
        load_models(members[0], "laplace")


def test_a_missing_member_is_refused(members, tmp_path):
    with pytest.raises(ModelError, match="2 of 3 members that were trained together"):
        load_models(tuple(members[:2]))
    with pytest.raises(ModelError, match="is not a complete pneumo_ray model"):
        load_models((*members[:2], str(tmp_path / "absent")))
    with pytest.raises(ModelError, match="names a model twice"):
        load_models((members[0], members[0]))
    with pytest.raises(ModelError, match="names no folder"):
        load_models(())
    load_models(members[0])  # by itself it is a model like any other


def test_mixed_members_are_refused(members, save_member, tmp_path):
    other_size = save_member(tmp_path / "size", 3, size=32)
    with pytest.raises(ModelError, match="no ensemble: their input"):
        load_models((*members, str(other_size)))
    made = [
        load_bundle(save_member(tmp_path / f"data{n}", n, members=1, manifest={"fingerprint": f"{n}"}))
        for n in range(2)
    ]
    with pytest.raises(ModelError, match="no ensemble: their training manifest"):
        ModelSet.of(made)
    with pytest.raises(ModelError, match="2 of 2 models have no Laplace posterior"):
        ModelSet.of([load_bundle(save_member(tmp_path / f"plain{n}", n, members=1)) for n in range(2)], "laplace")
