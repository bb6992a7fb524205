"""How much of the AUC that wrong labels cost do several readers give back? Phantoms, whose truth is known, read by readers who err.

    python -m benchmarks.soft_labels --out runs/opinions --epochs 8

draws a phantom archive and readers, each of whom is wrong about a fifth of the training folder, other images each. Three models
are trained, with each of the seeds and any options of jobs/train.py: on the true labels, on what one reader says, and with
`--labels soft` on what three say. The table has their AUC on the test folder, whose labels are true, and the share of the loss
that the three readers recover. The same command continues where it stopped.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.commands import run_job
from pneumo_ray.data.manifest import read_manifest
from pneumo_ray.phantom.synthetic import PhantomConfig, write_phantom_archive
from pneumo_ray.readers.readings import SCHEMA, Readings, write_readings

READERS = ("ann", "bo", "cy")


@dataclass(frozen=True)
class Arm:
    """One way to label the training folder, and to learn from it."""

    name: str
    readers: tuple[str, ...]
    """None of them: the labels are true."""
    labels: str
    """Of jobs/train.py."""


ARMS = (
    Arm("true labels", (), "hard"),
    Arm("one reader", READERS[:1], "hard"),
    Arm("three readers, soft labels", READERS, "soft"),
)


def main() -> None:
    """Draw, train, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1200, help="phantoms; a fifth of them are the test folder")
    parser.add_argument("--difficulty", type=float, default=0.2, help="how faint the opacities are, 0 to 1")
    parser.add_argument("--error", type=float, default=0.2, help="share of the images about which each reader is wrong")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each model")
    options, others = parser.parse_known_args()
    out = options.out.resolve()
    drawing = PhantomConfig(options.images, 128, difficulty=options.difficulty, images_per_patient=1)
    archive = write_phantom_archive(out / "archive", drawing)
    truth = {
        str(path.relative_to(archive)): int(path.parent.name == "PNEUMONIA") for path in sorted(archive.rglob("*.jpeg"))
    }
    trains = [name for name in truth if name.startswith("train/")]
    for number, reader in enumerate(READERS):
        readings = answers(reader, trains, truth, options.error, np.random.default_rng(number))
        write_readings(readings, str(out / f"{reader}.csv"))
    aucs, right = {}, {}
    for arm in ARMS:
        folder = out / arm.name.replace(", ", "-").replace(" ", "-")
        manifest = prepared(archive, [out / f"{reader}.csv" for reader in arm.readers], folder)
        right[arm.name] = share_right(manifest, trains, truth)
        aucs[arm.name] = [
            auc_of(manifest, folder / f"seed{seed}", "--labels", arm.labels, "--seed", str(seed), *others)
            for seed in range(options.seeds)
        ]
    print("\n".join(table(right, aucs)))


def answers(
    reader: str, names: Sequence[str], truth: dict[str, int], error: float, rng: np.random.Generator
) -> Readings:
    """Return one answer about each image, wrong about a share of them that is drawn."""
    wrong = set(rng.choice(len(names), round(error * len(names)), replace=False).tolist())
    rows = [
        {"image_id": name, "reader": reader, "label": truth[name] ^ (number in wrong)}
        for number, name in enumerate(names)
    ]
    return Readings(pa.Table.from_pylist(rows, schema=SCHEMA))


def prepared(archive: Path, readings: Sequence[Path], folder: Path) -> str:
    """Return the manifest of the archive with its own labels, or with those of its readers."""
    manifest = folder / "manifest.parquet"
    if not manifest.exists():
        opinions = ("--readings", *map(str, readings), "--consensus", "mean") if readings else ()
        words = ("--protocol", "official", "--lungs", "none", "--cache")
        run_job("prepare", "--archive", str(archive), "--out", str(folder), *words, *opinions)
    return str(manifest)


def share_right(manifest: str, names: Sequence[str], truth: dict[str, int]) -> float:
    """Return the share of some images whose label in a manifest is true."""
    rows = read_manifest(manifest).select(["image_id", "label"]).to_pylist()
    label = {row["image_id"]: row["label"] for row in rows}
    return float(np.mean([label[name] == truth[name] for name in names]))


def auc_of(manifest: str, run: Path, *words: str) -> float:
    """Train, score the test folder and return the AUC."""
    measured = run / "report" / "metrics.json"
    if not measured.exists():
        run_job("train", "--manifest", manifest, "--out", str(run), *words)
        run_job("explain", "--manifest", manifest, "--model", str(run / "model"), "--out", str(run / "scores"))
        files = ("--manifest", manifest, "--scores", str(run / "scores"), "--out", str(measured.parent))
        run_job("evaluate", *files, "--no-report")
    return float(json.loads(measured.read_text())["metrics"]["stored"]["values"]["auc"])


def table(right: dict[str, float], aucs: dict[str, list[float]]) -> list[str]:
    """Return the lines of the table, and the share of the lost AUC that three readers recover."""
    best, noisy, soft = (float(np.mean(aucs[arm.name])) for arm in ARMS)
    seeds = range(len(aucs[ARMS[0].name]))
    lines = [f"| training labels | of them right | {' | '.join(f'AUC, seed {k}' for k in seeds)} | mean |"]
    lines.append("| --- |" + " ---: |" * (len(seeds) + 2))
    for name, found in aucs.items():
        lines.append(f"| {name} | {right[name]:.1%} | {' | '.join(f'{v:.3f}' for v in found)} | {np.mean(found):.3f} |")
    if best > noisy:
        lines += [
            "",
            f"Three readers recover {(soft - noisy) / (best - noisy):.0%} of the AUC that one reader's errors cost.",
        ]
    return lines


if __name__ == "__main__":
    main()
