"""Scores of an ensemble on a real Ray: one row an image, one hash a set, and no set that is none."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pneumo_ray.errors import ConfigError, ModelError
from pneumo_ray.model import ModelConfig, PneumoniaNet, Preprocessing, load_bundle, save_bundle
from pneumo_ray.score.config import ExplainConfig
from pneumo_ray.score.job import explain_archive
from pneumo_ray.score.model_set import ModelSet, load_models


def member(folder: Path, seed: int, size: int = 64, members: int = 3, arch: str = "resnet18", **provenance) -> Path:
    torch.manual_seed(seed)
    net = PneumoniaNet(ModelConfig(arch=arch, weights="none"))
    torch.nn.init.normal_(net.classifier.weight, std=0.1)
    point = {"threshold": 0.3 + 0.1 * seed, "rule": "youden"}
    provenance = {"config": {"members": members, "seed": seed}} | provenance
    save_bundle(
        folder,
        net,
        preprocessing=Preprocessing(size, size + 9),
        temperature=1 + 0.2 * seed,
        operating_point=point,
        provenance=provenance,
    )
    return folder


@pytest.fixture(scope="module")
def members(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("members")
    return [str(member(folder / str(seed), seed)) for seed in range(3)]


@pytest.fixture
def config(phantom_run, members, tmp_path) -> ExplainConfig:
    manifest = str(phantom_run / "manifest.parquet")
    return ExplainConfig(model=tuple(members), out=str(tmp_path / "a"), manifest=manifest, amp="off", zones="image")


def scores(out: str) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(Path(out).glob("*.parquet"))])


def test_an_ensemble_is_one_row_per_image_under_one_hash(ray_cluster, config, members, tmp_path):
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


def test_a_set_of_one_scores_as_the_model_itself(ray_cluster, config, members, tmp_path):
    alone = replace(config, model=members[1])
    explain_archive(alone)
    explain_archive(replace(config, model=(members[1],), out=str(tmp_path / "b")))
    first, second = scores(alone.out), scores(str(tmp_path / "b"))
    assert first.equals(second)
    assert first["logit_std_between"].null_count == len(first)


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


def test_mixed_members_are_refused(members, tmp_path):
    other_size = member(tmp_path / "size", 3, size=32)
    with pytest.raises(ModelError, match="no ensemble: their input"):
        load_models((*members, str(other_size)))
    made = [
        load_bundle(member(tmp_path / f"data{n}", n, members=1, manifest={"fingerprint": f"{n}"})) for n in range(2)
    ]
    with pytest.raises(ModelError, match="no ensemble: their training manifest"):
        ModelSet.of(made)
    with pytest.raises(ModelError, match="2 of 2 models have no Laplace posterior"):
        ModelSet.of([load_bundle(member(tmp_path / f"plain{n}", n, members=1)) for n in range(2)], "laplace")
