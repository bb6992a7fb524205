"""How many requests a step makes is part of what an archive in a bucket costs: the README's numbers."""

from pathlib import Path

import pytest

from benchmarks.requests import bench_requests


@pytest.fixture(scope="module")
def requests() -> dict[str, int]:
    """The number of requests of each step."""
    pytest.importorskip("moto", reason="moto[server], which counts the requests, is not installed")
    rows = [line.strip("| ").split(" | ") for line in bench_requests(Path())]
    return {what: int(count) for what, count, _ in rows[2:]}


def test_an_image_of_any_size_costs_two_requests(requests):
    assert requests["read an image of 8 kB"] == requests["read an image of 500 kB"] == 2


def test_a_thousand_files_need_one_list_request(requests):
    assert requests["list a folder of 30 images"] <= 3


def test_only_the_first_shard_requests_the_footer(requests):
    first = next(count for what, count in requests.items() if "first shard" in what)
    assert requests["explain: read the rows of the next shard"] == 2 < first


def test_a_part_file_costs_six_and_three_requests(requests):
    assert requests["write a part file of 400 kB"] == 6
    assert requests["read two columns of a part file"] == 3


def test_only_small_tar_members_share_requests(requests):
    found = {what: count for what, count in requests.items() if what.startswith("list a tar file")}
    assert found["list a tar file of 1,000 images of 8 kB"] < 100
    assert found["list a tar file of 40 images of 500 kB"] > 40


@pytest.mark.parametrize("kind", ["8 kB", "500 kB"])
def test_members_are_read_without_another_listing(requests, kind):
    """One request for the file's size, one for the member's bytes and at most one for what a buffer cut off."""
    assert requests[f"read one of them where the job's list has it ({kind})"] <= 3
    assert requests[f"find and read one of them in a new process ({kind})"] > 10
