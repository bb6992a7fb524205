"""A self-test of a machine with CUDA: does the program reach what its GPUs can do, and does it compute the same there?

Everything runs with torch and CUDA alone; what needs Ray (the jobs) is measured where Ray is installed and `--shared` has
radiographs. Nothing here assumes CUDA except `bench_gpu`, so the tests run each measurement on a CPU.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import Row
from pneumo_ray.errors import ClusterError
from pneumo_ray.model import ModelConfig, PneumoniaNet, Preprocessing, save_bundle
from pneumo_ray.model.bundle import load_bundle
from pneumo_ray.model.precision import amp_dtype, autocast
from pneumo_ray.score.config import ExplainConfig, ScoringScale

FLOAT32_TOLERANCE, HALF_TOLERANCE = 2e-3, 5e-2
"""Largest difference of a probability from the CPU's float32: TF32 keeps 10 bits of a product, bfloat16 7."""


@dataclass(frozen=True)
class Workload:
    """What is measured."""

    device: torch.device
    arch: str = "resnet50"
    size: int = 224
    train_batch: int = 64
    score_batch: int = 256
    steps: int = 30
    """Of each measurement, after `warm_up`."""
    warm_up: int = 5

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, step: Callable[[], object]) -> float:
        """Return the mean duration of a step."""
        for _ in range(self.warm_up):
            step()
        self.synchronise()
        start = time.perf_counter()
        for _ in range(self.steps):
            step()
        self.synchronise()
        return (time.perf_counter() - start) / self.steps


def bench_gpu(shared: Path) -> Iterator[Row]:
    """Measure every GPU of this machine.

    Raises:
        ClusterError: if torch finds none.
    """
    if not torch.cuda.is_available():
        raise ClusterError(
            "torch finds no CUDA device, so there is nothing to measure; run `python jobs/bench.py gpu` on a machine with an "
            "NVIDIA GPU and a CUDA build of torch"
        )
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    work = Workload(torch.device("cuda", 0))
    yield from training(work)
    yield from scoring(work)
    yield from copies(work)
    yield from agreement(work)
    if torch.cuda.device_count() > 1:
        yield ddp(work, torch.cuda.device_count())
    if find_spec("ray") is not None and (shared / "kermany224").is_dir():
        yield from jobs(shared, next(iter(training(work, kinds=("eager",)))))


def _network(work: Workload) -> PneumoniaNet:
    torch.manual_seed(0)
    net = PneumoniaNet(ModelConfig(arch=work.arch, weights="none"))
    return net.to(work.device).to(memory_format=torch.channels_last)


def _training_step(work: Workload, net: nn.Module, forward: Any, x: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    labels = torch.randint(0, 2, (len(x),), device=work.device).float()
    dtype = amp_dtype("auto", work.device)

    def step() -> None:
        with autocast(dtype, work.device):
            logits = forward(x)
        loss = F.binary_cross_entropy_with_logits(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def _pixels(work: Workload, batch: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (batch, work.size, work.size)).astype(np.uint8)


def _input(work: Workload, pixels: np.ndarray) -> Tensor:
    grey = torch.from_numpy(pixels).to(work.device)
    return Preprocessing(work.size, work.size).normalise(grey, channels_last=True)


def training(work: Workload, kinds: tuple[str, ...] = ("eager", "compiled")) -> Iterator[Row]:
    """Yield the rate of training on ready tensors, with the peak of the device's memory."""
    eager = 0.0
    for kind in kinds:
        if work.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(work.device)
        net = _network(work).train()
        forward = torch.compile(net) if kind == "compiled" else net
        seconds = work.seconds(_training_step(work, net, forward, _input(work, _pixels(work, work.train_batch))))
        rate = work.train_batch / seconds
        eager = eager or rate
        peak = torch.cuda.max_memory_allocated(work.device) / 2**30 if work.device.type == "cuda" else float("nan")
        yield Row(
            f"training {work.arch}, {work.size} px, batch {work.train_batch}, {kind}, ready tensors",
            f"{rate:,.0f} img/s, {peak:.1f} GiB",
            f"{eager:,.0f} img/s, {kinds[0]}",
            rate / eager,
            "",
        )


def scoring(work: Workload) -> Iterator[Row]:
    """Yield the rate of the scorer, uint8 arrays in and columns out, against the bare network on ready tensors."""
    from pneumo_ray.score.explainer import Explainer

    net = _network(work).eval()
    x, dtype = _input(work, _pixels(work, work.score_batch)), amp_dtype("auto", work.device)

    def bare() -> None:
        with torch.inference_mode(), autocast(dtype, work.device):
            net(x)

    rate = work.score_batch / work.seconds(bare)
    pixels = _pixels(work, work.score_batch)
    for compiled in (False, True):
        payload, config = _payload(work, "auto")
        scorer = Explainer(payload, config, work.device)
        if compiled:
            scorer.compile()
        ours = work.score_batch / work.seconds(lambda scorer=scorer: scorer.columns(pixels, [None] * len(pixels)))
        yield Row(
            f"scoring {work.arch}, {work.size} px, batch {work.score_batch}, {'compiled' if compiled else 'eager'}",
            f"{ours:,.0f} img/s",
            f"{rate:,.0f} img/s, bare eager model on ready tensors",
            ours / rate,
            ">= 0.9",
        )


def _payload(work: Workload, amp: str) -> tuple[Any, ExplainConfig]:
    from pneumo_ray.score.explainer import ModelPayload

    with tempfile.TemporaryDirectory() as folder:
        save_bundle(folder, _network(work).cpu(), preprocessing=Preprocessing(work.size, work.size))
        scale = ScoringScale(batch_size=work.score_batch)
        config = ExplainConfig(model=folder, out="", archive=("x",), amp=amp, scale=scale).resolved("head")
        return ModelPayload.from_bundle(load_bundle(folder), config), config


def copies(work: Workload) -> Iterator[Row]:
    """Yield what it costs to copy a batch to the device: from ordinary and from pinned memory, and beside computation."""
    net = _network(work).eval()
    dtype = amp_dtype("auto", work.device)
    ordinary = torch.from_numpy(_pixels(work, work.score_batch))
    pinned = ordinary.pin_memory() if work.device.type == "cuda" else ordinary
    resident = ordinary.to(work.device)
    normalise = Preprocessing(work.size, work.size).normalise

    def score(grey: Tensor) -> None:
        with torch.inference_mode(), autocast(dtype, work.device):
            net(normalise(grey, channels_last=True))

    def copied(source: Tensor) -> Callable[[], None]:
        return lambda: score(source.to(work.device, non_blocking=True))

    alone = work.seconds(lambda: score(resident))
    for name, source in (("ordinary", ordinary), ("pinned", pinned)):
        copy = work.seconds(lambda source=source: source.to(work.device, non_blocking=True))
        both = work.seconds(copied(source))
        yield Row(
            f"a batch of {work.score_batch} uint8 images from {name} memory, and scored",
            f"{both * 1e3:.2f} ms; the copy alone {copy * 1e3:.2f} ms, {source.nbytes / copy / 1e9:.1f} GB/s",
            f"{alone * 1e3:.2f} ms, the batch on the device",
            both / alone,
            "<= 1.05",
        )


def agreement(work: Workload) -> Iterator[Row]:
    """Yield how far the device's scores lie from those of the CPU in float32."""
    from pneumo_ray.score.explainer import Explainer

    work = replace(work, score_batch=min(work.score_batch, 32))
    pixels = _pixels(work, work.score_batch)
    boxes = [None] * len(pixels)
    exact, config = _payload(work, "off")
    expected = Explainer(exact, config, torch.device("cpu")).columns(pixels, boxes)["prob_mean"]
    for amp, tolerance in (("off", FLOAT32_TOLERANCE), ("auto", HALF_TOLERANCE)):
        payload, config = _payload(work, amp)
        found = Explainer(payload, config, work.device).columns(pixels, boxes)["prob_mean"]
        difference = float(np.abs(found - expected).max())
        yield Row(
            f"probabilities of {len(pixels)} images, precision {amp}",
            f"{difference:.1e} from the CPU's at most",
            f"{tolerance:g}, the tolerance",
            difference / tolerance,
            "<= 1",
        )


def ddp(work: Workload, devices: int) -> Row:
    """Return the rate of training on several devices at once, each with its own batch, against one of them."""
    rates = [_ddp_rate(work, count) for count in (1, devices)]
    return Row(
        f"training {work.arch} with DDP on {devices} devices, batch {work.train_batch} each",
        f"{rates[1]:,.0f} img/s",
        f"{devices} x {rates[0]:,.0f} img/s, one device",
        rates[1] / (devices * rates[0]),
        ">= 0.9",
    )


def _ddp_rate(work: Workload, devices: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_ddp_process, (work, devices, folder), nprocs=devices)
        return float(Path(folder, "rate").read_text())


def _ddp_process(rank: int, work: Workload, devices: int, folder: str) -> None:
    cuda = work.device.type == "cuda"
    work = replace(work, device=torch.device("cuda", rank) if cuda else work.device)
    if cuda:
        torch.cuda.set_device(work.device)
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    store = f"file://{folder}/store"
    dist.init_process_group("nccl" if cuda else "gloo", init_method=store, rank=rank, world_size=devices)
    try:
        net = _network(work).train()
        wrapped = nn.parallel.DistributedDataParallel(net, device_ids=[rank] if cuda else None)
        step = _training_step(work, net, wrapped, _input(work, _pixels(work, work.train_batch)))
        rate = devices * work.train_batch / work.seconds(step)
        if rank == 0:
            Path(folder, "rate").write_text(repr(rate))
    finally:
        dist.destroy_process_group()


def jobs(shared: Path, ready: Row) -> Iterator[Row]:
    """Yield the rates of jobs/train.py and jobs/explain.py on the GPUs, from files to results.

    Args:
        shared: folder with kermany224.
        ready: of training on ready tensors.
    """
    from benchmarks.train import prepared

    with tempfile.TemporaryDirectory() as folder:
        prepared(shared, folder)
        count = torch.cuda.device_count()
        options = ["--model.weights", "none", "--epochs", "3", "--balance", "none", "--recipe", "paper", "--scaling.use-gpu",
                   "--scaling.num-workers", str(count), "--batch-size", str(64 * count)]  # fmt: skip
        _run("train", "--manifest", f"{folder}/manifest.parquet", "--out", f"{folder}/run", *options)
        lines = Path(folder, "run", "history.jsonl").read_text().splitlines()
        rate = json.loads(lines[-1])["images_per_second"]
        tensors = float(ready.ours.split()[0].replace(",", ""))
        yield Row(
            f"jobs/train.py on {count} GPU(s), ResNet-50, 224 px",
            f"{rate:,.0f} img/s",
            f"{count} x {tensors:,.0f} img/s, ready tensors",
            rate / (count * tensors),
            "",
        )
        words = ["--archive", str(shared / "kermany224"), "--model", f"{folder}/run/model", "--out", f"{folder}/scores"]
        _run("explain", *words, "--scale.use-gpu")
        facts = json.loads(Path(folder, "scores", "_run.json").read_text())
        yield Row(
            f"jobs/explain.py on {count} GPU(s), 5,528 images",
            f"{facts['images_per_second_after_the_first_shard'] or 0:,.0f} img/s after the first shard",
            f"{facts['images_per_second']:,.0f} img/s with start-up",
            (facts["images_per_second_after_the_first_shard"] or 0) / facts["images_per_second"],
            "",
        )


def _run(job: str, *words: str) -> None:
    subprocess.run([sys.executable, f"jobs/{job}.py", *words], check=True, capture_output=True)
