"""A PACS against a folder, the making of results, and the memory of both: `python jobs/bench.py pacs`.

Radiographs are phantoms, enlarged where a step needs many pixels. The PACS is an Orthanc on loopback; for the memory of a
listing it is a stand-in that makes its answers as they are asked for.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

from benchmarks.pacs_rows import ALGORITHM, FACTS, PARTS, difference, drawn_row, phantom, rows_by_instance
from benchmarks.timing import Row

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "builders"))
SIDES = {224: 24, 1024: 12, 2048: 6}
"""Images that results are made of, by the side of an image in pixels."""
LISTED = (10_000, 100_000)
PUBLISHED = (1_000, 8_000)
FROM_PACS = 1_000
"""Images that are scored from Orthanc, and from a folder."""


def bench_pacs(_: Path) -> Iterator[Row]:
    """Measure publishing at three sizes, the memory of listing and publishing, and scoring from Orthanc."""
    for side, count in SIDES.items():
        rate = publishing_rate(side, count)
        yield Row(
            f"results of an image of {side:,} pixels a side, all kinds, into a folder",
            f"{rate:.1f} images per CPU second",
            f"20; {4 * rate:.0f} objects",
            rate / 20,
            ">= 1",
        )
    for what, sizes in (("listing", LISTED), ("publishing", PUBLISHED)):
        peaks = [_peak_of(what, count) for count in sizes]
        slope = (peaks[1] - peaks[0]) / (sizes[1] - sizes[0]) * 1e6
        yield Row(
            f"peak memory of {what} {sizes[1]:,} instances",
            f"{peaks[1]:.0f} MB",
            f"{peaks[0]:.0f} MB for {sizes[0]:,}: {slope:.0f} MB per million more",
            peaks[1] / peaks[0],
            "flat",
        )
    found = scoring(FROM_PACS)
    yield Row(
        f"scoring {FROM_PACS:,} DICOM images from Orthanc, ResNet-18, after the first shard",
        f"{found.there:.1f} img/s",
        f"{found.here:.1f} img/s from a folder",
        found.there / found.here,
        ">= 0.8",
    )
    yield Row(
        f"rows of {FROM_PACS:,} images from Orthanc that equal those from a folder",
        f"{found.num_equal:,}",
        f"largest difference {found.largest_difference:.1g}",
        found.num_equal / FROM_PACS,
        "1",
    )


def publishing_rate(side: int, count: int) -> float:
    """Return how many images a second of CPU have their four objects, read and written on a disk, in one process."""
    from pneumo_ray.allocator import keep_freed_memory
    from pneumo_ray.pacs.batch import Plan, Publisher
    from pneumo_ray.pacs.outlets import Folder

    cv2.setNumThreads(1)  # as a process of the job
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        scored, listed = write_sources(Path(folder), side, count + 1)
        outlet = Folder(f"{folder}/out")
        outlet.prepare()
        publisher = Publisher(Plan(FACTS, ALGORITHM, PARTS, outlet, True, False, False))
        publisher.publish(scored.slice(0, 1), listed.slice(0, 1))  # the first is made by highdicom
        start = time.process_time()
        outcome = publisher.publish(scored.slice(1), listed.slice(1))
        seconds = time.process_time() - start
        assert outcome.made == 4 * count, outcome
    return count / seconds


def write_sources(folder: Path, side: int, count: int) -> tuple[pa.Table, pa.Table]:
    """Write phantoms of so many pixels, 12 bits deep; return their rows of the scores and of the list."""
    small = phantom(0, pneumonia=True)
    rows, listed = [], []
    for number in range(count):
        pixels = cv2.resize(small, (side, side), interpolation=cv2.INTER_LINEAR).astype(np.uint16) * 16
        pixels += np.random.default_rng(number).integers(0, 16, pixels.shape, np.uint16)
        path = folder / f"{number}.dcm"
        path.write_bytes(_file(number, pixels))
        rows.append(drawn_row(number))
        listed.append({"image_id": f"i{number}", "uri": str(path), "member": None, "frame": None, "span": None})
    return pa.Table.from_pylist(rows), pa.Table.from_pylist(listed)


def _file(number: int, pixels: np.ndarray) -> bytes:
    from benchmarks.pacs_rows import cr_file

    return cr_file(number, pixels, bits_stored=12)


# ---- memory ----------------------------------------------------------------------------------------------------------


def _peak_of(what: str, count: int) -> float:
    """Return the peak memory in MB of a process that lists or publishes so many instances."""
    from qido_server import QidoServer

    command = [sys.executable, "-m", "benchmarks.pacs", what]
    with QidoServer(count) as server:
        done = subprocess.run(
            [*command, str(count), server.address], cwd=ROOT, capture_output=True, text=True, check=True
        )
    return float(done.stdout.split()[-1])


def _measure(what: str, count: int, address: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if what == "listing":
            from pneumo_ray.dicomweb.images import private_of
            from pneumo_ray.score.listing import list_images

            source = list_images([address], f"{folder}/list.parquet", 224, private_of([address], folder))
            assert source.num_images == count
        else:
            _publish_again(Path(folder), count)
    # Not ru_maxrss, in which a process starts with the peak of the one that started it.
    status = Path("/proc/self/status").read_text()
    print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)


def _publish_again(folder: Path, count: int) -> None:
    """Publish scores of one image under many names: its report is made for the first, and there for the others."""
    from benchmarks.pacs_rows import write_scores
    from pneumo_ray.pacs.config import PublishConfig
    from pneumo_ray.pacs.publish import publish

    model, scores = write_scores(folder, count)
    publish(PublishConfig(scores=str(scores), model=str(model), out=str(folder / "out"), kinds=("sr",), num_workers=1))


# ---- scoring ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scoring:
    """The same images scored from Orthanc and from a folder by jobs/explain.py."""

    there: float
    """Images a second from Orthanc."""
    here: float
    """Images a second from a folder."""
    num_equal: int
    """Images whose two rows are equal, the name of the image apart."""
    largest_difference: float
    """Of two numbers."""


def scoring(count: int) -> Scoring:
    """Score phantoms with noise of their own from Orthanc and from a folder."""
    import torch
    from orthanc import Orthanc

    from benchmarks.pacs_rows import cr_file
    from pneumo_ray.model import ModelConfig, PneumoniaNet, Preprocessing, save_bundle

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        net = PneumoniaNet(ModelConfig(arch="resnet18", weights="none"))
        save_bundle(folder / "model", net, preprocessing=Preprocessing(224, 256))
        (folder / "files").mkdir()
        drawn = [phantom(number, pneumonia=number % 2 == 0) for number in range(10)]
        for number in range(count):
            pixels = drawn[number % 10]
            noise = np.random.default_rng(number).integers(0, 9, pixels.shape, np.uint8)
            (folder / "files" / f"{number}.dcm").write_bytes(cr_file(number, cv2.add(pixels, noise)))
        server = Orthanc(folder / "orthanc", 8943)
        try:
            server.store(sorted((folder / "files").iterdir()))
            rates = _rate(folder, "there", server.address), _rate(folder, "here", str(folder / "files"))
        finally:
            server.stop()
        there, here = rows_by_instance(folder / "there"), rows_by_instance(folder / "here")
        assert len(there) == count
        assert there.keys() == here.keys()
        equal = sum(repr(row) == repr(here[uid]) for uid, row in there.items())
        return Scoring(*rates, equal, max(difference(row, here[uid]) for uid, row in there.items()))


def _rate(folder: Path, name: str, archive: str) -> float:
    out = folder / name
    command = [
        sys.executable,
        ROOT / "jobs" / "explain.py",
        "--archive",
        archive,
        "--model",
        folder / "model",
        "--out",
        out,
    ]
    subprocess.run([*command, "--scale.compile", "off"], check=True, stdout=subprocess.DEVNULL)
    facts = json.loads((out / "_run.json").read_text())
    assert facts["failed"] == 0
    return float(facts["images_per_second_after_the_first_shard"])


if __name__ == "__main__":
    _measure(sys.argv[1], int(sys.argv[2]), sys.argv[3])
