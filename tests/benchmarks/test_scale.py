"""The measurements at scale, on a few hundred images: that each step does all of its work, not how long it takes."""

from pathlib import Path

import pytest

from benchmarks.scale import STEPS, Measured, ScaleFolder, growth, make_inputs, measure

N = 700


@pytest.fixture(scope="module")
def found(phantom_archive: Path, tmp_path_factory) -> dict[str, dict]:
    """The facts of every step, the first of them from a process of its own, as in a measurement."""
    folder = ScaleFolder(tmp_path_factory.mktemp("scale") / "small", N)
    make_inputs(folder, sorted(phantom_archive.rglob("*.jp*g"))[:3])
    first, *rest = STEPS
    facts = {name: STEPS[name][1](folder)() for name in rest}
    return {"folder": {"folder": folder}, "measured": {"first": measure(first, folder)}} | facts


def test_a_measured_process_begins_with_its_imports(found):
    assert 0 <= found["measured"]["first"].seconds < 1
    assert 20 < found["measured"]["first"].peak_mb < 1000


def test_tree_and_tar_listings_find_every_image(found):
    assert [found[step]["listed"] for step in ("list-tree", "list-tar", "held", "job-list")] == [N] * 4


def test_a_list_is_read_back_by_shard(found):
    assert found["shards"]["rows"] == N
    assert found["job-list"]["shards"] == found["begin"]["shards"] == found["continue"]["shards"] > 2


def test_unfinished_shards_are_left(found):
    assert found["continue"]["left"] == list(range(1, found["continue"]["shards"], 2))


def test_the_summary_and_the_evaluation_count_every_row(found):
    assert found["summary"]["rows"] == found["numbers"]["pictures"] == found["report"]["pictures"] == N
    report = found["folder"]["folder"].base / "report" / "report.html"
    assert report.stat().st_size > 100_000


def test_slots_and_validation_images_have_one_ticket(found):
    assert found["tickets"]["train"] == found["tickets"]["slots"] > found["training-rows"]["train"]
    assert found["tickets"]["val"] == found["training-rows"]["val"] > 0
    assert found["plans"]["slots"] == 30 * found["tickets"]["slots"]


def test_the_audit_sees_drawn_copies_and_patients(found):
    """One in 200 is the copy of the image two rows before it, which is of the patient before."""
    assert found["audit"]["patients"] == N // 2
    assert found["audit"]["duplicates"]["surplus_images"] == N // 200
    assert found["audit"]["num_patients_in_several_splits"] == 0


def test_growth_is_the_exponent_of_the_size():
    times = [Measured(9.0, seconds, 0.0, {}) for seconds in (1.0, 3.0, 300.0)]
    assert growth(times, [10, 100, 1000]) == pytest.approx(2.0)
    assert growth(times[:2], [10, 90]) == pytest.approx(0.5)
