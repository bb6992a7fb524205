"""Runs and scoring jobs on clusters whose nodes, workers, drivers and heads are killed or come later."""

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pneumo_ray.train.state import load_state

ROOT = Path(__file__).parents[2]
EPOCHS = 4
TRAINING = ["--model.arch", "resnet18", "--model.weights", "none", "--data.image-size", "32", "--batch-size", "16"]
TRAINING += ["--optim.lr", "1e-3", "--epochs", str(EPOCHS)]


def train(phantom_run: Path, out: Path, *more: str) -> list[str]:
    return ["jobs/train.py", "--manifest", str(phantom_run / "manifest.parquet"), "--out", str(out), *TRAINING, *more]


def history(out: Path) -> list[dict]:
    path = out / "history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def node_of(process: psutil.Process, nodes: list[psutil.Process]) -> psutil.Process:
    """Return the node that a process runs on."""
    (found,) = [node for node in nodes if node in process.parents()]
    return found


def test_a_lost_node_changes_no_weights(nodes, phantom_run, tmp_path):
    nodes.start_head(1)
    nodes.add_node(2)
    nodes.add_node(2)
    two = ("--scaling.num-workers", "2")
    nodes.job(*train(phantom_run, tmp_path / "whole", *two)).ends()
    job = nodes.job(*train(phantom_run, tmp_path / "hit", *two))
    job.until(lambda: len(history(tmp_path / "hit")) >= 2)
    workers = nodes.workers("RayTrainWorker")
    assert all("jemalloc" in Path(f"/proc/{worker.pid}/maps").read_text() for worker in workers)
    lost = node_of(workers[0], nodes.nodes[1:])
    nodes.kill_node(lost)
    job.ends()
    whole, hit = load_state(str(tmp_path / "whole")), load_state(str(tmp_path / "hit"))
    assert [record.epoch for record in hit.history] == list(range(1, EPOCHS + 1))
    for name, tensor in hit.model.items():
        assert torch.allclose(tensor.double(), whole.model[name].double(), rtol=0, atol=1e-6), name


def test_an_elastic_run_shrinks_and_grows(nodes, phantom_run, tmp_path):
    nodes.start_head(1)
    nodes.add_node(2)
    nodes.add_node(2)
    words = ["--scaling.num-workers", "1", "3", "--epochs", "60", "--optim.stop-patience", "60"]
    job = nodes.job(*train(phantom_run, tmp_path, *words))
    job.until(lambda: len(history(tmp_path)) >= 2)
    assert history(tmp_path)[0]["workers"] == 2, "a node of two CPUs holds one worker"
    nodes.kill_node(node_of(nodes.workers("RayTrainWorker")[0], nodes.nodes[1:]))
    job.until(lambda: history(tmp_path)[-1]["workers"] == 1)
    nodes.add_node(2)
    job.until(lambda: history(tmp_path)[-1]["workers"] == 2)
    job.kill()
    epochs = [record["epoch"] for record in history(tmp_path)]
    assert epochs == list(range(1, len(epochs) + 1)), "no epoch is missing, and none is there twice"


def scores(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("*.parquet"))])


@pytest.fixture(scope="module")
def many(under_many_names, tmp_path_factory) -> Path:
    """1,280 images, which are 40 shards."""
    return under_many_names(tmp_path_factory.mktemp("many"), 16)


def explain(archive: Path, model: Path, out: Path, *more: str) -> list[str]:
    options = ["--archive", str(archive), "--model", str(model), "--out", str(out), "--amp", "off"]
    return ["jobs/explain.py", *options, "--scale.batch-size", "8", *more]


def parts(out: Path) -> int:
    return len(list(out.glob("part-*.parquet")))


@pytest.fixture(scope="module")
def whole_scores(many, model, tmp_path_factory) -> pa.Table:
    """What a job says that nothing disturbed, in a Ray of its own."""
    out = tmp_path_factory.mktemp("whole-scores")
    result = subprocess.run(
        [sys.executable, *explain(many, model, out)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return scores(out)


def holds_every_image_once(out: Path, whole: pa.Table) -> None:
    found = scores(out)
    assert found.num_rows == len(set(found["image_id"].to_pylist())) == 1280
    assert found.equals(whole)


def test_a_killed_actor_costs_no_row(nodes, many, model, whole_scores, tmp_path):
    nodes.start_head(2)
    job = nodes.job(*explain(many, model, tmp_path))
    job.until(lambda: parts(tmp_path) >= 5)
    nodes.kill(nodes.workers("_ExplainActor"))
    said = job.ends()
    assert "a worker died; continuing" in said
    assert "wrote 1,280 rows" in said
    holds_every_image_once(tmp_path, whole_scores)


def test_scoring_outlives_nodes_and_uses_new_ones(nodes, many, model, whole_scores, tmp_path):
    nodes.start_head(1)
    nodes.add_node(2)
    nodes.add_node(2)
    job = nodes.job(*explain(many, model, tmp_path, "--scale.num-actors", "3", "4"))
    job.until(lambda: parts(tmp_path) >= 5)
    head, *others = nodes.nodes
    actors = [process for process in nodes.workers("_ExplainActor") if head not in process.parents()]
    nodes.kill_node(node_of(actors[0], others))
    nodes.add_node(2)
    assert "wrote 1,280 rows" in job.ends()
    holds_every_image_once(tmp_path, whole_scores)


def test_after_the_head_restarts_the_same_commands_continue(nodes, phantom_run, many, model, whole_scores, tmp_path):
    """With the head go the driver and all that it ran; what is on disk is what the next one finds."""
    whole, hit, scored = tmp_path / "whole", tmp_path / "hit", tmp_path / "scores"
    head = nodes.start_head(8)
    nodes.job(*train(phantom_run, whole, "--optim.stop-patience", "40")).ends()
    training = nodes.job(*train(phantom_run, hit, "--epochs", "40", "--optim.stop-patience", "40"))
    training.until(lambda: len(history(hit)) >= 1)
    scoring = nodes.job(*explain(many, model, scored))
    scoring.until(lambda: parts(scored) >= 3)
    nodes.kill_node(head)
    for job in (training, scoring):
        job.process.wait(timeout=180)
        assert job.process.returncode != 0, job.said
    nodes.start_head(8)
    done = len(history(hit))
    again = nodes.job(*train(phantom_run, hit, "--epochs", str(done + 1), "--optim.stop-patience", "40"))
    assert f"continuing after epoch {done}" in again.ends()
    keys = ("epoch", "train_loss", "val_loss", "lr")
    common = min(EPOCHS, done + 1)
    assert len(history(hit)) == done + 1
    records = [[{key: record[key] for key in keys} for record in history(run)[:common]] for run in (whole, hit)]
    assert records[0] == records[1]
    assert "wrote 1,280 rows" in nodes.job(*explain(many, model, scored)).ends()
    holds_every_image_once(scored, whole_scores)


def test_repeated_deaths_end_in_one_sentence(nodes, phantom_run, tmp_path):
    nodes.start_head(2)
    slow = ["--data.image-size", "224", "--scaling.max-failures", "1"]
    job = nodes.job(*train(phantom_run, tmp_path, *slow))
    killed: set[int] = set()

    def kill_what_trains() -> bool:
        for worker in nodes.workers("RayTrainWorker"):
            if worker.pid not in killed and worker.cpu_times().user > 8:  # it has imported torch, and begun
                killed.add(worker.pid)
                nodes.kill([worker])
        return job.process.poll() is not None

    with suppress(AssertionError):
        job.until(kill_what_trains, seconds=300)
    said = job.ends(2)
    assert "error: workers died 2 times in epoch 1" in said
    assert "Traceback" not in said
