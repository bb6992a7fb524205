"""Scores and manifests as files, drawn from a known distribution, with images behind them where a test wants some."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pneumo_ray.data.manifest import SCHEMA, write_manifest
from pneumo_ray.explain import ZONES
from pneumo_ray.score.schema import NUMBERS, ScoreFacts

N = 240
THRESHOLD, TEMPERATURE = 0.4, 2.0
RUN = {
    "config": {"passes": 20, "model": "nowhere/model"},
    "model": {"hash": "m" * 64, "architecture": "resnet18", "preprocessing": {"image_size": 56, "resize_size": 64,
              "mean": [0.5], "std": [0.2]}},
    "versions": {"pneumo_ray": "0.1.0"},
}  # fmt: skip


def _write_scores(folder: Path, logit: np.ndarray, run: dict | None = None, names: list[str] | None = None, **changes):
    rng = np.random.default_rng(1)
    n = len(logit)
    facts = ScoreFacts((2, 2), "m", "c", THRESHOLD, TEMPERATURE, {"target": "pneumonia"})
    prob = 1 / (1 + np.exp(-logit / TEMPERATURE))
    columns = {name: rng.random(n).astype(np.float32) for name in NUMBERS}
    columns |= {
        "logit": logit.astype(np.float32),
        "prob_mean": prob.astype(np.float32),
        "predicted": (prob >= THRESHOLD).astype(np.int8),
        "refer": np.zeros(n, bool),
        "target": np.ones(n, np.int8),
        "cam_mean": rng.random((n, 4)).astype(np.float32),
        "cam_std": rng.random((n, 4)).astype(np.float32),
        "outside_share": np.full(n, np.nan, np.float32),
    }
    columns |= {f"zone_{kind}_{zone}": rng.random(n).astype(np.float32) for kind in ("mean", "std") for zone in ZONES}
    folder.mkdir(parents=True, exist_ok=True)
    ids = names or [f"{i}.jpg" for i in range(n)]
    table = facts.table([*ids, "bad.jpg"], [None] * n + [("read", "empty: x")], columns | changes)
    pq.write_table(table, folder / "part-000000.parquet")
    (folder / "_run.json").write_text(json.dumps(RUN if run is None else run))
    return folder


def _write_truth(
    path: Path, label: np.ndarray, n: int = N, names: list[str] | None = None, images: Path | None = None, **columns
):
    ids = names or [f"{i}.jpg" for i in range(n)]
    rows = [
        {
            "image_id": ids[i] if i < n else "bad.jpg",
            "uri": None if images is None else str(images / f"{i}.png"),
            "label": None if i == n or label[i] < 0 else int(label[i]),
            "split": "test" if i < n else None,
            "subtype": None if i == n else (["bacteria", "virus"][i % 2] if label[i] == 1 else "normal"),
            "patient_id": f"p{i // 2}",
            "status": "ok" if i < n else "failed",
        }
        for i in range(n + 1)
    ]
    if images is not None:
        images.mkdir()
        rng = np.random.default_rng(2)
        for i in range(n):
            grey = cv2.resize(rng.integers(0, 255, (8, 8), np.uint8), (64, 64), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(images / f"{i}.png"), grey)
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    for name, values in columns.items():
        table = table.append_column(name, pa.array([*values, None]))
    write_manifest(table, str(path))
    return path


@pytest.fixture(scope="session")
def write_scores() -> Callable[..., Path]:
    """Write scores of images 0.jpg, 1.jpg, ... (or `names`) and of one failed file; further columns by keyword."""
    return _write_scores


@pytest.fixture(scope="session")
def write_truth() -> Callable[..., Path]:
    """Write the manifest of the same images, two to a patient, with real PNG files in the folder `images`."""
    return _write_truth


@pytest.fixture(scope="session")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Labels, and logits that tell them apart most of the time."""
    rng = np.random.default_rng(0)
    label = (rng.random(N) < 0.6).astype(int)
    return label, 2.5 * rng.normal(size=N) + 3 * label - 1
