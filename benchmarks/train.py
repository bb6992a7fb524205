"""Training through the whole pipeline, against the same steps on ready tensors and against a plain PyTorch script."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.timing import Row
from pneumo_ray.data.manifest import read_manifest, write_manifest
from pneumo_ray.model import ModelConfig, Preprocessing, build_model
from pneumo_ray.model.precision import amp_dtype, autocast

BATCH = 64


def compared(
    shared: Path, folder: str, arch: str, size: int, steps: int, rounds: int, goals: tuple[str, str]
) -> Iterator[Row]:
    """Measure the whole pipeline against ready tensors and against a plain script, taking turns.

    Args:
        shared: folder with kermany224.
        folder: where it was prepared.
        arch: of the network.
        size: of its input, in pixels.
        steps: of an epoch.
        rounds: how often they take turns.
        goals: of the two ratios.
    """
    manifest = subset(folder, steps)
    ready, piped, plain = [], [], []
    for number in range(rounds):
        ready.append(_ready(arch, size, steps))
        piped += _pipeline(manifest, f"{folder}/{arch}-{number}", arch, size)
        plain.append(_plain(shared / "kermany224" / "train", arch, size, steps))
    ours, tensors, script = (statistics.median(values) for values in (piped, ready, plain))
    name = f"training {arch}, {size} px"
    yield Row(name, f"{ours:.1f} img/s", f"{tensors:.1f} img/s, ready tensors", ours / tensors, goals[0])
    yield Row(name, f"{ours:.1f} img/s", f"{script:.1f} img/s, plain PyTorch script", ours / script, goals[1])


def prepared(shared: Path, folder: str) -> str:
    """Prepare the real radiographs, with a cache, in a folder; return it."""
    command = [sys.executable, "jobs/prepare.py", "--archive", str(shared / "kermany224"), "--out", folder, "--cache"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def subset(folder: str, steps: int) -> str:
    """Write a manifest whose epoch has about `steps` steps without balancing, and a small validation set."""
    table = read_manifest(f"{folder}/manifest.parquet")
    split = table["split"].to_pylist()
    label = table["label"].to_pylist()
    chosen: dict[tuple[str, int], list[int]] = {}
    for row, key in enumerate(zip(split, label, strict=True)):
        chosen.setdefault(key, []).append(row)
    half = steps * BATCH // 2
    rows = [row for c in (0, 1) for row in chosen["train", c][:half] + chosen["val", c][:32]]
    path = f"{folder}/manifest-{steps}.parquet"
    write_manifest(table.take(sorted(rows)), path)
    return path


def _ready(arch: str, size: int, steps: int, warm_up: int = 3) -> float:
    """Return images per second of the same network, precision and optimiser on ready tensors."""
    torch.manual_seed(0)
    net = build_model(ModelConfig(arch=arch, weights="none")).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    pixels = torch.randint(0, 256, (BATCH, size, size), dtype=torch.uint8)
    labels = torch.randint(0, 2, (BATCH,)).float()
    x = Preprocessing(size, size).normalise(pixels, channels_last=True)
    device = torch.device("cpu")
    start = 0.0
    for step in range(steps + warm_up):
        if step == warm_up:
            start = time.perf_counter()
        with autocast(amp_dtype("auto", device), device):
            logits = net(x)
        loss = F.binary_cross_entropy_with_logits(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return steps * BATCH / (time.perf_counter() - start)


def _pipeline(manifest: str, out: str, arch: str, size: int) -> list[float]:
    """Return images per second of the epochs after the first, as reported by jobs/train.py."""
    options = [
        "--model.arch",
        arch,
        "--model.weights",
        "none",
        "--data.image-size",
        str(size),
        "--epochs",
        "3",
        "--balance",
        "none",
        # The network of the baselines: all of its stages, without guidance.
        "--recipe",
        "paper",
    ]
    subprocess.run(
        [sys.executable, "jobs/train.py", "--manifest", manifest, "--out", out, "--batch-size", str(BATCH), *options],
        check=True,
        capture_output=True,
    )
    history = [json.loads(line) for line in Path(out, "history.jsonl").read_text().splitlines()]
    return [record["images_per_second"] for record in history[1:]]


def _plain(folder: Path, arch: str, size: int, steps: int) -> float:
    command = [sys.executable, "-m", "benchmarks.plain_pytorch", str(folder), arch, str(size), str(steps)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
