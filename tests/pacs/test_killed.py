"""A publication that is killed continues, and leaves no process behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pneumo_ray.pacs.config import PublishConfig
from pneumo_ray.pacs.publish import publish

JOB = Path(__file__).parents[2] / "jobs" / "publish.py"
pytestmark = pytest.mark.faults


def run(scores: Path, model: Path, out: Path) -> None:
    publish(PublishConfig(scores=str(scores), model=str(model), out=str(out), num_workers=1, kinds=("sr", "capture")))


def files_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.dcm")}


def test_a_killed_publication_continues(scored, cr_file, model, tmp_path):
    """Killed at five moments; what is there is whole, and the rest follows."""
    scores = scored({f"{number}.dcm": cr_file(number) for number in range(40)})
    out = tmp_path / "out"
    run(scores, model, tmp_path / "whole")
    command = [sys.executable, JOB, "--scores", scores, "--model", model, "--out", out, "--kinds", "sr", "capture"]
    for enough in (1, 8, 20, 40, 70):
        job = subprocess.Popen([*command, "--num-workers", "2"], stdout=subprocess.DEVNULL, start_new_session=True)
        while job.poll() is None and len(list(out.glob("*.dcm"))) < enough:
            time.sleep(0.01)
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        for path in out.glob("*.dcm"):
            assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
    run(scores, model, out)
    assert files_of(out) == files_of(tmp_path / "whole")


def test_a_killed_publication_to_a_pacs_continues(orthanc, scored, cr_file, model, tmp_path):
    """Killed at five moments: what Orthanc has in the end are the objects of one go, each once, to the byte."""
    files = {f"{number}.dcm": cr_file(number) for number in range(40)}
    scores = scored(files)
    run(scores, model, tmp_path / "whole")
    orthanc.store(files.values())
    command = [sys.executable, JOB, "--scores", scores, "--model", model, "--to", orthanc.address]
    command += ["--kinds", "sr", "capture", "--num-workers", "2"]

    def stored() -> int:
        return int(orthanc.rest("/statistics")["CountInstances"]) - len(files)

    seen = []
    for enough in (1, 15, 30, 50, 70):
        job = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        while job.poll() is None and stored() < enough:
            time.sleep(0.01)
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        seen.append(stored())
    last = publish(
        PublishConfig(scores=str(scores), model=str(model), to=orthanc.address, num_workers=1, kinds=("sr", "capture"))
    )
    print(f"killed with {seen} of {2 * len(files)} objects stored; {last.made} were left, {last.present} were there")
    assert seen == sorted(seen)
    assert last.made + last.present == stored() == 2 * len(files)
    uids = {one["MainDicomTags"]["SOPInstanceUID"]: one["ID"] for one in orthanc.rest("/instances?expand")}
    whole = files_of(tmp_path / "whole")
    assert {name: orthanc.file(uids[name.removesuffix(".dcm")]) for name in whole} == whole
    assert len(uids) == 3 * len(files)


def test_workers_end_with_a_killed_job(scored, cr_file, model, tmp_path):
    psutil = pytest.importorskip("psutil")
    scores = scored({f"{number}.dcm": cr_file(number) for number in range(70)})
    out = tmp_path / "out"
    job = subprocess.Popen(
        [sys.executable, JOB, "--scores", scores, "--model", model, "--out", out, "--num-workers", "2"],
        stdout=subprocess.DEVNULL,
    )
    while job.poll() is None and not list(out.glob("*.dcm")):
        time.sleep(0.02)
    workers = psutil.Process(job.pid).children(recursive=True)
    job.kill()
    job.wait()
    assert workers
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
