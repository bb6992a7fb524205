"""The measured tables of a Markdown page: each part's table, under the date, the class of machine and the version it is of.

A table stands between two comments that name its part. Measuring a part again replaces its table and no other, so one page
can hold parts that were measured on different days or machines, and each says which.
"""

import datetime
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]


def stamp() -> str:
    """Return one sentence: the date, what kind of machine this is (not which), and the version of the code."""
    return f"Measured on {datetime.date.today().isoformat()} on {machine()}, at {revision()}."


def machine() -> str:
    """Return the class of this machine: cores, instruction sets that matter, memory, GPUs."""
    import torch

    words = [f"{len(os.sched_getaffinity(0))} cores {platform.machine()}"]
    found = torch.cpu.get_capabilities()
    words += [name for name in ("amx_bf16", "avx512_bf16", "avx2") if found.get(name)][:1]
    words.append(f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(words + ([f"{len(gpus)} x {gpus[0]}"] if gpus else ["no GPU"]))


def revision() -> str:
    """Return the commit of this checkout, and whether files differ from it; outside a checkout the package's version."""
    try:
        commit = _git("rev-parse", "--short=10", "HEAD")
        changed = " with changes" if _git("status", "--porcelain", "--untracked-files=no") else ""
    except (OSError, subprocess.CalledProcessError):
        return f"version {version('pneumo_ray')}"
    return f"commit {commit}{changed}"


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def replaced(page: str, part: str, lines: Sequence[str]) -> str:
    """Return a page with the table of a part replaced, or appended where it has none.

    Args:
        page: Markdown.
        part: name of the measurement.
        lines: what goes between its comments.
    """
    begin, end = f"<!-- measured: {part} -->", f"<!-- end: {part} -->"
    block = "\n".join((begin, "", *lines, "", end))
    before, found, rest = page.partition(begin)
    if not found:
        return f"{page.rstrip()}\n\n{block}\n" if page.strip() else f"{block}\n"
    _, closed, after = rest.partition(end)
    if not closed:
        raise ValueError(f"the page has {begin} without {end}")
    return f"{before}{block}{after}"
