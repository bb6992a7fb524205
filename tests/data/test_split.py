from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumo_ray.data.manifest import SCHEMA, crossing
from pneumo_ray.data.split import assign_splits, link_groups, permute_labels
from pneumo_ray.errors import ConfigError


def manifest(rows: list[dict]) -> pa.Table:
    full = [
        {"image_id": f"i{n:05d}", "uri": f"/x/{n}", "status": "ok", "content_sha256": f"c{n}"} | row
        for n, row in enumerate(rows)
    ]
    return pa.Table.from_pylist(full, schema=SCHEMA)


row = st.fixed_dictionaries(
    {
        "label": st.sampled_from([0, 1, None]),
        "patient_id": st.sampled_from([None, *[f"p{n}" for n in range(12)]]),
        "content_sha256": st.sampled_from([f"c{n}" for n in range(60)]),
        "split": st.sampled_from([None, "train", "train", "val", "test"]),
        "status": st.sampled_from(["ok", "ok", "ok", "failed"]),
    }
)


@settings(deadline=None, max_examples=150)
@given(st.lists(row, min_size=1, max_size=60), st.integers(0, 3))
def test_grouped_keeps_patients_and_duplicates_together(rows, seed):
    table = assign_splits(manifest(rows), "grouped", seed)
    assert crossing(table, "patient_id") == []
    assert crossing(table, "content_sha256") == []
    # What a test folder holds is the test, whole; and nothing without a label or pixels is used.
    for before, after in zip(rows, table["split"].to_pylist(), strict=True):
        usable = before["status"] == "ok" and before["label"] is not None
        if usable and before["split"] == "test":
            assert after == "test"
        if not usable:
            assert after is None


@settings(deadline=None, max_examples=60)
@given(st.lists(row, min_size=1, max_size=60), st.randoms())
def test_grouped_ignores_the_order_of_rows(rows, random):
    table = manifest(rows)
    order = list(range(len(rows)))
    random.shuffle(order)
    one = assign_splits(table, "grouped", 1)
    other = assign_splits(table.take(order), "grouped", 1)
    assert dict(zip(one["image_id"].to_pylist(), one["split"].to_pylist(), strict=True)) == dict(
        zip(other["image_id"].to_pylist(), other["split"].to_pylist(), strict=True)
    )


@settings(deadline=None, max_examples=60)
@given(st.lists(row, min_size=1, max_size=40))
def test_link_groups_are_the_connected_components(rows):
    table = manifest(rows)
    group = link_groups(table)
    parent = list(range(len(rows)))

    def root(n):
        while parent[n] != n:
            n = parent[n]
        return n

    seen: dict = {}
    for n, r in enumerate(rows):
        for key in (("p", r["patient_id"]), ("c", r["content_sha256"])):
            if key[1] is not None:
                parent[root(n)] = root(seen.setdefault(key, n))
    expected = defaultdict(set)
    found = defaultdict(set)
    for n in range(len(rows)):
        expected[root(n)].add(n)
        found[group[n]].add(n)
    assert sorted(map(sorted, expected.values())) == sorted(map(sorted, found.values()))


def kermany_like(train=(134, 387), test=(23, 39)) -> list[dict]:
    return [
        {"label": label, "patient_id": f"{split}{label}-{n // 2}", "split": split}
        for split, counts in (("train", train), ("test", test))
        for label, count in enumerate(counts)
        for n in range(count)
    ]


def counts(table) -> Counter:
    return Counter(zip(table["split"].to_pylist(), table["label"].to_pylist(), strict=True))


def test_grouped_validates_on_a_tenth_per_class():
    found = counts(assign_splits(manifest(kermany_like()), "grouped", 0))
    assert abs(found["val", 0] - 13.4) <= 1.5
    assert abs(found["val", 1] - 38.7) <= 1.5
    assert (found["test", 0], found["test", 1]) == (23, 39)


def test_grouped_sets_training_images_of_test_patients_aside():
    rows = [*kermany_like(), {"label": 1, "patient_id": "test1-0", "split": "train"}]
    assert assign_splits(manifest(rows), "grouped", 0)["split"][-1].as_py() is None


def test_grouped_makes_a_missing_test():
    rows = [r | {"split": None} for r in kermany_like()]
    found = counts(assign_splits(manifest(rows), "grouped", 0))
    assert min(found["test", 0], found["val", 0]) >= 14
    assert sum(found.values()) == len(rows)
    assert (None, 0) not in found


def test_official_takes_validation_from_train_by_patient():
    rows = [*kermany_like(), {"label": 1, "patient_id": "test1-0", "split": "train"}]
    table = assign_splits(manifest(rows), "official", 0)
    assert [s for r, s in zip(rows, table["split"].to_pylist(), strict=True) if r["split"] == "test"] == ["test"] * 62
    inside = table.filter(pa.compute.not_equal(table["split"], "test"))
    assert crossing(inside, "patient_id") == []
    assert crossing(table, "patient_id") == ["test1-0"]  # as the folders are: training will refuse it


def test_named_validation_stays_and_linked_images_leave():
    rows = kermany_like()
    for row in rows[:30:3]:
        row["split"] = "val"
    rows[1] |= {"patient_id": rows[0]["patient_id"]}
    for protocol in ("grouped", "official"):
        split = assign_splits(manifest(rows), protocol, 0, keep_val=True)["split"].to_pylist()
        assert [i for i, name in enumerate(split) if name == "val"] == list(range(0, 30, 3))
        assert split[1] == (None if protocol == "grouped" else "train")
    recarved = assign_splits(manifest(rows), "grouped", 0)["split"].to_pylist()
    assert [i for i, name in enumerate(recarved) if name == "val"] != list(range(0, 30, 3))


def test_official_needs_a_test_folder():
    rows = [row for row in kermany_like() if row["split"] == "train"]
    with pytest.raises(ConfigError, match="test folder"):
        assign_splits(manifest(rows), "official", 0)


def test_paper_halves_the_rest_class_by_class():
    found = counts(assign_splits(manifest(kermany_like(test=(242, 398))), "paper", 0))
    assert found == {
        ("train", 0): 134,
        ("train", 1): 387,
        ("val", 0): 121,
        ("val", 1): 199,
        ("test", 0): 121,
        ("test", 1): 199,
    }


def test_splits_follow_from_the_seed():
    table = manifest(kermany_like())
    first, again, other = (assign_splits(table, "grouped", seed)["split"].to_pylist() for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("protocol", ["official", "paper"])
def test_protocols_of_folders_need_folders(protocol):
    with pytest.raises(ConfigError, match="grouped"):
        assign_splits(manifest([r | {"split": None} for r in kermany_like()]), protocol, 0)


def test_permuted_labels_keep_only_the_counts():
    rows = pa.table({"image_id": [str(i) for i in range(1000)], "label": pa.array([0] * 300 + [1] * 700, pa.int8())})
    permuted = permute_labels(rows, 0)
    assert sum(permuted["label"].to_pylist()) == 700
    assert permuted["image_id"].equals(rows["image_id"])
    agreement = np.mean(permuted["label"].to_numpy() == rows["label"].to_numpy())
    assert abs(agreement - (0.3**2 + 0.7**2)) < 0.06
    assert permuted.equals(permute_labels(rows, 0))
    assert not permuted.equals(permute_labels(rows, 1))


def test_two_hundred_thousand_rows_are_split_cleanly():
    n = 200_000
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "image_id": pa.array([f"i{i}" for i in range(n)]),
            "label": pa.array(rng.integers(0, 2, n), pa.int8()),
            "patient_id": pa.array([f"p{p}" for p in rng.integers(0, n // 2, n)]),
            "content_sha256": pa.array([f"c{c}" for c in rng.integers(0, 10 * n, n)]),
            "split": pa.nulls(n, pa.string()),
            "status": pa.array(["ok"] * n),
        }
    )
    split = assign_splits(table, "grouped", 0)
    assert crossing(split, "patient_id") == []
