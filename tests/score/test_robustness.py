"""The robustness job on a real Ray: its undisturbed images are those of jobs/explain.py, and none is lost."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from pneumo_ray.anatomy.frames import cell_means
from pneumo_ray.anatomy.masks import decode_mask
from pneumo_ray.cpu_shares import ActorShares
from pneumo_ray.data.manifest import read_manifest, write_manifest
from pneumo_ray.errors import ConfigError, ManifestError, ModelError
from pneumo_ray.explain import BayesGradCAM
from pneumo_ray.images.corruptions import CONDITIONS, apply_condition
from pneumo_ray.model import load_bundle
from pneumo_ray.score import robustness
from pneumo_ray.score.config import ExplainConfig, RobustnessConfig, ScoringScale
from pneumo_ray.score.decode import load_image
from pneumo_ray.score.explainer import ModelPayload
from pneumo_ray.score.job import explain_archive
from pneumo_ray.score.listing import LUNG_COLUMNS
from pneumo_ray.score.model_set import load_models
from pneumo_ray.score.robustness import measure_robustness

LUNGS = (20, 10, 110, 80)
"""In pixels of the phantoms, which are 128 wide."""


@pytest.fixture(scope="module")
def marked(phantom_run, tmp_path_factory) -> Path:
    """The phantoms' manifest with masks, boxes and nothing of the lungs in turn, and one test file cut in half."""
    folder = tmp_path_factory.mktemp("marked")
    table = read_manifest(str(phantom_run / "manifest.parquet"))
    uris, splits = table["uri"].to_pylist(), table["split"].to_pylist()
    row = splits.index("test")
    data = Path(uris[row]).read_bytes()
    uris[row] = str(folder / "cut.jpeg")
    Path(uris[row]).write_bytes(data[: len(data) // 2])
    table = table.set_column(table.column_names.index("uri"), "uri", pa.array(uris))
    for name, value in zip(LUNG_COLUMNS, LUNGS, strict=True):
        table = table.append_column(
            name, pa.array([value if i % 3 == 1 else None for i in range(len(table))], pa.float64())
        )
    for name in ("lung_quality", "lung_mask"):
        kept = [value if i % 3 == 0 else None for i, value in enumerate(table[name].to_pylist())]
        table = table.set_column(table.column_names.index(name), name, pa.array(kept, table[name].type))
    write_manifest(table, str(folder / "manifest.parquet"))
    return folder / "manifest.parquet"


@pytest.fixture(scope="module")
def measured(ray_cluster, marked, model, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("robustness")
    measure_robustness(RobustnessConfig(str(model), manifest=str(marked), out=str(out), amp="off"))
    return out


@pytest.mark.parametrize("number", [5, 100])
def test_no_batch_is_larger_than_a_block(number, model, monkeypatch):
    """A compiled network pads every block to the batch, so a larger batch would compute blank images."""
    config = RobustnessConfig(str(model), manifest="", out="", scale=ScoringScale(batch_size=64)).scoring()
    config = config.resolved("head")
    payload = ModelPayload.of(load_models(config.model), config)
    listed = pa.table({"image_id": [str(i) for i in range(number)]})
    monkeypatch.setattr(robustness, "fetch_once", lambda _: robustness._SharedArguments(listed, 16, payload, config))
    ready = []
    monkeypatch.setattr(robustness, "make_ready", lambda explainer, *_: ready.append(explainer.at_once))
    robustness._ConditionActor(None, ActorShares(1, 1, 1.0, 0, 1))
    assert ready == [min(number, 16)]


def rows(out: Path) -> pa.Table:
    return pq.read_table(out / "robustness.parquet")


def test_even_cut_images_have_one_row_per_condition(measured, marked):
    table, facts = rows(measured), json.loads((measured / "robustness.json").read_text())
    manifest = read_manifest(str(marked))
    names = set(manifest.filter(pc.equal(manifest["split"], "test"))["image_id"].to_pylist())
    keys = list(zip(*(table[name].to_pylist() for name in ("image_id", "condition", "severity")), strict=True))
    assert len(set(keys)) == len(keys) == len(names) * len(CONDITIONS)
    assert {key[0] for key in keys} == names
    failed = table.filter(pc.equal(table["status"], "failed"))
    assert len(failed) == failed["prob_mean"].null_count == len(CONDITIONS)
    assert (facts["pictures"], facts["failed"], facts["failures"]) == (len(names), 1, {"decode: truncated": 1})
    assert {record["failed"] for record in facts["conditions"]} == {1}
    assert {record["n"] for record in facts["conditions"]} == {len(names) - 1}


def test_undisturbed_images_score_what_jobs_explain_gives_them(measured, marked, model, tmp_path):
    explain_archive(ExplainConfig(model=str(model), out=str(tmp_path), manifest=str(marked), amp="off"))
    explained = pa.concat_tables([pq.read_table(path) for path in sorted(tmp_path.glob("*.parquet"))])
    plain = rows(measured).filter(pc.equal(rows(measured)["condition"], "as_it_is"))
    place = pc.index_in(plain["image_id"], value_set=explained["image_id"].combine_chunks())
    explained = explained.take(place)
    assert len(plain) > 10
    assert plain["status"].to_pylist() == explained["status"].to_pylist()
    for name in ("prob_mean", "logit", "logit_std"):  # an image alone in a batch is rounded otherwise than among others
        is_ok = pc.equal(plain["status"], "ok")
        values, expected = (table[name].filter(is_ok).to_numpy() for table in (plain, explained))
        np.testing.assert_allclose(values, expected, rtol=0, atol=2e-6)
        assert plain[name].is_null().equals(explained[name].is_null())


def test_condition_scores_equal_the_engine_with_own_lungs(measured, marked, model):
    """A phantom becomes 73 x 73, and the crop of 64 begins at 4: a corner of the box is round(73 c / side) - 4."""
    bundle, manifest = load_bundle(model), read_manifest(str(marked)).to_pylist()
    engine = BayesGradCAM(bundle.model, passes=200, seed=0, temperature=bundle.temperature, intercept=bundle.intercept)
    found = {
        (row["image_id"], row["condition"], row["severity"]): row["prob_mean"] for row in rows(measured).to_pylist()
    }
    chosen = [row for row in manifest if row["split"] == "test" and found[row["image_id"], "as_it_is", 0] is not None]
    kinds = {"mask" if row["lung_mask"] else "box" if row["lung_x0"] else "central" for row in chosen[:5]}
    assert kinds == {"mask", "box", "central"}
    for row in chosen[:5]:
        image = load_image(row["uri"], None, None, bundle.preprocessing)
        lungs = None
        if row["lung_mask"] is not None:
            lungs = cell_means(decode_mask(row["lung_mask"]), (64, 64), (4 / 73, 4 / 73, 68 / 73, 68 / 73)) >= 0.5
        elif row["lung_x0"] is not None:
            scale = np.array([73 / row["width"], 73 / row["height"]] * 2)
            x0, y0, x1, y1 = (np.round(np.array(LUNGS) * scale) - 4).clip(0, 64).astype(int).tolist()
            lungs = (x0, y0, x1, y1)
        made = np.stack([apply_condition(image, condition, row["image_id"], 0, lungs) for condition in CONDITIONS])
        e = engine(bundle.preprocessing.normalise(torch.from_numpy(made)))
        expected = [found[row["image_id"], condition.name, condition.severity] for condition in CONDITIONS]
        assert np.allclose(e.prob_mean, expected, atol=1e-5)


def test_batches_actors_and_order_change_only_rounding(measured, marked, model, tmp_path):
    manifest = read_manifest(str(marked))
    shuffled = manifest.take(np.random.default_rng(0).permutation(len(manifest)))
    write_manifest(shuffled, str(tmp_path / "shuffled.parquet"))
    scale = ScoringScale(num_actors=2, batch_size=7)
    asked = RobustnessConfig(
        str(model),
        manifest=str(tmp_path / "shuffled.parquet"),
        out=str(tmp_path / "out"),
        amp="off",
        scale=scale,
    )
    measure_robustness(asked)
    keys = [("image_id", "ascending"), ("condition", "ascending"), ("severity", "ascending")]
    first, other = (rows(out).sort_by(keys) for out in (measured, tmp_path / "out"))
    assert first.select(["image_id", "condition", "severity", "label"]).equals(
        other.select(["image_id", "condition", "severity", "label"])
    )
    for name in ("prob_mean", "logit", "logit_std"):
        a, b = (table[name].to_numpy().astype(float) for table in (first, other))
        assert np.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_the_files_agree_and_name_the_model(measured, model):
    facts = json.loads((measured / "robustness.json").read_text())
    assert facts["model_hash"] == load_bundle(model).hash
    assert rows(measured).schema.metadata[b"model_hash"].decode() == facts["model_hash"]
    assert facts["threshold"] == 0.5
    counts = [facts["lung_boxes"][name] for name in ("masks", "manifest", "central")]
    assert sum(counts) == facts["pictures"]
    assert min(counts) > 0
    assert facts["metadata_only"]["fitted_on"] > 0
    with open(measured / "robustness.csv", newline="") as file:
        cells = list(csv.DictReader(file))
    assert [row["condition"] for row in cells] == [condition.name for condition in CONDITIONS]
    assert float(cells[0]["auc"]) == facts["conditions"][0]["values"]["auc"]


def test_a_single_class_is_measured_where_possible(ray_cluster, phantom_run, model, tmp_path):
    manifest = read_manifest(str(phantom_run / "manifest.parquet"))
    keep = pc.or_(pc.equal(manifest["label"], 1), pc.not_equal(manifest["split"], "test"))
    write_manifest(manifest.filter(pc.fill_null(keep, False)), str(tmp_path / "manifest.parquet"))
    numbers = measure_robustness(
        RobustnessConfig(
            str(model), manifest=str(tmp_path / "manifest.parquet"), out=str(tmp_path / "out"), passes=2, amp="off"
        )
    )
    assert (numbers["normal"], numbers["pneumonia"]) == (0, numbers["pictures"])
    for record in numbers["conditions"]:
        assert record["values"]["auc"] is record["values"]["specificity"] is record["auc_difference"] is None
        assert record["values"]["recall"] is not None
    assert "one class" in numbers["metadata_only"]["reason"]


def test_unusable_settings_give_one_sentence_and_no_files(marked, model, tmp_path):
    table = read_manifest(str(marked))
    unlabelled = table.set_column(table.column_names.index("label"), "label", pa.nulls(len(table), table["label"].type))
    write_manifest(unlabelled, str(tmp_path / "unlabelled.parquet"))
    out = str(tmp_path / "out")
    with pytest.raises(ModelError, match="not a complete"):
        measure_robustness(RobustnessConfig(str(tmp_path / "nowhere"), manifest=str(marked), out=out))
    with pytest.raises(ManifestError, match="no labelled images in the split test"):
        measure_robustness(RobustnessConfig(str(model), manifest=str(tmp_path / "unlabelled.parquet"), out=out))
    with pytest.raises(ConfigError, match="split must be"):
        RobustnessConfig(str(model), manifest=str(marked), out=out, split="holdout")
    assert not (tmp_path / "out").exists()
