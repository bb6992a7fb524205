"""A job on one machine can be reached from nowhere else: asked of the sockets of the Ray that it starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json
import os
import psutil
import ray
from pneumo_ray.ray_cluster import start_ray

start_ray()
niceness = ray.get(ray.remote(lambda: os.getpriority(os.PRIO_PROCESS, 0)).remote())
titles = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
sockets = []
for process in psutil.Process().children(recursive=True):
    for connection in process.net_connections("inet"):
        if connection.status == psutil.CONN_LISTEN:
            sockets.append((process.name(), connection.laddr.ip, connection.laddr.port))
print(json.dumps([sockets, niceness - os.getpriority(os.PRIO_PROCESS, 0), titles]))
ray.shutdown()
"""


@pytest.fixture(scope="module")
def started() -> tuple[list[tuple[str, str, int]], int, list[str]]:
    """Of a Ray that a job starts: its listening sockets, how much nicer than the job a worker is, its processes."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    sockets, nicer, titles = json.loads(ended.stdout.splitlines()[-1])
    return sockets, nicer, titles


def test_ray_listens_on_loopback_only(started):
    sockets, _, _ = started
    names = {name for name, _, _ in sockets}
    assert "raylet" in names, names
    assert any("gcs_server" in name for name in names), names
    assert any("dashboard" in name.lower() for name in names), names
    assert {ip for _, ip, _ in sockets} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, sockets


def test_own_workers_have_niceness_0_without_dashboard(started):
    _, nicer, titles = started
    assert nicer == 0
    assert not [title for title in titles if "ray-dashboard-" in title], (
        "its parts have titles such as ray-dashboard-JobHead-0"
    )
