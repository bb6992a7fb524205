"""The measured tables of a page: one is replaced, the rest stays, and each says what it is of."""

import re
import subprocess

import pytest

from benchmarks.page import ROOT, replaced, stamp

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
