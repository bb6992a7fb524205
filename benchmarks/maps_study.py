"""The table of the study of maps: where the maps of each trial look, on phantoms and on boxes of another hospital.

    python -m benchmarks.maps_study subset MANIFEST OUT --train 720 --val 160 --test 0
    python jobs/tune.py --manifest OUT --out STUDY --study maps ...
    python -m benchmarks.maps_study measure STUDY --phantoms MANIFEST BOXES --site MANIFEST BOXES
    python -m benchmarks.maps_study table STUDY

`measure` scores both archives with each trial's model as `jobs/explain.py --target pneumonia` does, in one session of Ray, and
evaluates them as `jobs/evaluate.py --boxes` does; what is there is not repeated. `table` prints Markdown, a row an arm. The
study's own records have the validation AUC and the share of the evidence in the lungs on validation.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pneumo_ray.data.manifest import read_manifest, usable, write_manifest
from pneumo_ray.evaluate.config import EvaluateConfig
from pneumo_ray.explain import BayesGradCAM
from pneumo_ray.model import load_bundle
from pneumo_ray.report.job import write_evaluation
from pneumo_ray.score.config import ExplainConfig, ScoringScale
from pneumo_ray.tune.records import TrialRecord, read_record

PLACES = ("phantoms", "site")
HEAD = (
    "arm", "trials", "validation AUC", "evidence in lungs, %", "phantoms: hits, %", "phantoms: energy, %",
    "site: hits, %", "site: energy, %", "ms an image",
)  # fmt: skip


def subset(manifest: str, out: str, numbers: dict[str, int], seed: int) -> None:
    """Write a manifest of so many labelled images of each split, drawn at random with the classes as they are."""
    table, rng = usable(read_manifest(manifest)), np.random.default_rng(seed)
    split = np.array(table["split"].to_pylist(), dtype=object)
    rows = []
    for name, number in numbers.items():
        there = np.flatnonzero(split == name)
        rows += rng.permutation(there)[:number].tolist()
    write_manifest(table.take(sorted(rows)), out)


def measure(study: str, archives: dict[str, tuple[str, str]], patterns: Sequence[str]) -> None:
    """Score and evaluate both archives with every finished trial, and time an explanation."""
    from pneumo_ray.ray_cluster import start_ray
    from pneumo_ray.score.job import explain_archive

    start_ray("torchvision")
    scale = ScoringScale(compile="off", batch_size=32)
    for trial in finished(study):
        folder = Path(study) / "trials" / trial.name
        if patterns and not any(Path(trial.arm).match(pattern) for pattern in patterns):
            continue
        for place, (manifest, boxes) in archives.items():
            out, scores = folder / f"evaluation-{place}", folder / f"scores-{place}"
            if (out / "metrics.json").exists():
                continue
            explain_archive(ExplainConfig(model=str(trial.checkpoint), out=str(scores), manifest=manifest,
                                          target="pneumonia", passes=20, scale=scale))  # fmt: skip
            write_evaluation(EvaluateConfig(manifest, str(out), str(scores), "all", boxes=boxes, report=False))
        if not (folder / "cost.json").exists():
            (folder / "cost.json").write_text(json.dumps({"ms": cost(str(trial.checkpoint))}))


def cost(model: str, batch: int = 16, rounds: int = 3) -> float:
    """Return the milliseconds on one thread in which an image is explained by 20 passes in float32, the fastest of some."""
    torch.set_num_threads(1)
    bundle = load_bundle(model)
    net = bundle.model.to(memory_format=torch.channels_last)
    engine, size = BayesGradCAM(net, 20), bundle.preprocessing.image_size
    x = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    spent = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        engine(x)
        spent.append(time.perf_counter() - start)
    return 1e3 * min(spent[1:]) / batch


def table(study: str) -> list[str]:
    """Return the table as lines of Markdown: of each arm the means over its trials, and their range where there are several."""
    arms: dict[str, list[list[float]]] = {}
    for trial in finished(study):
        arms.setdefault(trial.arm, []).append(values(study, trial))
    lines = [f"| {' | '.join(HEAD)} |", f"| --- |{' ---: |' * (len(HEAD) - 1)}"]
    digits = (3, 0, 0, 0, 0, 0, 1)
    for arm, found in arms.items():
        cells = [cell(column, places) for column, places in zip(np.array(found).T, digits, strict=True)]
        lines.append(f"| {' | '.join([arm, str(len(found)), *cells])} |")
    return lines


def values(study: str, trial: TrialRecord) -> list[float]:
    """Return what the table has of a trial, NaN where it was not measured."""
    folder = Path(study) / "trials" / trial.name
    best = next(epoch for epoch in trial.history if epoch["epoch"] == trial.best_epoch)
    auc = trial.metrics.get("val_auc")
    found = [np.nan if auc is None else auc, 100 * (1 - best.get("val_outside_share", np.nan))]
    for place in PLACES:
        path = folder / f"evaluation-{place}" / "metrics.json"
        group = json.loads(path.read_text())["localisation"]["groups"]["all"] if path.exists() else {}
        shares = [group.get(name, {}).get("value") for name in ("pointing", "energy")]
        found += [np.nan if share is None else 100 * share for share in shares]
    path = folder / "cost.json"
    return [*found, json.loads(path.read_text())["ms"] if path.exists() else np.nan]


def cell(column: Sequence[float], places: int) -> str:
    """Return a mean and its range."""
    known = [float(value) for value in column if np.isfinite(value)]
    if not known:
        return ""
    low, mean, high = (f"{value:.{places}f}" for value in (min(known), float(np.mean(known)), max(known)))
    return mean if low == high else f"{mean} ({low} to {high})"


def finished(study: str) -> list[TrialRecord]:
    """Return the finished trials of a study by arm, in the order in which they were started."""
    names = sorted((Path(study) / "trials").iterdir())
    records = [record for folder in names if (record := read_record(str(folder))) is not None]
    return [record for record in records if record.status == "finished"]


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("subset")
    part.add_argument("manifest")
    part.add_argument("out")
    for name in ("train", "val", "test"):
        part.add_argument(f"--{name}", type=int, default=0)
    part.add_argument("--seed", type=int, default=0)
    part = parts.add_parser("measure")
    part.add_argument("study")
    for place in PLACES:
        part.add_argument(f"--{place}", nargs=2, metavar=("MANIFEST", "BOXES"))
    part.add_argument("--arms", nargs="*", default=())
    part = parts.add_parser("table")
    part.add_argument("study")
    asked = parser.parse_args()
    if asked.part == "subset":
        numbers = {name: getattr(asked, name) for name in ("train", "val", "test")}
        subset(asked.manifest, asked.out, numbers, asked.seed)
    elif asked.part == "measure":
        given = {place: tuple(getattr(asked, place)) for place in PLACES if getattr(asked, place)}
        measure(asked.study, given, asked.arms)
    else:
        print("\n".join(table(asked.study)))


if __name__ == "__main__":
    main()
