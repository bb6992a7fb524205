"""Scores of an ensemble on a real Ray: one row an image under one hash."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pneumo_ray.errors import ConfigError
from pneumo_ray.model import load_bundle
from pneumo_ray.score.config import ExplainConfig
from pneumo_ray.score.job import explain_archive
from pneumo_ray.score.model_set import load_models


@pytest.fixture
def config(phantom_run, members, tmp_path) -> ExplainConfig:
    manifest = str(phantom_run / "manifest.parquet")
    return ExplainConfig(model=tuple(members), out=str(tmp_path / "a"), manifest=manifest, amp="off", zones="image")


def scores(out: str) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(Path(out).glob("*.parquet"))])


def test_each_image_has_one_row_with_ensemble_hash(ray_cluster, config, members, tmp_path):
    """In any order of the members, and with the parts of its variance."""
    explain_archive(config)
    other = replace(config, model=tuple(reversed(members)), out=str(tmp_path / "b"))
    explain_archive(other)
    first, second = scores(config.out), scores(other.out)
    assert first.equals(second)
    assert set(first["model_hash"].to_pylist()) == {load_models(tuple(members)).hash}
    assert load_models(tuple(members)).hash not in {load_bundle(path).hash for path in members}
    assert len(set(first["image_id"].to_pylist())) == len(first) == 80
    total, between, within = (first[f"logit_std{part}"].to_numpy() for part in ("", "_between", "_within"))
    assert np.allclose(total**2, between**2 + within**2, rtol=1e-4)
    assert (between > 0).all()
    run = json.loads((Path(config.out) / "_run.json").read_text())
    assert run["model"]["members"] == sorted(load_bundle(path).hash for path in members)
    assert run["operating_point"]["threshold"] == pytest.approx(0.4)
    assert float(first.schema.metadata[b"threshold"]) == pytest.approx(0.4)
    with pytest.raises(ConfigError, match="scores of another model"):
        explain_archive(replace(config, model=members[0]))


@pytest.mark.faults
def test_a_set_of_one_scores_as_its_model(ray_cluster, config, members, tmp_path):
    alone = replace(config, model=members[1])
    explain_archive(alone)
    explain_archive(replace(config, model=(members[1],), out=str(tmp_path / "b")))
    first, second = scores(alone.out), scores(str(tmp_path / "b"))
    assert first.equals(second)
    assert first["logit_std_between"].null_count == len(first)
