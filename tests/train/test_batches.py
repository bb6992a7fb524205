import numpy as np
import pyarrow as pa
import pytest

from pneumo_ray.data.manifest import usable
from pneumo_ray.data.prepare import load_training_rows
from pneumo_ray.data.sampling import epoch_plan
from pneumo_ray.errors import ManifestError
from pneumo_ray.images.augment_config import AugmentConfig
from pneumo_ray.train.batches import PADDING, BatchSource


@pytest.fixture(scope="module")
def source(phantom_run) -> BatchSource:
    _, train, val = load_training_rows(str(phantom_run / "manifest.parquet"))
    return BatchSource(
        train=train,
        val=val,
        image_size=32,
        balance="copies",
        augment=AugmentConfig(),
        seed=3,
        batch_size=8,
        cache_folder=str(phantom_run / "cache-256"),
    )


def epoch(source: BatchSource, world_size: int, number: int) -> list[dict]:
    schedule = source.schedule(world_size)
    first = number * schedule.tickets_per_epoch
    return [
        source.batch(t, schedule) | {"position": schedule.position(t)}
        for t in range(first, first + schedule.tickets_per_epoch)
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5, 8])
def test_an_epoch_holds_plan_and_validation_once(source, world_size):
    batches = epoch(source, world_size, 2)
    trained = np.concatenate([b["row"] for b in batches if b["position"].phase == "train"])
    plan = epoch_plan(source.train_labels, balance="copies", seed=3, epoch=2, batch_size=8)
    assert np.array_equal(trained[trained != PADDING], plan["row"].to_numpy())
    validated = np.concatenate([b["row"] for b in batches if b["position"].phase == "val"])
    assert sorted(validated[validated != PADDING]) == list(range(len(source.val)))
    assert {b["position"].epoch for b in batches} == {2}
    assert {len(b["pixels"]) for b in batches} == {-(-8 // world_size)}
    shares = {int((b["row"] != PADDING).sum()) for b in batches if b["position"].phase == "train"}
    assert shares == {8 // world_size, -(-8 // world_size)}, "as even as can be"


def test_workers_do_not_change_pixels(source):
    alone, of_three, of_four = (
        np.concatenate(
            [b["pixels"][b["row"] != PADDING] for b in epoch(source, n, 1) if b["position"].phase == "train"]
        )
        for n in (1, 3, 4)
    )
    assert np.array_equal(alone, of_three)
    assert np.array_equal(alone, of_four)


def test_labels_belong_to_their_pixels(source):
    for batch in epoch(source, 2, 0):
        rows = batch["row"][batch["row"] != PADDING]
        table = source.train if batch["position"].phase == "train" else source.val
        assert np.array_equal(batch["label"][: len(rows)], table["label"].to_numpy()[rows])


def test_ranks_take_turns(source):
    schedule = source.schedule(4)
    assert [schedule.position(t).rank for t in range(8)] == [0, 1, 2, 3] * 2
    assert schedule.position(schedule.tickets_per_epoch).epoch == 1


def test_cache_and_originals_give_equal_pixels(source):
    from dataclasses import replace

    schedule = source.schedule(1)
    with_cache, without = source.batch(0, schedule), replace(source, cache_folder=None).batch(0, schedule)
    assert np.array_equal(with_cache["pixels"], without["pixels"])


def test_an_image_that_vanished_is_named(source):
    from dataclasses import replace

    gone = source.train.set_column(
        source.train.column_names.index("uri"), "uri", pa.array(["/nowhere.jpg"] * len(source.train))
    )
    with pytest.raises(ManifestError, match="was readable when the manifest was made"):
        replace(source, train=gone, cache_folder=None).batch(0, source.schedule(1))


def test_training_needs_labels_of_both_classes(phantom_run, tmp_path):
    from pneumo_ray.data.manifest import read_manifest, write_manifest

    manifest = read_manifest(str(phantom_run / "manifest.parquet"))
    labels = manifest["label"].to_numpy()
    write_manifest(manifest.filter(pa.array(labels == 1)), str(tmp_path / "one.parquet"))
    with pytest.raises(ManifestError, match="only one class"):
        load_training_rows(str(tmp_path / "one.parquet"))
    column = manifest.column_names.index("label")
    write_manifest(
        manifest.set_column(column, "label", pa.nulls(len(manifest), pa.int8())), str(tmp_path / "none.parquet")
    )
    with pytest.raises(ManifestError, match="no labelled image"):
        load_training_rows(str(tmp_path / "none.parquet"))
    assert len(usable(manifest)) == len(manifest)
