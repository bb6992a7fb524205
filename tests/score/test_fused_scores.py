"""Scores with fused maps: in the columns and the metadata that every reader takes, and never beside others."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pneumo_ray.errors import ConfigError, ModelError
from pneumo_ray.evaluate.scores import read_scores
from pneumo_ray.explain import BayesGradCAM
from pneumo_ray.model import load_bundle
from pneumo_ray.score.config import ExplainConfig
from pneumo_ray.score.explainer import Explainer, ModelPayload
from pneumo_ray.score.model_set import load_models


def asked(model: Path, **options: object) -> ExplainConfig:
    options = {"out": "o", "archive": ("x",), "amp": "off", "passes": 4, "maps": "fused"} | options
    return ExplainConfig(model=str(model), **options).resolved("head")  # type: ignore[arg-type]


def test_columns_hold_fused_maps(model: Path) -> None:
    bundle, config = load_bundle(model), asked(model)
    explainer = Explainer(ModelPayload.from_bundle(bundle, config), config, torch.device("cpu"))
    assert explainer.model.facts.map_size == (4, 4)  # layer3 of a ResNet at 64 px; its maps are 2 x 2
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64)).astype(np.uint8)
    found = explainer.columns(pixels, [None] * 3)
    table = explainer.model.facts.table(list("abc"), [None] * 3, found)
    assert json.loads(table.schema.metadata[b"map_shape"]) == [4, 4]
    assert json.loads(table.schema.metadata[b"method"])["maps"] == "fused"
    x = bundle.preprocessing.normalise(torch.from_numpy(pixels))
    engine = BayesGradCAM(bundle.model, 4, temperature=1.5, intercept=0.4, maps="fused")
    e = engine(x, threshold_logit=explainer.model.facts.threshold_logit)
    for name in ("cam_mean", "cam_std"):
        np.testing.assert_allclose(found[name], getattr(e, name).flatten(1), rtol=1e-3, atol=1e-6)
    last = replace(config, maps="last")
    plain = Explainer(ModelPayload.from_bundle(bundle, last), last, torch.device("cpu")).columns(pixels, [None] * 3)
    for name in ("prob_mean", "logit_std", "mutual_information"):  # a division of evidence changes no opinion
        np.testing.assert_allclose(found[name], plain[name], rtol=1e-3, atol=1e-5)


def test_the_method_omits_last_stage_maps(model: Path) -> None:
    """So that scoring folders of earlier versions are continued, and their site.json fits."""
    config = asked(model, maps="last")
    assert set(config.method) == {"passes", "seed", "target", "zones", "refer_z", "amp", "posterior"}
    text = json.dumps({**config.method, "columns": 4}, sort_keys=True)
    assert config.config_hash == hashlib.sha256(text.encode()).hexdigest() != asked(model).config_hash


def test_what_cannot_be_fused_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"--maps fused is for models of jobs/train\.py"):
        ExplainConfig(out="o", archive=("x",), foreign="a:b", layer="0", maps="fused")
    from pneumo_ray.score import model_set

    def flat(*_: object) -> None:
        raise ModelError("no stage before")

    monkeypatch.setattr(model_set, "finer_step", flat)
    with pytest.raises(ModelError, match="no stage before"):
        load_models(str(model)).map_size_of("fused")


@pytest.mark.ray
def test_archives_are_scored_and_read_with_fused_maps(
    ray_cluster: object, model: Path, phantom_archive: Path, tmp_path: Path
) -> None:
    from pneumo_ray.score.job import explain_archive

    out = str(tmp_path / "scores")
    config = replace(asked(model, out=out, archive=(str(phantom_archive / "test"),)), zones=None, posterior=None)
    assert explain_archive(config).num_failed == 0
    scores = read_scores(out)
    assert scores.map_size == (4, 4)
    assert np.isfinite(scores.maps("cam_std")).all()
    assert json.loads((tmp_path / "scores" / "_run.json").read_text())["config"]["maps"] == "fused"
    with pytest.raises(ConfigError, match="was begun with maps fused and not last"):
        explain_archive(replace(config, maps="last"))
