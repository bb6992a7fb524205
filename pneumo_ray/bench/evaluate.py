"""The evaluation end to end, start-up included: the page of an archive with its real pictures, the numbers of a million rows."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from pneumo_ray import storage
from pneumo_ray.bench.timing import Row
from pneumo_ray.data.archive import list_archives
from pneumo_ray.data.manifest import SCHEMA, write_manifest
from pneumo_ray.explain import ZONES
from pneumo_ray.score.table import NUMBERS, ScoreFacts, part_name

_SHARD = 50_000
_THRESHOLD, _TEMPERATURE = 0.4, 1.2


def bench_evaluate(shared: Path) -> Iterator[Row]:
    """Measure jobs/evaluate.py on drawn scores: labels and logits overlap, so that there are errors of both kinds."""
    uris = [entry.uri for entry in list_archives([str(shared / "kermany224")])]
    with tempfile.TemporaryDirectory() as folder:
        seconds, _ = _evaluated(folder, "page", uris)
        size = (Path(folder) / "page" / "out" / "report.html").stat().st_size / 1e6
        yield Row(
            f"report of {len(uris):,} scored images, figures and page ({size:.1f} MB), start-up included",
            f"{seconds:.1f} s", "30 s", 30 / seconds, ">= 1",
        )  # fmt: skip
        seconds, memory_gb = _evaluated(folder, "numbers", [None] * 1_000_000, "--no-report")
        yield Row("metrics of 1,000,000 scored rows, no report", f"{seconds:.1f} s", "60 s", 60 / seconds, ">= 1")
        yield Row("memory of that", f"{memory_gb:.1f} GB", "4 GB", 4 / memory_gb, ">= 1")


def _evaluated(folder: str, name: str, uris: Sequence[str | None], *options: str) -> tuple[float, float]:
    """Write scores and a manifest of so many pictures, evaluate them in a process; return seconds and peak GB."""
    base = Path(folder) / name
    _write(base, uris)
    command = [sys.executable, "jobs/evaluate.py", "--manifest", str(base / "m.parquet"), "--scores", str(base / "scores"),
               "--out", str(base / "out"), *options]  # fmt: skip
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            peak = max(peak, watched.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.05)
    seconds = time.perf_counter() - start
    if process.wait():
        raise RuntimeError(f"{' '.join(command)} failed")
    return seconds, peak / 1e9


def _write(base: Path, uris: Sequence[str | None]) -> None:
    rng = np.random.default_rng(0)
    n = len(uris)
    label = (rng.random(n) < 0.3).astype(np.int8)
    logit = (2 * rng.normal(size=n) + 3 * label - 1.5).astype(np.float32)
    facts = ScoreFacts((7, 7), "m", "c", _THRESHOLD, _TEMPERATURE, {"target": "pneumonia"})
    names = [f"{i:07d}" for i in range(n)]
    for start in range(0, n, _SHARD):
        rows = slice(start, start + _SHARD)
        table = facts.table(names[rows], [None] * len(names[rows]), _columns(rng, logit[rows]))
        storage.write_table(table, str(base / "scores" / part_name(start // _SHARD)))
    run = {"model": {"preprocessing": {"image_size": 224, "resize_size": 256}}}
    (base / "scores" / "_run.json").write_text(json.dumps(run))
    columns: dict[str, list[Any]] = {
        "image_id": names,
        "uri": list(uris),
        "label": label.tolist(),
        "split": ["test"] * n,
        "subtype": [("bacteria", "virus")[i % 2] if ill else "normal" for i, ill in enumerate(label)],
        "patient_id": [f"p{i // 2}" for i in range(n)],
        "status": ["ok"] * n,
    }
    arrays = [pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(n, f.type) for f in SCHEMA]
    write_manifest(pa.table(arrays, schema=SCHEMA), str(base / "m.parquet"))


def _columns(rng: np.random.Generator, logit: np.ndarray) -> dict[str, np.ndarray]:
    n = len(logit)
    prob = (1 / (1 + np.exp(-logit / _TEMPERATURE))).astype(np.float32)
    columns = {name: 0.1 * rng.random(n, np.float32) for name in NUMBERS}
    columns |= {
        "logit": logit,
        "logit_mean": logit,
        "prob_mean": prob,
        "predicted": (prob >= _THRESHOLD).astype(np.int8),
        "refer": np.zeros(n, bool),
        "target": np.ones(n, np.int8),
        "cam_mean": rng.random((n, 49), np.float32),
        "cam_std": 0.1 * rng.random((n, 49), np.float32),
        "outside_share": np.full(n, np.nan, np.float32),
    }
    return columns | {f"zone_{kind}_{zone}": rng.random(n, np.float32) for kind in ("mean", "std") for zone in ZONES}
