"""Random manifests and scores of archives of any size, with the columns of real ones, from a few image files."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pneumo_ray import storage
from pneumo_ray.data.manifest import SCHEMA

THRESHOLD, TEMPERATURE = 0.4, 1.2
MODEL_HASH, CONFIG_HASH = "0" * 64, "1" * 16


def drawn_manifest(uris: Sequence[str | None]) -> pa.Table:
    """Return a manifest: two images per patient, 30 % pneumonia, one exact copy in 200 images, 10 % in the test folder.

    Args:
        uris: file of each image; a file may occur many times.
    """
    n = len(uris)
    number = np.arange(n)
    ill = np.random.default_rng(0).random(n) < 0.3
    split = np.where(number % 20 < 18, "train", "test")
    content = np.where(number % 200 == 199, number - 2, number)
    columns = {
        "image_id": [image_name(i) for i in range(n)],
        "uri": list(uris),
        "label": ill.astype(np.int8),
        "subtype": np.where(ill, np.where(number % 2, "bacteria", "virus"), "normal").tolist(),
        "patient_id": [f"person{i // 2}" for i in range(n)],
        "split": split.tolist(),
        "content_sha256": [hashlib.sha256(str(i).encode()).hexdigest() for i in content],
        "width": np.full(n, 224, np.int32),
        "height": np.full(n, 224, np.int32),
        "mode": ["L"] * n,
        "num_bytes": np.random.default_rng(1).integers(4_000, 12_000, n),
        "status": ["ok"] * n,
    }
    arrays = [pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(n, f.type) for f in SCHEMA]
    return pa.table(arrays, schema=SCHEMA)


def image_name(number: int) -> str:
    """Return a name in folders of a thousand files; names sort in the order of their numbers."""
    return f"{number // 1000:06d}/person{number // 2:07d}_bacteria_{number:08d}.jpeg"


def write_drawn_scores(folder: Path, manifest: pa.Table, shard_length: int) -> None:
    """Write scores of a manifest whose labels and logits overlap, so that there are errors of both kinds.

    Args:
        folder: where the part files and `_run.json` go.
        manifest: from `drawn_manifest`.
        shard_length: images of one part file.
    """
    from pneumo_ray.score.image_list import part_name
    from pneumo_ray.score.schema import ScoreFacts  # imports torch, whose memory would hide that of a listing

    rng = np.random.default_rng(0)
    facts = ScoreFacts((7, 7), MODEL_HASH, CONFIG_HASH, THRESHOLD, TEMPERATURE, {"target": "pneumonia"})
    for start in range(0, len(manifest), shard_length):
        rows = manifest.slice(start, shard_length)
        logit = (2 * rng.normal(size=len(rows)) + 3 * rows["label"].to_numpy() - 1.5).astype(np.float32)
        table = facts.table(rows["image_id"].to_pylist(), [None] * len(rows), _columns(rng, logit))
        storage.write_table(table, str(folder / part_name(start // shard_length)))
    run = {"model": {"preprocessing": {"image_size": 224, "resize_size": 256}}}
    (folder / "_run.json").write_text(json.dumps(run))


def _columns(rng: np.random.Generator, logit: np.ndarray) -> dict[str, np.ndarray]:
    from pneumo_ray.explain import ZONES
    from pneumo_ray.score.schema import NUMBERS

    n = len(logit)
    prob = (1 / (1 + np.exp(-logit / TEMPERATURE))).astype(np.float32)
    columns = {name: 0.1 * rng.random(n, np.float32) for name in NUMBERS}
    columns |= {
        "logit": logit,
        "logit_mean": logit,
        "prob_mean": prob,
        "predicted": (prob >= THRESHOLD).astype(np.int8),
        "refer": np.zeros(n, bool),
        "target": np.ones(n, np.int8),
        "cam_mean": rng.random((n, 49), np.float32),
        "cam_std": 0.1 * rng.random((n, 49), np.float32),
        "outside_share": np.full(n, np.nan, np.float32),
    }
    return columns | {f"zone_{kind}_{zone}": rng.random(n, np.float32) for kind in ("mean", "std") for zone in ZONES}
