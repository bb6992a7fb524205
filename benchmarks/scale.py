"""Time and memory for 10,000, 100,000 and 1,000,000 images without their pixels, and how both grow.

Each step runs in its own process, so that its peak memory can be measured (on Linux only). The images are
a few files under many names; the scores are drawn.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa

from benchmarks.drawn import CONFIG_HASH, MODEL_HASH, drawn_manifest, image_name, write_drawn_scores
from pneumo_ray import storage
from pneumo_ray.data.archive import list_archives
from pneumo_ray.data.audit import audit
from pneumo_ray.data.kermany import read_path
from pneumo_ray.data.manifest import fingerprint, read_manifest, refuse_leakage, write_manifest
from pneumo_ray.data.prepare import load_training_rows
from pneumo_ray.data.sampling import epoch_plan
from pneumo_ray.data.split import assign_splits
from pneumo_ray.images.augment_config import AugmentConfig
from pneumo_ray.train import batches as stream

SIZES = (10_000, 100_000, 1_000_000)
EPOCHS = 30
_MAX_LINKS = 50_000
"""Names of one file; ext4 allows 65,000."""
_IMAGE_SIZE = 224

Facts = dict[str, object]
Work = Callable[[], Facts]
"""The measured step; returns counts that show that it did its work."""


@dataclass(frozen=True)
class Measured:
    """What one step took at one size."""

    seconds: float
    cpu_seconds: float
    """CPU time of all threads; less affected by other processes than wall-clock time."""
    peak_mb: float
    facts: Facts


@dataclass(frozen=True)
class ScaleFolder:
    """The folder of one size, and the files that the steps read and write in it."""

    base: Path
    n: int

    @property
    def tree(self) -> Path:
        """The archive as folders of a thousand files."""
        return self.base / "tree"

    @property
    def tar(self) -> Path:
        """The archive as one tar file."""
        return self.base / "pictures.tar"

    @property
    def drawn(self) -> str:
        """A manifest whose splits are those of the folders."""
        return str(self.base / "drawn.parquet")

    @property
    def manifest(self) -> str:
        """The same, with splits."""
        return str(self.base / "manifest.parquet")

    @property
    def images(self) -> str:
        """The list of the scoring job."""
        return str(self.base / "pictures.parquet")

    @property
    def scores(self) -> Path:
        """All part files."""
        return self.base / "scores"

    @property
    def half(self) -> Path:
        """Every second part file."""
        return self.base / "half"


def bench_scale(shared: Path, sizes: Sequence[int] = SIZES) -> Iterator[str]:
    """Yield a Markdown table of all steps, line by line."""
    originals = [Path(entry.uri) for entry in list_archives([str(shared / "kermany224")])][:50]
    with tempfile.TemporaryDirectory() as temporary:
        folders = [ScaleFolder(Path(temporary) / str(n), n) for n in sizes]
        for folder in folders:
            make_inputs(folder, originals)
        yield f"| step | {' | '.join(f'{n:,}: s (CPU s) | MB' for n in sizes)} | growth |"
        yield f"| --- |{' --- |' * (2 * len(sizes) + 1)}"
        for name, (what, _) in STEPS.items():
            found = [measure(name, folder) for folder in folders]
            cells = " | ".join(f"{m.seconds:.3g} ({m.cpu_seconds:.3g}) | {m.peak_mb:,.0f}" for m in found)
            grows = f"{growth(found, sizes):.2f}" if found[0].cpu_seconds > 1e-4 else ""
            yield f"| {what} | {cells} | {grows} |"


def growth(found: Sequence[Measured], sizes: Sequence[int]) -> float:
    """Return the exponent k of CPU seconds ~ n^k between the two largest sizes: 1 is linear, NaN if there is one size."""
    if len(sizes) < 2:
        return math.nan
    return math.log(found[-1].cpu_seconds / found[-2].cpu_seconds) / math.log(sizes[-1] / sizes[-2])


def make_inputs(folder: ScaleFolder, originals: Sequence[Path]) -> None:
    """Make a folder tree, a tar file, a manifest and finished scores of `folder.n` images from a few files."""
    folder.base.mkdir(parents=True)
    copies = [folder.base / "originals" / f"{i}.jpeg" for i in range(max(len(originals), -(-folder.n // _MAX_LINKS)))]
    copies[0].parent.mkdir()
    for i, copy in enumerate(copies):
        shutil.copyfile(originals[i % len(originals)], copy)
    data = [copy.read_bytes() for copy in copies]
    with tarfile.open(folder.tar, "w") as tar:
        for i in range(folder.n):
            path = folder.tree / image_name(i)
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(copies[i % len(copies)], path)
            info = tarfile.TarInfo(image_name(i))
            info.size = len(data[i % len(copies)])
            tar.addfile(info, path.open("rb"))
    _draw(folder)


def measure(name: str, folder: ScaleFolder) -> Measured:
    """Run one step in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scale", name, str(folder.base), str(folder.n)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def _draw(folder: ScaleFolder) -> None:
    from pneumo_ray.score.image_list import shard_length

    uris: list[str | None] = [str(folder.tree / image_name(i)) for i in range(folder.n)]
    manifest = drawn_manifest(uris)
    write_manifest(manifest, folder.drawn)
    write_drawn_scores(folder.scores, manifest, shard_length(folder.n, _IMAGE_SIZE))
    folder.half.mkdir()
    for path in sorted(folder.scores.glob("*.parquet"))[::2]:
        os.link(path, folder.half / path.name)


def _imports(folder: ScaleFolder) -> Work:
    return dict


def _list(root: Path) -> Work:
    return lambda: {"listed": sum(1 for _ in list_archives([str(root)]))}


def _list_tree(folder: ScaleFolder) -> Work:
    return _list(folder.tree)


def _list_tar(folder: ScaleFolder) -> Work:
    return _list(folder.tar)


def _held(folder: ScaleFolder) -> Work:
    """The listing of prepare, which keeps the entries, and the facts read from their paths."""

    def work() -> Facts:
        entries = list(list_archives([str(folder.tree)]))
        return {"listed": len(entries), "splits": len({read_path(entry.facts_path).split for entry in entries})}

    return work


def _job_list(folder: ScaleFolder) -> Work:
    from pneumo_ray.score.listing import list_images

    def work() -> Facts:
        made = list_images([str(folder.tree)], str(folder.base / "listed.parquet"), _IMAGE_SIZE)
        return {"listed": made.num_images, "shards": made.num_shards}

    return work


def _split(folder: ScaleFolder) -> Work:
    drawn = read_manifest(folder.drawn)

    def work() -> Facts:
        table = assign_splits(drawn, "grouped", 0)
        write_manifest(table, folder.manifest)
        return {"rows": len(table), "set_aside": table["split"].null_count}

    return work


def _audit(folder: ScaleFolder) -> Work:
    table = read_manifest(folder.manifest)
    return lambda: audit(table)


def _read(folder: ScaleFolder) -> Work:
    return lambda: {"rows": len(read_manifest(folder.manifest))}


def _fingerprint(folder: ScaleFolder) -> Work:
    table = read_manifest(folder.manifest)
    return lambda: {"fingerprint": fingerprint(table)}


def _training_rows(folder: ScaleFolder) -> Work:
    def work() -> Facts:
        manifest, train, val = load_training_rows(folder.manifest)
        refuse_leakage(manifest)
        return {"train": len(train), "val": len(val)}

    return work


def _batch_source(folder: ScaleFolder) -> stream.BatchSource:
    _, train, val = load_training_rows(folder.manifest)
    return stream.BatchSource(train, val, _IMAGE_SIZE, "copies", AugmentConfig(), 0, 64)


def _plans(folder: ScaleFolder) -> Work:
    labels = _batch_source(folder).train_labels

    def work() -> Facts:
        rows = 0
        for epoch in range(EPOCHS):
            rows += len(epoch_plan(labels, balance="copies", seed=0, epoch=epoch, batch_size=64))
        return {"slots": rows}

    return work


def _tickets(folder: ScaleFolder) -> Work:
    """All tickets of one epoch, validation included, without pixels: the cost of a batch apart from its images."""
    source = _batch_source(folder)
    pixel = np.zeros((1, 1), np.uint8)

    def blank(*_: object) -> np.ndarray:
        return pixel

    def blanks(rows: pa.Table, *_: object) -> list[np.ndarray]:
        return [pixel] * len(rows)

    def work() -> Facts:
        schedule = source.schedule(1)
        seen = {"train": 0, "val": 0}
        with (
            mock.patch.object(stream, "load_bases", blanks),
            mock.patch.object(stream, "augment_batch", blank),
            mock.patch.object(stream, "load_inputs", blanks),
        ):
            for ticket in range(schedule.tickets_per_epoch):
                rows = source.batch(ticket, schedule)["row"]
                seen[schedule.position(ticket).phase] += int((rows != stream.PADDING).sum())
        return seen | {"slots": schedule.train_slots}

    return work


def _begin(folder: ScaleFolder) -> Work:
    from pneumo_ray.model import Preprocessing
    from pneumo_ray.score.image_list import list_fingerprint, write_list
    from pneumo_ray.score.listing import manifest_images

    def work() -> Facts:
        listed = manifest_images(folder.manifest, Preprocessing(), boxes=False)
        made = write_list(listed, folder.images, _IMAGE_SIZE)
        return {"fingerprint": list_fingerprint(listed), "shards": made.num_shards}

    return work


def _continue(folder: ScaleFolder) -> Work:
    """As in `score/job.py`."""
    from pneumo_ray.score.image_list import open_source, part_name

    def work() -> Facts:
        source = open_source(folder.images, _IMAGE_SIZE)
        done = set(storage.list_files(str(folder.half)))
        left = [shard for shard in range(source.num_shards) if part_name(shard) not in done]
        return {"left": left, "shards": source.num_shards}

    return work


def _shards(folder: ScaleFolder) -> Work:
    from pneumo_ray.score.image_list import open_source

    def work() -> Facts:
        source = open_source(folder.images, _IMAGE_SIZE)
        return {"rows": sum(len(source.read(shard)) for shard in range(source.num_shards))}

    return work


def _summary(folder: ScaleFolder) -> Work:
    from pneumo_ray.score.image_list import open_source
    from pneumo_ray.score.summary import summarise

    source = open_source(folder.images, _IMAGE_SIZE)
    return lambda: {"rows": summarise(str(folder.scores), source, MODEL_HASH, CONFIG_HASH).num_rows}


def _evaluation(folder: ScaleFolder, *, report: bool) -> Work:
    from pneumo_ray.evaluate.config import EvaluateConfig
    from pneumo_ray.report.job import write_evaluation

    out = folder.base / ("report" if report else "numbers")
    config = EvaluateConfig(folder.manifest, str(out), str(folder.scores), split="all", report=report)
    return lambda: {"pictures": write_evaluation(config).images}


def _numbers(folder: ScaleFolder) -> Work:
    return _evaluation(folder, report=False)


def _report(folder: ScaleFolder) -> Work:
    return _evaluation(folder, report=True)


STEPS: dict[str, tuple[str, Callable[[ScaleFolder], Work]]] = {
    "imports": ("(a process that only imports)", _imports),
    "list-tree": ("list a folder tree", _list_tree),
    "list-tar": ("list a tar file", _list_tar),
    "held": ("prepare: list, keep the entries, read their paths", _held),
    "split": ("prepare: split (grouped), write the manifest", _split),
    "audit": ("prepare: audit", _audit),
    "read": ("read and check the manifest", _read),
    "fingerprint": ("fingerprint of the manifest", _fingerprint),
    "training-rows": ("train: read the manifest, take the splits, look for leakage", _training_rows),
    "plans": (f"train: plans of {EPOCHS} epochs, batch 64", _plans),
    "tickets": ("train: all tickets of an epoch, without pixels", _tickets),
    "job-list": ("explain --archive: list a folder tree, write the list", _job_list),
    "begin": ("explain --manifest: list, fingerprint, write the list", _begin),
    "continue": ("explain, half of the shards done: find those that are left", _continue),
    "shards": ("explain: read the rows of all shards", _shards),
    "summary": ("explain: check and count all part files", _summary),
    "numbers": ("evaluate --no-report", _numbers),
    "report": ("evaluate, with figures and page", _report),
}
"""In the order in which they run: some read what an earlier one wrote."""


def _peak_mb() -> float:
    """Return the peak of this process's resident memory. (`ru_maxrss` would begin with that of the parent.)"""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def _main(name: str, base: str, n: str) -> None:
    work = STEPS[name][1](ScaleFolder(Path(base), int(n)))
    pa.default_memory_pool().release_unused()
    with suppress(OSError):  # pages read earlier count only while they are resident
        Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter(), time.process_time()
    facts = work()
    found = Measured(time.perf_counter() - start[0], time.process_time() - start[1], _peak_mb(), facts)
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
