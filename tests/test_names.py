"""Names of tests are short: whoever sees one fail reads its name first."""

import re
from pathlib import Path

HERE = Path(__file__).parent
MOST_WORDS = 8
LONG = (
    *("anatomy", "dicomweb", "pacs", "readers", "score"),
    *("explain/test_cam.py", "explain/test_foreign.py", "tune/test_doubt.py"),
)
"""Where longer names remain: take one out when its names are short."""


def test_names_of_tests_are_short():
    paths = {path.relative_to(HERE).as_posix(): path for path in HERE.rglob("test_*.py")}
    held = [path for name, path in paths.items() if not name.startswith(LONG)]
    assert len(held) > 100
    names = {name for path in held for name in re.findall(r"^ *def test_(\w+)\(", path.read_text(), re.MULTILINE)}
    assert {name for name in names if len(name.split("_")) > MOST_WORDS} == set()
