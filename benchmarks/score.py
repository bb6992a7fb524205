"""The scoring job end to end: full-size images, memory and output; its rate is one of the goals."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from benchmarks.timing import Row
from pneumo_ray.data.archive import list_archives
from pneumo_ray.data.inspect import InspectConfig, inspect_entries
from pneumo_ray.model import ModelConfig, PneumoniaNet, Preprocessing, save_bundle
from pneumo_ray.model.precision import amp_dtype, autocast


def bench_score(shared: Path) -> Iterator[Row]:
    """Measure a ResNet-50 at 224 pixels on 160 full-size and 5,528 small radiographs."""
    with tempfile.TemporaryDirectory() as folder:
        net = saved_network(folder)
        small, large = shared / "kermany224", shared / "kermany_fullres"
        bare = [bare_rate(net)]
        eager = run_job(small, folder, "eager", "--scale.compile", "off")
        bare.append(bare_rate(net))
        rate = statistics.median(bare)
        full = run_job(large, folder, "full", "--scale.compile", "off")
        decode = _decode_rate(large)
        allowed = 1 / (1 / rate + 1 / (len(os.sched_getaffinity(0)) * decode))
        yield Row(
            "scoring 160 full-size images, without start-up",
            f"{full.inner:.1f} img/s",
            f"{allowed:.1f} img/s, what decoding ({decode:.0f} per core) and the model allow on these cores",
            full.inner / allowed,
            ">= 0.9",
        )
        few = run_job(small / "test", folder, "few", "--scale.compile", "off")
        yield Row(
            "memory of driver and actor, 5,528 images",
            f"{eager.memory_mb:.0f} MB",
            f"{few.memory_mb:.0f} MB for {few.rows} images",
            eager.memory_mb / few.memory_mb,
            "flat",
        )
        yield Row(
            "scores on disk", f"{eager.bytes_per_row:.0f} bytes per image", "1,000", 1000 / eager.bytes_per_row, ">= 1"
        )


def saved_network(folder: str) -> PneumoniaNet:
    """Save a ResNet-50 with random weights as the bundle FOLDER/model; return it."""
    torch.manual_seed(0)
    net = PneumoniaNet(ModelConfig(arch="resnet50", weights="none"))
    save_bundle(f"{folder}/model", net, preprocessing=Preprocessing(224, 256))
    return net


class ScoringRun:
    """One run of jobs/explain.py."""

    def __init__(self, seconds: float, out: Path, memory: int | None) -> None:
        facts = json.loads((out / "_run.json").read_text())
        self.rows: int = facts["rows"]
        self.rate = self.rows / seconds
        self.inner: float = facts["images_per_second_after_the_first_shard"]
        self._memory = memory
        self.bytes_per_row = sum(path.stat().st_size for path in out.glob("*.parquet")) / self.rows

    @property
    def memory_mb(self) -> float:
        """Peak of driver and actors.

        Raises:
            RuntimeError: if the job was too short to measure it.
        """
        if self._memory is None:
            raise RuntimeError("no actor was found, so its memory is unknown")
        return self._memory / 2**20


def run_job(archive: Path, folder: str, name: str, *options: str) -> ScoringRun:
    """Run jobs/explain.py with the bundle FOLDER/model, its scores in FOLDER/NAME."""
    out = Path(folder) / name
    words = ["--archive", str(archive), "--model", f"{folder}/model", "--out", str(out), *options]
    start = time.perf_counter()
    job = subprocess.Popen(
        [sys.executable, "jobs/explain.py", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    peak = _Peak(job.pid)
    _, errors = job.communicate()
    seconds = time.perf_counter() - start
    if job.returncode:
        raise RuntimeError(errors.decode())
    return ScoringRun(seconds, out, peak.stop())


class _Peak:
    """Measures the memory of a driver and its actors, without shared pages."""

    def __init__(self, pid: int) -> None:
        self._driver, self._peak, self._ended = psutil.Process(pid), 0, threading.Event()
        self._saw_an_actor = False
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def _follow(self) -> None:
        while not self._ended.wait(5.0):
            try:
                family = [self._driver, *self._driver.children(recursive=True)]
                watched = [p for p in family if p == self._driver or "_ExplainActor" in " ".join(p.cmdline())]
                self._saw_an_actor |= len(watched) > 1
                memory = [process.memory_info() for process in watched]
                self._peak = max(self._peak, sum(info.rss - info.shared for info in memory))
            except psutil.Error:
                continue

    def stop(self) -> int | None:
        """Return the peak in bytes; None if the job was over before an actor was seen."""
        self._ended.set()
        self._thread.join()
        return self._peak if self._saw_an_actor else None


def bare_rate(net: PneumoniaNet, batches: int = 20, batch: int = 16) -> float:
    """Return images per second of the eager model on ready tensors."""
    device = torch.device("cpu")
    net = net.eval().to(memory_format=torch.channels_last)
    pixels = torch.randint(0, 256, (batch, 224, 224), dtype=torch.uint8)
    x = Preprocessing(224, 256).normalise(pixels, channels_last=True)
    with torch.inference_mode(), autocast(amp_dtype("auto", device), device):
        net(x)
        start = time.perf_counter()
        for _ in range(batches):
            net(x)
    return batches * batch / (time.perf_counter() - start)


def _decode_rate(archive: Path) -> float:
    """Return the full-size images per second that one core reads, decodes and resizes."""
    entries = list(list_archives([str(archive)]))
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        inspect_entries(entries, InspectConfig(256, folder))
    return len(entries) / (time.perf_counter() - start)
