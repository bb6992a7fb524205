"""Actors that hold a model: each on one thread, and on a GPU, which Ray is told of and reserves without any CUDA."""

import json
import subprocess
import sys

SCRIPT = """
import json
import threading
import pyarrow as pa
import ray
from pneumo_ray.cpu_shares import ActorShares
from pneumo_ray.ray_cluster import map_actors, quiet_ray_data
from pneumo_ray.score.workers import collected

class Actor:
    def __init__(self):
        self.thread = threading.get_ident()

    def __call__(self, block):
        same = threading.get_ident() == self.thread
        return pa.table({"rows": [len(block)], "gpus": [len(ray.get_gpu_ids())], "same": [same]})

ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
quiet_ray_data()
dataset = ray.data.from_arrow([pa.table({"n": range(3)}), pa.table({"n": range(5)})])
actors = ActorShares(count=1, most=1, num_cpus=1.0, num_gpus=1, threads=1)
found = [row for table in collected(map_actors(Actor, dataset, (), actors, {})) for row in table.to_pylist()]
print(json.dumps(found))
"""


def test_an_actor_takes_whole_blocks_on_one_thread():
    """OpenMP, which computes for PyTorch, has a team of threads for each thread that calls it."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert sorted((row["rows"], row["gpus"], row["same"]) for row in found) == [(3, 1, True), (5, 1, True)]
