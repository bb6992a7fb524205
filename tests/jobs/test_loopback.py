"""A job on one machine can be reached from nowhere else: asked of the sockets of the Ray that it starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json
import psutil
import ray
from pneumo_ray.ray_cluster import start_ray

start_ray()
ray.get(ray.remote(lambda: 1).remote())
sockets = []
for process in psutil.Process().children(recursive=True):
    for connection in process.net_connections("inet"):
        if connection.status == psutil.CONN_LISTEN:
            sockets.append((process.name(), connection.laddr.ip, connection.laddr.port))
print(json.dumps(sockets))
ray.shutdown()
"""


def test_ray_listens_on_loopback_only():
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
    sockets = json.loads(ended.stdout.splitlines()[-1])
    names = {name for name, _, _ in sockets}
    assert "raylet" in names, names
    assert any("gcs_server" in name for name in names), names
    assert any("dashboard" in name.lower() for name in names), names
    assert {ip for _, ip, _ in sockets} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, sockets
