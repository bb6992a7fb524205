"""The job that trains the lung segmenter, on a real Ray: what it writes, that it continues exactly, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pneumo_ray.anatomy.masks import MASK_COLUMN, decode_mask, encode_mask
from pneumo_ray.anatomy.segmenter import load_segmenter
from pneumo_ray.data.archive import list_archives
from pneumo_ray.data.inspect import InspectConfig, inspect_entries
from pneumo_ray.data.manifest import read_manifest, usable
from pneumo_ray.errors import ConfigError, ManifestError
from pneumo_ray.train.batches import PADDING
from pneumo_ray.train.lung_config import LungsConfig
from pneumo_ray.train.lung_source import LungSource, draw_phantoms
from pneumo_ray.train.lungs import fit_lungs, with_masks
from pneumo_ray.train.state import load_state


def config(phantom_run: Path, phantom_archive: Path, out: Path, **changes) -> LungsConfig:
    base = LungsConfig(
        manifest=str(phantom_run / "manifest.parquet"),
        masks=str(phantom_archive / "lungs.parquet"),
        out=str(out),
        phantoms=8,
        batch_size=8,
        epochs=2,
    )
    return replace(base, **changes)


@pytest.fixture(scope="module")
def source(phantom_run, phantom_archive) -> LungSource:
    manifest = read_manifest(str(phantom_run / "manifest.parquet"))
    masks = dict(zip(*pq.read_table(phantom_archive / "lungs.parquet").to_pydict().values(), strict=True))

    def rows(split):
        table = usable(manifest, split).combine_chunks()
        return table.append_column(MASK_COLUMN, [[masks[name] for name in table["image_id"].to_pylist()]])

    return LungSource(rows("train"), rows("val"), *draw_phantoms(5), seed=0, batch_size=8)


def test_an_epoch_has_images_and_phantoms_once(source):
    schedule = source.schedule(1)
    rows = np.concatenate([source.batch(step, schedule)["row"] for step in range(schedule.train_steps)])
    counts = np.bincount(rows, minlength=source.num_train)
    assert len(counts) == source.num_train
    assert counts.min() == 1
    assert counts.sum() == schedule.train_slots


def test_two_workers_see_the_batches_of_one(source):
    one, two = source.schedule(1), source.schedule(2)
    whole = source.batch(1, one)
    parts = [source.batch(ticket, two) for ticket in (2, 3)]
    for name in ("pixels", "mask", "row"):
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])


def test_validation_has_every_image_once_unchanged(source):
    schedule = source.schedule(1)
    batches = [source.batch(schedule.train_steps + step, schedule) for step in range(schedule.val_steps)]
    rows = np.concatenate([batch["row"] for batch in batches])
    assert rows[rows != PADDING].tolist() == list(range(len(source.val)))
    assert batches[0]["mask"][0].mean() > 20


def test_a_run_writes_weights_and_measures(ray_cluster, phantom_run, phantom_archive, tmp_path):
    facts = fit_lungs(config(phantom_run, phantom_archive, tmp_path))
    segmenter = load_segmenter(str(tmp_path / "lungs.safetensors"))
    assert json.loads((tmp_path / "dice.json").read_text()) == facts
    assert facts["hash"] == segmenter.hash
    measured = facts["splits"]["val"]
    assert measured["dice"]["all"]["images"] == measured["images"] > 0
    assert len(measured["conditions"]) == 19
    assert 0.5 < measured["dice_of_mean_mask"] < 1
    assert load_state(str(tmp_path)).epoch == 2
    text = json.dumps(segmenter.provenance)
    assert str(tmp_path) not in text
    assert "person" not in text


@pytest.mark.faults
def test_a_run_that_stopped_continues_exactly(ray_cluster, phantom_run, phantom_archive, tmp_path):
    """The state of the first epoch is what an interruption leaves: removing the later one and repeating the command ends alike."""
    whole = config(phantom_run, phantom_archive, tmp_path)
    fit_lungs(whole)
    ended = load_state(str(tmp_path)).model
    (tmp_path / "state" / "epoch-00002.pt").unlink()
    fit_lungs(whole)
    for name, tensor in load_state(str(tmp_path)).model.items():
        torch.testing.assert_close(tensor, ended[name], rtol=0, atol=0)


@pytest.mark.faults
def test_other_masks_do_not_continue_a_run(ray_cluster, phantom_run, phantom_archive, tmp_path):
    fit_lungs(config(phantom_run, phantom_archive, tmp_path / "run", epochs=1))
    with pytest.raises(ConfigError, match="other images, masks or options"):
        fit_lungs(config(phantom_run, phantom_archive, tmp_path / "run", epochs=1, seed=1))


def test_mistakes_are_one_sentence(phantom_run, phantom_archive, tmp_path):
    good = config(phantom_run, phantom_archive, tmp_path)
    with pytest.raises(ManifestError, match="does not exist"):
        fit_lungs(replace(good, masks=str(tmp_path / "gone.parquet")))
    table = pq.read_table(phantom_archive / "lungs.parquet")
    broken = [b"text" if i == 3 else png for i, png in enumerate(table[MASK_COLUMN].to_pylist())]
    pq.write_table(table.set_column(1, MASK_COLUMN, [broken]), tmp_path / "broken.parquet")
    with pytest.raises(ManifestError, match=r"the mask of .*jpeg in --masks is no PNG"):
        fit_lungs(replace(good, masks=str(tmp_path / "broken.parquet")))
    wide = encode_mask(np.ones((100, 300), bool))
    shaped = [wide if i == 3 else png for i, png in enumerate(table[MASK_COLUMN].to_pylist())]
    pq.write_table(table.set_column(1, MASK_COLUMN, [shaped]), tmp_path / "shaped.parquet")
    with pytest.raises(ManifestError, match=r"the mask of .*jpeg in --masks has 300 x 100 pixels and the image 128 x"):
        fit_lungs(replace(good, masks=str(tmp_path / "shaped.parquet")))
    tests_only = [
        png if name.startswith("test/") else None for name, png in zip(*table.to_pydict().values(), strict=True)
    ]
    pq.write_table(table.set_column(1, MASK_COLUMN, [tests_only]), tmp_path / "test.parquet")
    with pytest.raises(ManifestError, match="no image of split train"):
        fit_lungs(replace(good, masks=str(tmp_path / "test.parquet")))
    for wrong in ({"epochs": 0}, {"lr": -1.0}, {"phantoms": -1}):
        with pytest.raises(ConfigError):
            replace(good, **wrong)


def test_masks_without_two_lungs_are_counted(phantom_archive, tmp_path, capsys):
    """Empty, full and true masks, of three images; and one in the shape of the original of a squashed file."""
    entries = list(list_archives([str(phantom_archive)]))[:4]
    manifest = inspect_entries(entries, InspectConfig())
    names = manifest["image_id"].to_pylist()
    true = dict(zip(*pq.read_table(phantom_archive / "lungs.parquet").to_pydict().values(), strict=True))
    long = encode_mask(cv2.resize(decode_mask(true[names[3]]).astype(np.uint8), (600, 200)) > 0)
    masks = [encode_mask(np.full((64, 64), full)) for full in (False, True)] + [true[names[2]], long]
    pq.write_table(pa.table({"image_id": names, MASK_COLUMN: masks}), tmp_path / "masks.parquet")
    place = manifest.column_names.index("shape_width")
    for offset, value in enumerate((600.0, 200.0)):
        column = pa.array([None, None, None, value], pa.float32())
        manifest = manifest.set_column(place + offset, manifest.schema.field(place + offset), column)
    rows = with_masks(manifest, str(tmp_path / "masks.parquet"))
    assert rows[MASK_COLUMN].to_pylist() == masks
    assert (
        "2 of 4 masks cannot be the two lungs of a frontal chest (1 no_lungs, 1 too_large)" in capsys.readouterr().out
    )
