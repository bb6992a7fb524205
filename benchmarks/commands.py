"""The jobs as people run them: a process for each command."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_job(name: str, *words: str) -> None:
    """Run `jobs/NAME.py` in the folder of the checkout with some options, which name files by absolute paths.

    Raises:
        SystemExit: with the exit code of a job that failed; it has printed why.
    """
    print(f"$ python jobs/{name}.py {' '.join(words)}", flush=True)
    if code := subprocess.run([sys.executable, f"jobs/{name}.py", *words], cwd=ROOT).returncode:
        raise SystemExit(code)
