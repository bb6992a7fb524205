"""A scorer that runs out of memory goes on with half the batch, and gives the scores that it would have given."""

import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pneumo_ray.cpu_shares import ActorShares
from pneumo_ray.errors import ClusterError
from pneumo_ray.model.memory import is_out_of_memory
from pneumo_ray.score import workers
from pneumo_ray.score.config import ExplainConfig, ScoringScale
from pneumo_ray.score.explainer import Explainer, ModelPayload
from pneumo_ray.score.image_list import part_name
from pneumo_ray.score.listing import list_images
from pneumo_ray.score.model_set import load_models

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


def limited_actor(folder: str) -> type:
    """The actor of the job; from its first block on it may have 1 GB more than it has when its model is ready."""

    class Limited(workers._ExplainActor):
        def __call__(self, block: pa.Table) -> pa.Table:
            import resource
            from pathlib import Path

            if not hasattr(self, "limited"):  # it began with one image: it has no memory of a larger batch at hand
                self.limited = True
                self._explainer.at_once = len(block)
                lines = Path("/proc/self/status").read_text().splitlines()
                now = next(line for line in lines if line.startswith("VmSize"))
                resource.setrlimit(resource.RLIMIT_AS, ((int(now.split()[1]) << 10) + (1000 << 20), -1))
            reports = super().__call__(block)
            Path(folder, "at_once").write_text(str(self._explainer.at_once))
            return reports

    return Limited


def test_workers_with_little_memory_lose_no_image(ray_cluster, phantom_archive, save_member, tmp_path, monkeypatch):
    """32 images of 512 pixels need 537 MB for the maps of the first layer, and as much again for those behind its normalisation."""
    model = save_member(tmp_path / "model", 0, size=512)
    some = tmp_path / "some"
    some.mkdir()
    for number, path in enumerate(sorted(phantom_archive.rglob("*.jp*g"))[:32]):
        shutil.copy(path, some / f"{number}.jpeg")
    scale = ScoringScale(batch_size=32, compile="off")
    found = {}
    for kind in ("free", "limited"):
        out = tmp_path / kind
        out.mkdir()
        config = ExplainConfig(model=str(model), out=str(out), archive=(str(some),), amp="off", scale=scale)
        config = config.resolved("head")
        payload = ModelPayload.of(load_models(config.model), config)
        source = list_images(config.archive, str(out / "_list.parquet"), 512)
        arguments = workers.SharedArguments(source, payload, config, str(out), compiled=False, halvings=5)
        if kind == "limited":
            monkeypatch.setattr(workers, "_ExplainActor", limited_actor(str(tmp_path)))
        reports = list(workers.score_shards(arguments, range(source.num_shards), ActorShares(1, 1, 1.0, 0, 1)))
        assert sum(report.num_rows for report in reports) == source.num_images
        assert {report.fatal for report in reports} == {None}
        found[kind] = pa.concat_tables([pq.read_table(out / part_name(n)) for n in range(source.num_shards)])
    assert int((tmp_path / "at_once").read_text()) in (1, 2, 4, 8, 16)
    free, limited = (found[kind].sort_by("image_id") for kind in ("free", "limited"))
    assert limited["image_id"].to_pylist() == free["image_id"].to_pylist()
    assert set(limited["status"].to_pylist()) == {"ok"}
    for name in ("logit_mean", "logit_std", "cam_mean"):
        one, other = (np.array(table[name].to_pylist(), float) for table in (free, limited))
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=name)


def test_too_little_memory_for_one_image_is_reported(members, monkeypatch):
    """Memory that does not suffice for one image cannot be mended by a smaller batch."""
    config = ExplainConfig(model="", out="", archive=("x",), amp="off", scale=ScoringScale(batch_size=4)).resolved(
        "head"
    )
    scorer = Explainer(ModelPayload.of(load_models((members[0],)), config), config, torch.device("cpu"))

    def refuse(x: torch.Tensor) -> torch.Tensor:
        return torch.empty(1 << 60)  # more than any machine has

    monkeypatch.setattr(scorer, "_feature_maps", [refuse])
    with pytest.raises(ClusterError, match="one image"):
        scorer.columns(np.zeros((4, 64, 64), np.uint8), [None] * 4)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory")]
)
def test_another_error_is_not_taken_for_it(error):
    assert not is_out_of_memory(error)
