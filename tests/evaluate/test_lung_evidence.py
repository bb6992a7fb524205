"""Evidence in the lungs beside the lungs' share of the area, by hand and against the operator of scoring."""

import numpy as np
import pyarrow as pa
import pytest

from pneumo_ray.anatomy.masks import encode_mask
from pneumo_ray.evaluate.lung_evidence import Views, lung_areas, lung_evidence
from pneumo_ray.evaluate.scores import CROP, Scores
from pneumo_ray.explain import ZONES
from pneumo_ray.explain.lung_zones import lung_share_operator

MASK = np.zeros((128, 128), bool)
MASK[32:96, 16:56] = MASK[32:96, 72:112] = True
WINDOWS = np.array([(0, 0, 1, 1), (0.125, 0.25, 0.875, 0.75), (-0.25, -0.1, 1.25, 1.1), (0.3, 0.4, 0.9, 0.8)])


def scores(windows: np.ndarray, share: list[float | None], peak: list[bool | None], quality: list[str], **columns):
    n = len(windows)
    base = {
        "image_id": [str(i) for i in range(n)],
        "label": pa.array([1] * n, pa.int8()),
        "predicted": pa.array([1] * n, pa.int8()),
        "target": pa.array([1] * n, pa.int8()),
        "patient_id": [f"p{i}" for i in range(n)],
        "lung_quality": pa.array(quality, pa.string()),
        "lung_share": pa.array(share, pa.float32()),
        "peak_in_lungs": pa.array(peak, pa.bool_()),
        "lung_mask": [encode_mask(MASK)] * n,
    }
    base |= dict(zip(CROP, windows.T.astype(np.float32), strict=True))
    return Scores(pa.table(base | columns), (7, 7), ZONES, 0.5, "pneumonia", "lungs")


def test_the_area_is_a_flat_maps_share():
    areas = lung_areas(scores(WINDOWS, [0.5] * 4, [True] * 4, ["plausible"] * 4))
    assert areas[:3] == pytest.approx([0.3125, 0.3125 / 0.375, 0.3125 / (1.5 * 1.2)])
    for area, window in zip(areas, WINDOWS.tolist(), strict=True):
        operator = lung_share_operator(MASK, (7, 7), (224, 224), tuple(window)).sum(1)
        assert area == pytest.approx(float(operator[0] / operator[1]), abs=1e-5)


def test_shares_peaks_views_and_chance_by_hand():
    quality = ["plausible", "plausible", "one_lung", "plausible"]
    found = lung_evidence(
        scores(
            WINDOWS, [0.9, 0.7, None, None], [True, False, None, None], quality, label=pa.array([1, 1, 1, 0], pa.int8())
        )
    )
    assert found is not None
    assert found.views == Views(frontal=3, doubtful=1)
    assert found.quality == {"plausible": 3, "one_lung": 1}
    assert found.zones_of == "lungs"
    groups = {group.images: group for group in found.groups}
    assert list(groups) == ["normal", "pneumonia", "true negative", "false positive", "false negative", "true positive"]
    ill = groups["true positive"]
    assert (ill.lung_share.value, ill.lung_share.n) == (pytest.approx(0.8), 2)
    assert ill.lung_share.chance == pytest.approx((0.3125 + 0.3125 / 0.375) / 2)
    assert ill.peak_in_lungs.value == 0.5
    assert groups["normal"].lung_share.value is None


def test_views_of_a_table_are_not_counted():
    found = lung_evidence(scores(WINDOWS, [0.5] * 4, [True] * 4, ["plausible"] * 4, view=["AP", "PA", "AP", "PA"]))
    assert found is not None
    assert found.views == Views(frontal=4, doubtful=0)


def test_without_masks_chance_is_not_known():
    whole = scores(WINDOWS, [0.5] * 4, [True] * 4, ["plausible"] * 4)
    found = lung_evidence(Scores(whole.table.drop_columns(["lung_mask"]), (7, 7), ZONES, 0.5, "pneumonia"))
    assert found is not None
    share = found.groups[1].lung_share
    assert (share.value, share.chance, share.above_chance) == (0.5, None, None)


def test_scores_without_lungs_have_no_such_record():
    assert lung_evidence(scores(WINDOWS, [None] * 4, [None] * 4, [None] * 4)) is None
    old = scores(WINDOWS, [None] * 4, [None] * 4, [None] * 4).table.drop_columns(["lung_quality", "lung_mask", *CROP])
    assert lung_evidence(Scores(old, (7, 7), ZONES, 0.5, "pneumonia")) is None
