"""A network of others in a scoring job: made by the user's function, in the same table."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pneumo_ray.config import load_config, save_config
from pneumo_ray.errors import ConfigError, ModelError
from pneumo_ray.explain.foreign import ForeignGradCAM
from pneumo_ray.images.corruptions import CONDITIONS
from pneumo_ray.score.config import ExplainConfig, RobustnessConfig
from pneumo_ray.score.explainer import Explainer, ModelPayload
from pneumo_ray.score.foreign import ForeignSet, ForeignSource
from pneumo_ray.score.silent_config import SilentConfig


def foreign(factory: str = "their_net:whole", layer: str = "0") -> ForeignSet:
    source = ForeignSource(factory, layer)
    return ForeignSet(source, source.make())


def asked(**options: object) -> ExplainConfig:
    options = {"out": "o", "archive": ("x",), "foreign": "their_net:whole", "layer": "0", "amp": "off"} | options
    return ExplainConfig(**options)  # type: ignore[arg-type]


def test_columns_are_those_of_the_engine() -> None:
    models, config = foreign(), asked(passes=4).resolved("tail")
    explainer = Explainer(ModelPayload.of(models, config), config, torch.device("cpu"))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64)).astype(np.uint8)
    found = explainer.columns(pixels, [None] * 3)
    x = models.preprocessing.normalise(torch.from_numpy(pixels))
    engine = ForeignGradCAM(models.model.net, "0", 4, temperature=2.0, intercept=0.5)
    threshold = models.calibration.raw_logit(0.4)
    e = engine(x, threshold_logit=threshold)
    for name in ("logit", "prob_mean", "logit_std", "mutual_information"):
        np.testing.assert_allclose(found[name], getattr(e, name).numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["cam_std"], e.cam_std.flatten(1).numpy(), rtol=1e-4, atol=1e-6)
    assert models.map_size == (8, 8)
    np.testing.assert_array_equal(found["predicted"], e.prob_mean.numpy() >= 0.4)


def test_hash_is_that_of_weights_and_layer() -> None:
    first = foreign()
    assert first.hash == foreign().hash == foreign("their_net:bare").hash
    assert first.hash != foreign(layer="0.2").hash
    with torch.no_grad():
        first.model.net[5].bias[0] += 1e-3  # type: ignore[index]
    assert first.hash != foreign().hash


def test_options_are_refused_by_name(tmp_path: Path) -> None:
    for options, words in (
        ({"model": "m"}, "either --model, or --foreign"),
        ({"layer": None}, "--foreign and --layer belong together"),
        ({"passes": "exact"}, "--foreign has neither closed forms"),
    ):
        with pytest.raises(ConfigError, match=words):
            asked(**options)
    with pytest.raises(ConfigError, match="either --model, or --foreign"):
        ExplainConfig(out="o", archive=("x",))
    assert asked().config_hash != asked(layer="1").config_hash
    save_config(asked(), str(tmp_path / "c.json"))
    assert load_config(ExplainConfig, str(tmp_path / "c.json")) == asked()


def test_functions_that_make_no_network_are_refused() -> None:
    for factory in ("absent_net:whole", "their_net:absent", "their_net"):
        with pytest.raises(ConfigError, match=f"--foreign {factory} cannot be imported"):
            ForeignSource(factory, "0").make()
    with pytest.raises(ModelError, match=r"their_net:nothing returns dict; it must return a torch\.nn\.Module"):
        ForeignSource("their_net:nothing", "0").make()
    with pytest.raises(ConfigError, match="no layer 'absent'"):
        foreign(layer="absent").check(4, 0)


@pytest.mark.ray
def test_an_archive_is_scored_into_the_same_table(ray_cluster: object, phantom_archive: Path, tmp_path: Path) -> None:
    from pneumo_ray.score.job import explain_archive

    config = asked(archive=(str(phantom_archive / "test"),), out=str(tmp_path / "scores"), passes=3)
    summary = explain_archive(config)
    assert summary.num_failed == 0
    table = pq.read_table(tmp_path / "scores" / "part-000000.parquet")
    assert table["cam_std"].null_count == 0
    assert (table["logit_std"].to_numpy() > 0).all()
    assert explain_archive(config).num_rows == summary.num_rows  # finished: nothing is scored twice


def test_other_jobs_take_either_kind_of_model() -> None:
    for make in (
        lambda **options: RobustnessConfig(manifest="m", out="o", **options),
        lambda **options: SilentConfig(archive=("x",), out="o", **options),
    ):
        with pytest.raises(ConfigError, match="either --model, or --foreign"):
            make()
        with pytest.raises(ConfigError, match="--foreign and --layer belong together"):
            make(foreign="their_net:whole")
        with pytest.raises(ConfigError, match="either --model, or --foreign"):
            make(model="m", foreign="their_net:whole", layer="0")
        make(foreign="their_net:whole", layer="0")


@pytest.mark.ray
def test_a_split_is_scored_under_corruptions(ray_cluster: object, phantom_run: Path, tmp_path: Path) -> None:
    from pneumo_ray.score.robustness import measure_robustness

    options = {"foreign": "their_net:whole", "layer": "0", "passes": 2, "amp": "off"}
    manifest = str(phantom_run / "manifest.parquet")
    facts = measure_robustness(RobustnessConfig(manifest=manifest, out=str(tmp_path), **options))  # type: ignore[arg-type]
    assert facts["model_hash"] == foreign().hash
    assert facts["method"]["foreign"] == "their_net:whole"
    table = pq.read_table(tmp_path / "robustness.parquet")
    assert len(table) == facts["pictures"] * len(CONDITIONS)
    assert table["prob_mean"].null_count == 0


@pytest.mark.ray
def test_a_silent_trial_is_of_one_network(ray_cluster: object, phantom_archive: Path, tmp_path: Path) -> None:
    from pneumo_ray.score.silent import score_new

    archive = str(phantom_archive / "test")
    config = SilentConfig(archive=(archive,), out=str(tmp_path), foreign="their_net:whole", layer="0", passes=2)
    assert score_new(config) > 0
    assert score_new(config) == 0
    with pytest.raises(ConfigError, match="silent trial of another model"):
        score_new(replace(config, layer="0.2"))
