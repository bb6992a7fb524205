"""A few seconds of the fuzzer for every change; `make fuzz` is the long run."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def fuzz(folder: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "tests/fuzz/run.py", "--keep", str(folder / "kept"), *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def rows(said: str) -> dict[str, list[str]]:
    cells = [line.strip("| ").split(" | ") for line in said.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in cells[2:-1]}


def test_hostile_files_are_read_or_refused(tmp_path):
    ended = fuzz(tmp_path, "--files", "4900", "--seed", "0", "--without", "size limit")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = rows(ended.stdout)
    assert len(found) == 38
    for name, (files, read, refused, *_) in found.items():
        assert int(files) >= (12 if name == "model bundle" else 120)
        assert int(read) > 0, f"{name}: the mutations leave nothing to decode"
        assert refused, f"{name}: the mutations do no harm"


def test_the_largest_images_stay_below_1_gigabyte(tmp_path):
    """A WebP of 34 bytes, a TIFF of 1 MB, and one of floats: they took 2.4, 1.3 and 5.5 GB."""
    ended = fuzz(tmp_path, "--formats", "size limit", "--files", "3")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert rows(ended.stdout)["size limit"][:2] == ["3", "3"]


def test_every_defect_is_found_and_kept(tmp_path):
    """Files 0 to 3 meet an exception, a dying process, a hang and a hunger for memory; the rest go on."""
    ended = fuzz(tmp_path, "--formats", "PNG 8 bit", "--files", "8", "--seconds", "2", "--rehearse")
    assert ended.returncode == 1
    kept = sorted(path.name for path in (tmp_path / "kept").iterdir() if path.suffix != ".txt")
    assert kept == [
        f"PNG-8-bit-0-{number}.{kind}" for number, kind in enumerate(("exception", "crash", "hang", "memory"))
    ]
    assert re.search(r"4 files broke something, the first: PNG 8 bit \d: ", ended.stdout)
    assert rows(ended.stdout)["PNG 8 bit"][0] == "8"
