"""The queue: what each reason puts first is known by arithmetic, and its order by properties that hold for any input."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumo_ray.data.manifest import SCHEMA
from pneumo_ray.data.manifest import write_manifest as write
from pneumo_ray.errors import ConfigError, ManifestError
from pneumo_ray.readers import queue as queues
from pneumo_ray.readers.config import QueueConfig
from pneumo_ray.readers.order import in_order, with_repeats
from pneumo_ray.readers.priority import Known, expected_change
from pneumo_ray.readers.queue import REPEAT, Queue, make_queue, read_queue, write_queue
from pneumo_ray.readers.readings import SCHEMA as READINGS
from pneumo_ray.readers.readings import Readings

N = 60


def manifest(n: int = N, patients: int = 30, **columns) -> pa.Table:
    rows = [
        {
            "image_id": f"{k}.jpg",
            "status": "failed" if k == n - 1 else "ok",
            "label": k % 2,
            "split": "train" if k % 3 else "test",
            "subtype": ["normal", "virus", "normal", "bacteria"][k % 4],
            "patient_id": f"p{k % patients}",
        }
        for k in range(n)
    ]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    return table


def config(*by: str, **changes) -> QueueConfig:
    needs = {"scores": "s", "readings": ("r",), "doubt": "d"}
    return QueueConfig("m", "q.csv", by=by or ("random",), **needs | {"repeats": 0.0, "count": 10} | changes)


def answers(**labels: list[int | None]) -> Readings:
    """Return answers of readers 0, 1, ... about images by their number: n7=[0, 1]."""
    rows = [
        {"image_id": f"{name[1:]}.jpg", "reader": str(reader), "label": label}
        for name, given in labels.items()
        for reader, label in enumerate(given)
    ]
    return Readings(pa.Table.from_pylist(rows, schema=READINGS))


@pytest.fixture(scope="module")
def scores(write_scores, tmp_path_factory):
    from pneumo_ray.evaluate.scores import read_scores

    logit = 2 * np.linspace(-6, 6, N)  # image k is the surer of pneumonia the larger k
    information = np.abs(np.arange(N) - 20.0).astype(np.float32)
    folder = write_scores(tmp_path_factory.mktemp("q") / "s", logit, mutual_information=information)
    return read_scores(str(folder)).ok()


def chosen(queue: Queue) -> set[int]:
    return {int(name.removesuffix(".jpg")) for name in queue.image_ids}


def test_the_suspicious_contradict_their_label(scores):
    """Odd images are called pneumonia by their label, and low numbers normal by the model."""
    queue = make_queue(config("suspicious"), manifest(), scores, None, None)
    assert chosen(queue) == {1, 3, 5, 7, 9, 58, 56, 54, 52, 50}
    assert set(queue.reasons) == {"suspicious"}


def test_the_uncertain_have_the_largest_mutual_information(scores):
    assert chosen(make_queue(config("uncertain", count=5), manifest(), scores, None, None)) == {54, 55, 56, 57, 58}


def test_without_passes_the_uncertain_are_near_the_threshold(scores):
    table = scores.table
    place = table.column_names.index("mutual_information")
    flat = table.set_column(place, "mutual_information", pa.array(np.zeros(N)))
    blind = type(scores)(flat, scores.map_size, scores.zones, scores.threshold, scores.target)
    near = np.argsort(np.abs(np.linspace(-6, 6, N) - np.log(0.4 / 0.6)))[:4]
    assert chosen(make_queue(config("uncertain", count=4), manifest(), blind, None, None)) == set(near.tolist())


def test_the_doubtful_contradict_the_other_folds():
    doubt = {f"{k}.jpg": 0.9 if k in (4, 8, 15) else 0.5 for k in range(20)}
    assert chosen(make_queue(config("doubtful", count=2), manifest(), None, None, doubt)) == {4, 8}


def test_disagreement_and_change_read_again(scores):
    readings = answers(n1=[1, 1, 1], n2=[1, 0, 1], n3=[0, 1], n4=[0, None], n5=[0, 0])
    queue = make_queue(config("disagreement", count=2), manifest(), scores, readings, None)
    assert chosen(queue) == {2, 3}
    # One answer moves 1 of 1 by up to 1 / 2, 2 of 2 by up to 1 / 3: the model contradicts label 1 of image 1.
    queue = make_queue(config("change", count=1), manifest(6, 6), scores, None, None)
    assert chosen(queue) == {1}
    queue = make_queue(config("change", count=1), manifest(6, 6), scores, answers(n1=[1, 1, 1]), None)
    assert chosen(queue) == {3}


@given(st.integers(1, 6), st.integers(0, 6), st.floats(0.01, 0.99))
def test_expected_change_is_an_expectation(answers_given, positive, prob):
    """Over both answers of the next reader, the distance between the shares before and after."""
    k, m = min(positive, answers_given), answers_given
    nothing = np.array([np.nan])
    known = Known(nothing, np.array([prob]), nothing, 0.5, nothing, np.array([m]), np.array([k / m]), np.array([True]))
    wanted = prob * abs((k + 1) / (m + 1) - k / m) + (1 - prob) * abs(k / (m + 1) - k / m)
    assert expected_change(known)[0] == pytest.approx(wanted, abs=1e-12)
    alone = Known(np.array([1.0]), np.array([prob]), nothing, 0.5, nothing, np.array([0]), nothing, np.array([False]))
    assert expected_change(alone)[0] == pytest.approx((1 - prob) / 2, abs=1e-12)


def test_read_images_are_left_out_unless_again():
    table = manifest(12, 6)
    readings = answers(**{f"n{k}": [None] for k in range(6)})
    assert chosen(make_queue(config(), table, None, readings, None)) == {6, 7, 8, 9, 10}
    assert chosen(make_queue(config(again=True, count=99), table, None, readings, None)) == set(range(11))
    numbers = manifest(12, 6, num_readers=[1] * 6 + [0] * 6, label_soft=[1.0] * 12)
    assert chosen(make_queue(config(), numbers, None, None, None)) == {6, 7, 8, 9, 10}


def test_strata_have_equal_parts():
    table = manifest(120, 120)
    queue = make_queue(config(stratify="subtype", count=30), table, None, None, None)
    subtypes = [table["subtype"][k].as_py() for k in chosen(queue)]
    assert {name: subtypes.count(name) for name in set(subtypes)} == {"normal": 10, "virus": 10, "bacteria": 10}


def test_reasons_share_the_queue(scores):
    queue = make_queue(config("random", "suspicious", count=20), manifest(), scores, None, None)
    assert sorted(queue.reasons) == ["random"] * 10 + ["suspicious"] * 10
    assert queue.reasons != tuple(sorted(queue.reasons))  # mixed


def test_the_seed_decides_and_copies_stay_out():
    table = manifest(copy_of=[None] * 30 + ["x"] * 30)
    first, again, other = (make_queue(config(seed=s, count=15), table, None, None, None) for s in (1, 1, 2))
    assert first == again
    assert first != other
    assert max(chosen(first) | chosen(other)) < 30


def test_splits_are_kept_apart():
    assert all(k % 3 == 0 for k in chosen(make_queue(config(split="test"), manifest(), None, None, None)))


def test_repeats_come_half_a_queue_later():
    queue = make_queue(config(count=50, repeats=0.2), manifest(), None, None, None)
    assert len(queue.image_ids) == 60
    assert queue.reasons.count(REPEAT) == 10
    for place, (name, reason) in enumerate(zip(queue.image_ids, queue.reasons, strict=True)):
        if reason == REPEAT:
            assert place - queue.image_ids.index(name) > 15


@given(st.integers(1, 60), st.floats(0, 1), st.integers(0, 5))
def test_every_image_stands_once_and_repeats_twice(images, share, seed):
    repeats = round(share * images)
    sequence = with_repeats(images, repeats, np.random.default_rng(seed)).tolist()
    assert sorted(set(sequence)) == list(range(images))
    assert len(sequence) == images + repeats
    assert max(sequence.count(k) for k in range(images)) <= 2
    assert list(dict.fromkeys(sequence)) == list(range(images))


@settings(max_examples=200)
@given(st.lists(st.integers(0, 5), max_size=40))
def test_no_patient_follows_itself(patients):
    order = in_order(patients).tolist()
    ordered = [patients[row] for row in order]
    assert all(a != b for a, b in itertools.pairwise(ordered))
    assert len(set(order)) == len(order)
    most = max((patients.count(p) for p in patients), default=0)
    others = len(patients) - most
    assert len(order) == others + min(most, others + 1)  # all of them where that is possible


def test_a_queue_survives_its_file(tmp_path):
    write(manifest(), str(tmp_path / "m.parquet"))
    for name in ("q.csv", "q.parquet"):
        out = str(tmp_path / name)
        made = write_queue(QueueConfig(str(tmp_path / "m.parquet"), out, count=20))
        assert read_queue(out) == made
        assert len(made.image_ids) == 22
    (tmp_path / "own.csv").write_text("image_id\nb\na\n")
    assert read_queue(str(tmp_path / "own.csv")) == Queue(("b", "a"), ("", ""))
    (tmp_path / "own.csv").write_text("image_id,position\nb,2\na,1\n")
    assert read_queue(str(tmp_path / "own.csv")).image_ids == ("a", "b")


def test_nothing_left_to_read_is_an_error():
    readings = answers(**{f"n{k}": [0] for k in range(12)})
    with pytest.raises(ManifestError, match="no image left"):
        make_queue(config(), manifest(12, 6), None, readings, None)
    with pytest.raises(ManifestError, match="no column"):
        make_queue(config(stratify="colour"), manifest(), None, None, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image_id,p\na,1\n", "columns image_id and prob"),
        ("image_id,prob\n0.jpg,2\n", "in row 2"),
        ("image_id,prob\n0.jpg,\n", "in row 2"),
        ("image_id,prob\nz,0.5\n", "none of the manifest's images"),
    ],
)
def test_bad_doubt_is_refused(tmp_path, text, words):
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(ManifestError, match=words):
        queues.read_doubt(str(tmp_path / "d.csv"), ["0.jpg"])


@pytest.mark.parametrize("reason", ["uncertain", "suspicious", "change", "doubtful", "disagreement"])
def test_a_reason_without_its_files_is_refused(reason):
    with pytest.raises(ConfigError, match=f"--by {reason} needs"):
        QueueConfig("m", "q", by=(reason,))
