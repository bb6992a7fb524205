"""A scorer that runs out of memory goes on with half the batch, and gives the scores that it would have given."""

import subprocess
import sys

import pytest

from pneumo_ray.model.memory import is_out_of_memory

LIMITED = """
import resource, sys
import numpy as np, torch
from pneumo_ray.score.config import ExplainConfig, ScoringScale
from pneumo_ray.score.explainer import Explainer, ModelPayload
from pneumo_ray.score.model_set import load_models

torch.set_num_threads(1)
config = ExplainConfig(model="", out="", archive=("x",), amp="off", scale=ScoringScale(batch_size=64)).resolved("head")
payload = ModelPayload.of(load_models(tuple(sys.argv[1:])), config)
pixels = np.random.default_rng(0).integers(0, 256, (64, 256, 256)).astype(np.uint8)


def scorer():
    made = Explainer(payload, config, torch.device("cpu"))
    made.columns(pixels[:1], [None])  # what a process allocates once does not count
    return made


free, limited = scorer(), scorer()
expected = free.columns(pixels, [None] * 64)
# A limit of this process's own address space, a little above what it has now.
now = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (now + (128 << 20), -1))
found = limited.columns(pixels, [None] * 64)
for name, values in expected.items():
    assert np.allclose(values, found[name], rtol=1e-4, atol=1e-5, equal_nan=True), name
print(free.at_once, limited.at_once)
"""


@pytest.mark.parametrize("count", [1, 3])
def test_too_little_memory_halves_the_batch(members, count):
    """64 images of 256 pixels need 270 MB for the first layer's maps alone; 128 MB are left."""
    command = [sys.executable, "-c", LIMITED, *members[:count]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    free, limited = map(int, done.stdout.split())
    assert free == 64
    assert limited in (1, 2, 4, 8, 16, 32)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory")]
)
def test_another_error_is_not_taken_for_it(error):
    assert not is_out_of_memory(error)
