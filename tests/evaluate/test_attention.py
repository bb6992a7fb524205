from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch.nn.functional import interpolate

from pneumo_ray.errors import ConfigError, ManifestError
from pneumo_ray.evaluate.attention import map_similarity, measure_localisation, windows
from pneumo_ray.evaluate.localisation import GRID, average_precision, pixel_counts
from pneumo_ray.evaluate.scores import CROP, Scores, read_scores
from pneumo_ray.evaluate.uncertainty import flagged_shares
from pneumo_ray.explain import ZONES
from pneumo_ray.score.schema import ScoreFacts


def scores(maps: np.ndarray, explained: str = "pneumonia", **columns) -> Scores:
    n = len(maps)
    flat = pa.FixedSizeListArray.from_arrays(
        pa.array(maps.reshape(-1).astype(np.float32)), maps.shape[1] * maps.shape[2]
    )
    base = {
        "image_id": [f"{i}" for i in range(n)],
        "status": ["ok"] * n,
        "cam_mean": flat,
        "predicted": pa.array([1] * n, pa.int8()),
        "target": pa.array([1] * n, pa.int8()),
    }
    return Scores(pa.table(base | columns), maps.shape[1:], ZONES, 0.5, explained)


def corner(row: int, column: int) -> np.ndarray:
    made = np.zeros((7, 7))
    made[row, column] = 1
    return made


TOP = (0.0, 0.0, 0.5, 0.5)
RUN = {"model": {"preprocessing": {"resize_size": 224, "image_size": 224}}}


def scored(maps: np.ndarray, **columns) -> Scores:
    """Scores joined with a manifest, of images of one patient each."""
    n = len(maps)
    base = {
        "patient_id": [f"p{i}" for i in range(n)],
        "split": ["test"] * n,
        "label": pa.array([1] * n, pa.int8()),
        "prob_mean": np.full(n, 0.9, np.float32),
    }
    return scores(maps, **(base | columns))


def test_images_with_boxes_whose_pneumonia_is_explained_count():
    maps = np.stack([corner(1, 1), corner(5, 5), corner(1, 1), corner(1, 1), corner(1, 1)])
    found = scored(maps, predicted=pa.array([1, 1, 0, 0, 1], pa.int8()), target=pa.array([1, 1, 1, 0, 1], pa.int8()))
    record, rows = measure_localisation(found, "test", {str(i): (TOP,) for i in range(4)}, RUN)
    hits = {name: group["pointing"] for name, group in record.groups.items()}
    assert (hits["called"].value, hits["called"].n) == (0.5, 2)
    assert (hits["all"].value, hits["all"].n) == (pytest.approx(2 / 3), 3)
    assert hits["called"].chance == pytest.approx(0.25)
    assert record.groups["called"]["energy"].value == pytest.approx(0.5, abs=0.02)
    assert [row[0] for row in rows[1:]] == ["0", "1", "2"]
    assert len(rows[0]) == len(rows[1])


WINDOWS = np.array([(0.25, 0.25, 0.75, 0.75), (-0.25, 0.0, 0.75, 1.0), (0.125, 0.5, 0.625, 1.0)], np.float32)


def cropped(maps: np.ndarray, windows: np.ndarray, **columns) -> Scores:
    return scored(maps, **dict(zip(CROP, windows.T.astype(np.float32), strict=True)), **columns)


def test_a_flat_map_has_the_chance_level():
    """Boxes in fractions of the image, by hand: of the first window [1/4, 3/4]^2 the box covers a quarter."""
    boxes = {"0": ((0.0, 0.0, 0.5, 0.5),), "1": ((0.0, 0.0, 0.25, 1.0),), "2": ((0.125, 0.0, 0.375, 1.0),)}
    record, rows = measure_localisation(cropped(np.ones((3, 7, 7)), WINDOWS), "test", boxes, {})
    area = [0.25, 0.25, 0.5]
    column = {name: [row[number] for row in rows[1:]] for number, name in enumerate(rows[0])}
    for name in ("energy", "iou", "average_precision", "chance"):
        assert column[name] == pytest.approx(area), name
    assert column["dice"] == column["chance_dice"] == pytest.approx([2 * a / (1 + a) for a in area])
    assert column["visible"] == pytest.approx([0.25, 1.0, 0.5])
    group = record.groups["all"]
    assert group["energy"].above_chance == pytest.approx(0, abs=1e-9)
    assert group["pixels"].value == group["pixels"].chance == pytest.approx(np.mean(area))


def test_measures_are_of_the_upsampled_map():
    """The map drawn by torch into a large image at its window, and the boxes drawn there, pixel by pixel."""
    rng, pixels = np.random.default_rng(3), 448
    maps = rng.random((3, 7, 7)).astype(np.float32)
    boxes = {str(i): ((0.3 + i / 16, 0.25, 0.6 + i / 16, 0.55), (0.5, 0.4, 0.7, 0.8)) for i in range(3)}
    _, rows = measure_localisation(cropped(maps, WINDOWS), "test", boxes, {})
    column = {name: [row[number] for row in rows[1:]] for number, name in enumerate(rows[0])}
    for i, (x0, y0, x1, y1) in enumerate((WINDOWS * pixels).astype(int).tolist()):
        fine = interpolate(torch.from_numpy(maps[None, i : i + 1]), size=(y1 - y0, x1 - x0), mode="bilinear")[0, 0]
        truth = np.zeros((pixels, pixels), bool)
        for box in boxes[str(i)]:
            left, top, right, bottom = (round(edge * pixels) for edge in box)
            truth[top:bottom, left:right] = True
        inside = np.pad(truth, pixels)[pixels + y0 : pixels + y1, pixels + x0 : pixels + x1]
        values = fine.numpy()
        marked = values >= 0.5 * values.max()
        assert column["energy"][i] == pytest.approx(values[inside].sum() / values.sum(), abs=0.01)
        assert column["chance"][i] == pytest.approx(inside.mean(), abs=0.01)
        assert column["iou"][i] == pytest.approx((marked & inside).sum() / (marked | inside).sum(), abs=0.02)
        assert column["average_precision"][i] == pytest.approx(
            average_precision_score(inside.ravel(), values.ravel()), abs=0.02
        )


def test_mirrored_maps_boxes_and_windows_keep_every_number():
    """Edges of the boxes lie anywhere between pixels, half a pixel among them: x = k / 448 + 1/4 in a window 1/2 wide."""
    rng = np.random.default_rng(4)
    maps, windows = rng.random((30, 5, 7)), np.repeat(WINDOWS, 10, axis=0)
    corners = rng.integers(0, 300, (30, 2, 2)) / 896
    boxes = {str(i): tuple((x, y, x + 0.25, y + 0.123) for x, y in corners[i] + 0.25) for i in range(30)}
    mirrored = {name: tuple((1 - x1, y0, 1 - x0, y1) for x0, y0, x1, y1 in found) for name, found in boxes.items()}
    turned = np.stack([1 - windows[:, 2], windows[:, 1], 1 - windows[:, 0], windows[:, 3]], axis=1)
    _, first = measure_localisation(cropped(maps, windows), "test", boxes, {})
    _, second = measure_localisation(cropped(maps[:, :, ::-1], turned), "test", mirrored, {})
    for row, other in zip(first[1:], second[1:], strict=True):
        assert row[6:] == pytest.approx(other[6:], abs=1e-4)  # a pixel of a box is far more, a step of a level less


def test_scores_without_window_show_the_centre():
    run = {"model": {"preprocessing": {"resize_size": 256, "image_size": 224}}}
    assert windows(scored(np.ones((1, 1, 1))), run) == [(0.0625, 0.0625, 0.9375, 0.9375)]
    with pytest.raises(ConfigError, match="score the archive again"):
        windows(scored(np.ones((1, 1, 1))), {})


def test_validation_boxes_choose_the_threshold():
    maps = np.stack([corner(1, 1) + 0.3, corner(1, 1) + 0.3])
    found = scored(maps, split=["val", "test"])
    record, _ = measure_localisation(found, "test", {"1": (TOP,)}, RUN)
    assert (record.threshold, record.threshold_from) == (0.5, "fixed")
    record, _ = measure_localisation(found, "test", {"0": (TOP,), "1": (TOP,)}, RUN)
    assert record.threshold_from == "validation"
    assert record.images == 1
    with pytest.raises(ConfigError, match="no box of an image of the split test"):
        measure_localisation(found, "test", {"0": (TOP,)}, RUN)


def test_pooled_pixels_have_intervals_over_patients():
    """The interval holds against a bootstrap that draws whole patients."""
    rng, n = np.random.default_rng(5), 40
    maps = rng.random((n, 4, 4))
    maps[:, 0, 0] += rng.random(n)
    patients = [f"p{i // 2}" for i in range(n)]
    boxes = {str(i): ((0.0, 0.0, 0.4, 0.4),) for i in range(n)}
    record, _ = measure_localisation(scored(maps, patient_id=patients), "test", boxes, RUN)
    pooled = record.groups["all"]["pixels"]
    counts = pixel_counts(maps.astype(np.float32), [[(0, 0, 90, 90)]] * n, (GRID, GRID))
    assert pooled.value == pytest.approx(float(average_precision(counts.sum(0))))
    pairs = counts.reshape(20, 2, *counts.shape[1:]).sum(1)
    drawn = [float(average_precision(pairs[rng.integers(0, 20, 20)].sum(0))) for _ in range(500)]
    low, high = pooled.interval
    assert high - low == pytest.approx(2 * 2.09 * np.std(drawn), rel=0.2)  # Student's t of 19 degrees
    assert low < pooled.value < high


def test_flags_apply_the_threshold_of_validation():
    n = 300
    value = np.concatenate([np.arange(100), np.arange(100) + 0.5, np.full(100, 1000.0)])
    label = np.array([1] * 200 + [0] * 100)
    split = ["val"] * 100 + ["test"] * 200
    found = flagged_shares(
        scores(np.ones((n, 1, 1)), mutual_information=value, label=pa.array(label, pa.int8()), split=split),
        "mutual_information",
    )
    assert found.threshold == pytest.approx(87.12)
    assert found.true_positives == pytest.approx(0.13)
    assert found.false_positives == 1.0
    assert (found.num_true_positives, found.num_false_positives) == (100, 100)


def test_maps_are_compared_image_by_image():
    rng = np.random.default_rng(0)
    maps = rng.random((20, 7, 7))
    a = scores(maps)
    assert map_similarity(a, replace(a, table=a.table.take(list(range(20))[::-1]))) == pytest.approx(1.0)
    assert abs(map_similarity(a, scores(rng.random((20, 7, 7))))) < 0.15


def test_maps_of_different_classes_are_not_compared():
    maps = np.random.default_rng(0).random((4, 7, 7))
    flipped = scores(np.concatenate([1 - maps[:2], maps[2:]]), target=pa.array([0, 0, 1, 1], pa.int8()))
    assert map_similarity(scores(maps), flipped) == pytest.approx(1.0)


def test_scores_are_read_back_and_joined(tmp_path):
    facts = ScoreFacts((2, 2), "m", "c", 0.5, 1.0, {"target": "pneumonia"})
    for part in range(2):
        names = [f"{part}{i}" for i in range(3)]
        pq.write_table(facts.table(names, [("read", "x: y")] * 3, {}), tmp_path / f"part-{part}.parquet")
    with pytest.raises(ManifestError, match="not finished"):
        read_scores(str(tmp_path))
    (tmp_path / "_run.json").write_text("{}")
    found = read_scores(str(tmp_path))
    assert np.isnan(found.maps("cam_mean")).all()
    assert len(found.table) == 6
    assert len(found.ok().table) == 0
    manifest = pa.table(
        {
            "image_id": ["11", "00"],
            "label": [1, 0],
            "split": ["val", "test"],
            "subtype": ["a", "b"],
            "patient_id": ["p", "q"],
        }
    )
    joined = found.joined(manifest)
    assert joined.table["label"].to_pylist() == [0, None, None, None, 1, None]
    assert joined.of_split("val").table["image_id"].to_pylist() == ["11"]


def test_a_folder_without_scores_is_named(tmp_path):
    with pytest.raises(ManifestError, match="no Parquet"):
        read_scores(str(tmp_path))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    with pytest.raises(ManifestError, match="not hold scores"):
        read_scores(str(tmp_path))
