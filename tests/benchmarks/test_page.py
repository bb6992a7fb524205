"""The measured tables of a page: one is replaced, the rest stays, and each says what it is of."""

import re
import runpy
import subprocess
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.page import ROOT, replaced, stamp
from benchmarks.timing import Row

PAGE = "# Benchmarks\n\nWords.\n\n<!-- measured: a -->\n\nold\n\n<!-- end: a -->\n\nMore words.\n"


def test_only_the_table_is_replaced():
    page = replaced(PAGE, "a", ["| new |"])
    assert page == PAGE.replace("old", "| new |")
    assert replaced(page, "a", ["| new |"]) == page


def test_a_part_that_has_no_place_is_appended():
    page = replaced(PAGE, "b", ["| b |"])
    assert page.startswith(PAGE)
    assert replaced(page, "b", ["| c |"]) == page.replace("| b |", "| c |")
    assert replaced("", "b", ["| b |"]).startswith("<!-- measured: b -->")


def test_a_comment_without_its_end_is_refused():
    with pytest.raises(ValueError, match="without <!-- end: a -->"):
        replaced(PAGE.replace("<!-- end: a -->", ""), "a", [])


def test_the_stamp_has_date_machine_and_commit():
    found = re.fullmatch(r"Measured on \d{4}-\d\d-\d\d on \d+ cores (.*), at (.*)\.", stamp())
    assert found is not None
    assert "GiB" in found[1]
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        assert found[2].startswith("version ")
    else:
        assert head.startswith(found[2].split()[1])


def test_the_page_has_ratios_and_no_goals(tmp_path, monkeypatch, capsys):
    """As the tables of docs/benchmarks.md are; the terminal shows the goals as well."""
    rows = [Row("speed", "2 img/s", "1 img/s, plain", 2.0, ">= 1.5"), Row("size", "3 MB", "", float("nan"), "")]
    monkeypatch.setattr(gpu, "bench_gpu", lambda _: iter(rows))
    bench, page = runpy.run_path(str(ROOT / "jobs" / "bench.py")), tmp_path / "page.md"
    bench["main"](bench["BenchConfig"](parts=("gpu",), shared=Path("unused"), page=page))
    table = [line for line in page.read_text().splitlines() if line.startswith("|")]
    assert table == [
        "| what | measured | compared with | ratio |",
        "| --- | --- | --- | ---: |",
        "| speed | 2 img/s | 1 img/s, plain | 2.00 |",
        "| size | 3 MB |  |  |",
    ]
    assert "| speed | 2 img/s | 1 img/s, plain | 2.00 | >= 1.5 |" in capsys.readouterr().out
