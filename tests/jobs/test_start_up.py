"""What a job imports before it works: its options, and nothing that takes seconds to import."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

JOBS = Path(__file__).parents[2] / "jobs"
HEAVY = {"cv2", "matplotlib", "numpy", "pandas", "pyarrow", "ray", "scipy", "sklearn", "torch", "torchvision"}

REFUSED = {
    "prepare": ["--archive", "a", "--out", "o", "--decode-seconds", "0"],
    "train": ["--manifest", "m", "--out", "o", "--epochs", "0"],
    "tune": ["--manifest", "m", "--out", "o", "--seeds", "0"],
    "explain": ["--model", "m", "--out", "o", "--archive", "a", "--passes", "1"],
    "evaluate": ["--manifest", "m", "--out", "o", "--split", "none"],
    "robustness": ["--model", "m", "--manifest", "m", "--out", "o", "--passes", "1"],
    "demo": ["--phantom.num-images", "1"],
    "bench": ["--shared", "nowhere"],
    "publish": ["--scores", "s", "--model", "m", "--out", "o", "--num-workers", "-1"],
    "posterior": ["--model", "m", "--manifest", "m", "--posterior", "exact"],
    "commission": ["--scores", "s", "--manifest", "m", "--out", "o", "--triage.alpha", "2"],
    "drift": ["--reference", "r", "--scores", "s", "--out", "o", "--level", "2"],
    "silent": ["--archive", "a", "--model", "m", "--out", "o", "--level", "2"],
    "lungs": ["--manifest", "m", "--masks", "t", "--out", "o", "--epochs", "0"],
}
"""Options that cannot work, by job."""


def imported(job: str, *words: str) -> tuple[int, set[str]]:
    """Return the exit code of a job and the packages that it imported, as Python itself reports them."""
    command = [sys.executable, "-X", "importtime", str(JOBS / f"{job}.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return done.returncode, {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def test_every_job_is_covered():
    assert REFUSED.keys() == {path.stem for path in JOBS.glob("*.py")}


@pytest.mark.parametrize("job", REFUSED)
@pytest.mark.parametrize("mistake", ["--help", "--no-such-option", "value"])
def test_options_are_answered_without_heavy_imports(job, mistake):
    code, packages = imported(job, *(REFUSED[job] if mistake == "value" else [mistake]))
    assert code == (0 if mistake == "--help" else 2)
    assert "pneumo_ray" in packages
    assert not packages & HEAVY


def test_an_unknown_study_is_refused_before_ray():
    code, packages = imported("tune", "--manifest", "m", "--out", "o", "--study", "balanced")
    assert code == 2
    assert not packages & {"ray", "torch"}


def after_importing(code: str) -> set[str]:
    """Return the packages that a process has imported when it has run some Python code."""
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_explaining_needs_no_ray():
    packages = after_importing("from pneumo_ray.explain import BayesGradCAM, Explanation, ZONES, zone_operator")
    assert "torch" in packages
    assert "ray" not in packages


@pytest.mark.parametrize("package", ["evaluate", "report"])
def test_evaluation_and_report_need_no_torch(package):
    code = f"""
import importlib, pkgutil
import pneumo_ray.{package} as package
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
"""
    packages = after_importing(code)
    assert "sklearn" in packages
    assert not packages & {"ray", "torch"}
