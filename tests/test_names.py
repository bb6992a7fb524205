"""Names of tests are short: whoever sees one fail reads its name first."""

import re
from pathlib import Path

HERE = Path(__file__).parent
MOST_WORDS = 8


def test_names_of_tests_are_short():
    paths = [*HERE.rglob("test_*.py")]
    assert len(paths) > 100
    names = {name for path in paths for name in re.findall(r"^ *def test_(\w+)\(", path.read_text(), re.MULTILINE)}
    assert {name for name in names if len(name.split("_")) > MOST_WORDS} == set()
