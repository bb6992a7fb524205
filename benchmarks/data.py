"""Throughput per core from an archive to a batch."""

import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from benchmarks.timing import Row, rates
from pneumo_ray.data.archive import list_archives
from pneumo_ray.data.dataset import CACHE_SIZE, load_bases
from pneumo_ray.data.inspect import InspectConfig, inspect_entries
from pneumo_ray.images.augment import augment_batch, draw_augmentations, resize_grey
from pneumo_ray.images.augment_config import AugmentConfig


def bench_data(shared: Path) -> Iterator[Row]:
    """Measure preparing, decoding, reading the cache and augmenting, on real radiographs."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    yield _prepare(shared / "kermany224")
    with tempfile.TemporaryDirectory() as folder:
        yield from _decode_and_cache(shared / "kermany_fullres", folder)
    yield _augment(shared / "kermany224", 224)
    yield _augment(shared / "kermany224", 112)
    yield _planning(next((shared / "kermany224" / "train" / "NORMAL").iterdir()).resolve())


def _prepare(archive: Path) -> Row:
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "jobs/prepare.py", "--archive", str(archive), "--out", out, "--cache"],
            check=True,
            capture_output=True,
        )
        seconds = time.perf_counter() - start
    return Row("prepare --cache on 5,528 images, start-up included", f"{seconds:.1f} s", "40 s", 40 / seconds, ">= 1")


def _decode_and_cache(archive: Path, folder: str) -> list[Row]:
    entries = list(list_archives([str(archive)]))

    def bare() -> int:
        for entry in entries:
            with Image.open(io.BytesIO(Path(entry.uri).read_bytes())) as image:
                image.draft("L", (CACHE_SIZE, CACHE_SIZE))
                image.convert("L")
        return len(entries)

    def bare_resize() -> int:
        for entry in entries:
            with Image.open(io.BytesIO(Path(entry.uri).read_bytes())) as image:
                image.draft("L", (CACHE_SIZE, CACHE_SIZE))
                resize_grey(np.asarray(image.convert("L")), CACHE_SIZE)
        return len(entries)

    def ours() -> int:
        return len(inspect_entries(entries, InspectConfig(CACHE_SIZE)))

    def ours_cached() -> int:
        return len(inspect_entries(entries, InspectConfig(CACHE_SIZE, folder)))

    decode = rates({"ours": ours, "bare": bare, "ours, cached": ours_cached, "bare, resized": bare_resize}, rounds=5)
    table = inspect_entries(entries, InspectConfig(CACHE_SIZE, folder))
    random = np.random.default_rng(0)

    def cached() -> int:
        for _ in range(10):
            load_bases(table.take(random.integers(0, len(table), 64)), 224, folder)
        return 640

    def originals() -> int:
        load_bases(table.take(random.integers(0, len(table), 64)), 224, None)
        return 64

    read = rates({"ours": cached, "decode": originals}, rounds=3)
    return [
        Row(
            "prepare, full-size files, one core",
            f"{decode['ours']:.0f} img/s",
            f"{decode['bare']:.0f} img/s, bare draft decoding",
            decode["ours"] / decode["bare"],
            ">= 0.9",
        ),
        Row(
            "prepare --cache, the same",
            f"{decode['ours, cached']:.0f} img/s",
            f"{decode['bare, resized']:.0f} img/s, bare draft decoding and resizing",
            decode["ours, cached"] / decode["bare, resized"],
            ">= 0.9",
        ),
        Row(
            "random batch from the cache",
            f"{read['ours']:,.0f} img/s",
            f"{read['decode']:.0f} img/s, decoding full-size files",
            read["ours"] / read["decode"],
            ">= 5",
        ),
    ]


def _augment(archive: Path, size: int) -> Row:
    base = size * 256 // 224
    paths = sorted((archive / "train" / "NORMAL").iterdir())[:128]
    images = [Image.open(path).convert("L").resize((base, base)) for path in paths]
    bases = np.stack([np.asarray(image) for image in images])
    config = AugmentConfig()
    torchvision = v2.Compose(
        [
            v2.RandomHorizontalFlip(0.5),
            v2.RandomRotation(10, v2.InterpolationMode.BILINEAR),
            v2.RandomResizedCrop(size, (0.8, 1.0), (0.9, 1 / 0.9), v2.InterpolationMode.BILINEAR),
            v2.ColorJitter(0.2, 0.2),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomApply([v2.GaussianNoise(0.0, 0.02)], 0.3),
        ]
    )
    slot = 0

    def ours() -> int:
        nonlocal slot
        slot += 10_000
        for start in range(0, 128, 64):
            slots = np.arange(slot + start, slot + start + 64, dtype=np.uint64)
            augment_batch(bases[start : start + 64], draw_augmentations(config, 0, slots), size)
        return 128

    def theirs() -> int:
        for image in images:
            torchvision(image)
        return 128

    found = rates({"ours": ours, "torchvision": theirs})
    return Row(
        f"augmentation to {size} px, one core",
        f"{found['ours']:,.0f} img/s",
        f"{found['torchvision']:,.0f} img/s, torchvision v2 on PIL",
        found["ours"] / found["torchvision"],
        ">= 5",
    )


def _planning(image: Path) -> Row:
    """Peak resident memory of a driver that runs the stream of 30 epochs, for 5,000 and for 500,000 images per epoch."""
    code = """
import resource, sys
import numpy as np, pyarrow as pa, ray
from pneumo_ray.images.augment_config import AugmentConfig
from pneumo_ray.train.ray_stream import ticket_stream
from pneumo_ray.train.batches import BatchSource
n = int(sys.argv[1])
ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
table = pa.table({
    "image_id": [str(i) for i in range(n)], "uri": [sys.argv[2]] * n, "member": pa.nulls(n, pa.string()), "frame": pa.nulls(n, pa.int32()),
    "label": pa.array(np.arange(n) % 2, pa.int8()), "content_sha256": ["0" * 64] * n,
})
source = ray.put(BatchSource(table, table.slice(0, 500), 224, "copies", AugmentConfig(), 0, 64))
del table
tickets = iter(ticket_stream(source, 0, 30, 1).iter_batches(batch_size=1))
for _ in range(20):
    next(tickets)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    peak = {}
    for images in (5_000, 500_000):
        out = subprocess.run(
            [sys.executable, "-c", code, str(images), str(image)], check=True, capture_output=True, text=True
        )
        peak[images] = int(out.stdout.split()[-1])
    table_mb = 500_000 * (80 + len(str(image))) >> 20
    return Row(
        "driver's memory for 30 epochs of 500,000 images",
        f"{peak[500_000]} MB",
        f"{peak[5_000]} MB for 5,000 (the manifest itself is {table_mb} MB)",
        peak[500_000] / peak[5_000],
        "flat",
    )
