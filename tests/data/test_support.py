"""Support of the training data: what is outside, and why."""

import json

import numpy as np
import pyarrow as pa
import pytest

from pneumo_ray.data.person import person_columns
from pneumo_ray.data.support import MIN_IMAGES, REASONS, Support, support_of

N = 400


@pytest.fixture
def rows() -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "age_years": rng.uniform(1, 5, N),
            "view_position": ["AP"] * (N - 2) + ["LL", None],
            "width": rng.integers(900, 1500, N),
            "height": rng.integers(900, 1500, N),
            "contrast": rng.uniform(0.15, 0.3, N),
            "lung_area": rng.uniform(0.2, 0.4, N),
        }
    )


def facts(**changes) -> dict[str, list]:
    inside = {
        "age_years": 3.0,
        "view_position": "AP",
        "image_width": 1000,
        "image_height": 1000,
        "contrast": 0.2,
        "lung_area": 0.3,
    }
    return {name: [value] for name, value in (inside | changes).items()}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"age_years": 60.0}, "age"),
        ({"view_position": "PA"}, "view"),
        ({"view_position": "LL"}, "view"),  # one training image in 400 is no support
        ({"image_width": 300, "image_height": 300}, "size"),
        ({"image_width": 3000, "image_height": 3000}, None),  # larger files are reduced to the input
        ({"image_width": 3000}, "shape"),
        ({"contrast": 0.05}, "contrast"),
        ({"lung_area": 0.6}, "lung_area"),
        ({"age_years": 0.1, "contrast": 0.45}, "age,contrast"),
        (dict.fromkeys(("age_years", "view_position", "contrast", "lung_area")), None),  # unknown is no reason
    ],
)
def test_what_is_outside_says_why(rows, changes, reason):
    assert support_of(rows).reasons(facts(**changes)) == [reason]


def test_training_images_are_inside(rows):
    support = support_of(rows)
    own = {name: rows[name].to_pylist() for name in ("age_years", "view_position", "contrast", "lung_area")}
    own |= {"image_width": rows["width"].to_pylist(), "image_height": rows["height"].to_pylist()}
    assert [reason for reason in support.reasons(own) if reason] == ["view"]  # the one image from the side


def test_the_bundle_keeps_it_as_json(rows):
    support = support_of(rows)
    assert Support.from_plain(json.loads(json.dumps(support.to_plain()))) == support
    assert {*support.ranges, "view"} == set(REASONS)


@pytest.mark.parametrize(
    "plain", [None, {}, [], "x", {"ranges": {"age": 3}, "views": []}, {"ranges": None, "views": None}]
)
def test_a_bundle_that_does_not_know_says_nothing(plain):
    assert Support.from_plain(plain) is None


def test_rare_facts_have_no_range(rows):
    few = rows.set_column(0, "age_years", pa.array([3.0] * (MIN_IMAGES - 1) + [None] * (N - MIN_IMAGES + 1)))
    assert "age" not in support_of(few).ranges


def test_squashed_files_have_their_true_shape(rows):
    squashed = rows.set_column(2, "width", pa.array([224] * N)).set_column(3, "height", pa.array([224] * N))
    squashed = squashed.append_column("shape_width", pa.array(np.linspace(1.2, 1.6, N)))
    squashed = squashed.append_column("shape_height", pa.array([1.0] * N))
    assert support_of(squashed).ranges["shape"] == pytest.approx((1.2, 1.6), abs=0.01)


def test_a_label_table_brings_person_columns():
    table = pa.table(
        {
            "age": ["4.5", "95", "unknown", None],
            "sex": ["Female", "M", "?", None],
            "view": ["AP", "pa", "frontal", None],
        }
    )
    found = {name: values.to_pylist() for name, values in person_columns(table).items()}
    assert found["age_years"] == [4.5, 90.0, None, None]
    assert found["sex"] == ["F", "M", None, None]
    assert found["view_position"] == ["AP", "PA", None, None]
    assert found["manufacturer"] == [None] * 4


def test_the_header_wins_over_the_table():
    table = pa.table({"age_years": pa.array([2.0, None], pa.float32()), "age": [7.0, 8.0], "table_sex": ["F", "M"]})
    found = person_columns(table)
    assert found["age_years"].to_pylist() == [2.0, 8.0]
    assert found["sex"].to_pylist() == ["F", "M"]
