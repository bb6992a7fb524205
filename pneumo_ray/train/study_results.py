"""What a study leaves: one row a trial, the arms compared, and the config of the best, all judged on validation only."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.stats import t as student

from pneumo_ray import storage
from pneumo_ray.cli import save_config
from pneumo_ray.console import say
from pneumo_ray.train.config import TrainConfig
from pneumo_ray.train.study import Study, Trial, configure

SHOWN = ("val_loss", "loss_scaled", "val_auc", "ece", "recall", "specificity", "bias")
"""Metrics of the table of arms."""
COMPARED = ("val_loss", "loss_scaled", "val_auc", "ece")
"""Metrics of the table of differences."""

MEANING = """\
val_loss: cross-entropy of the raw probabilities, in nats; loss_scaled: the same after temperature scaling; ece: calibration
error of the raw probabilities; recall, specificity: at 0.5; bias: mean probability less the share of pneumonia."""


@dataclass(frozen=True)
class Difference:
    """An arm less the reference."""

    mean: float
    low: float | None
    """Lower end of the 95 % interval; None where there are too few trials to know."""
    high: float | None


def write_results(study: Study, base: TrainConfig, out: str, records: Sequence[dict[str, Any]]) -> None:
    """Write study.parquet, study.csv, best.json and, for an ablation, ablation.md; say what came out."""
    rows = study_rows(records)
    storage.write_table(pa.Table.from_pylist(rows), storage.join(out, "study.parquet"))
    storage.write_csv([list(rows[0]), *(list(row.values()) for row in rows)], storage.join(out, "study.csv"))
    written = ["study.parquet", "study.csv"]
    if study.reference_arm is not None:
        text = ablation_markdown(study, base, records)
        storage.write_bytes(storage.join(out, "ablation.md"), text.encode())
        written.append("ablation.md")
        say(text)
    if (best := best_record(study, records)) is not None:
        trial = Trial("best", best["arm"], best["settings"], best["seed"] if study.is_search else base.seed)
        # Its folder is one of its own: jobs/train.py --config best.json trains the winner again.
        save_config(configure(base, trial), storage.join(out, "best.json"))
        written.append("best.json")
        say(f"best on validation: {best['arm']} {json.dumps(best['settings'])}")
    unfinished = [f"{r['name']} {r['status']}: {r['reason']}" for r in records if r["status"] in ("diverged", "failed")]
    for line in unfinished:
        say(f"  {line}")
    if unfinished:
        say("remove the folder of such a trial to run it again")
    say(f"wrote {', '.join(written)} to {out}")


def study_rows(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one flat row a trial, all with the same columns."""
    options = sorted({option for record in records for option in record["settings"]})
    metrics = list(dict.fromkeys(name for record in records for name in record["metrics"]))
    rows = []
    for record in records:
        overhead = record["overhead_seconds"]
        rows.append(
            {
                **{name: record[name] for name in ("name", "arm", "seed", "status", "reason")},
                **{option: _scalar(record["settings"].get(option)) for option in options},
                **{name: record["metrics"].get(name) for name in metrics},
                "epochs": record["epochs"],
                "best_epoch": record["best_epoch"],
                "seconds": record["training_seconds"] + (overhead or 0.0),
                "overhead_seconds": overhead,
                "checkpoint": record["checkpoint"],
            }
        )
    # A column has one type: options that are numbers in one arm and words in another are words.
    for option in options:
        if any(isinstance(row[option], str) for row in rows):
            for row in rows:
                row[option] = None if row[option] is None else str(row[option])
    return rows


def _scalar(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value


def by_arm(records: Sequence[dict[str, Any]], metric: str) -> dict[str, list[float]]:
    """Return the values of a metric by arm, of the trials that finished."""
    found: dict[str, list[float]] = {}
    for record in _finished(records):
        if record["metrics"][metric] is not None:
            found.setdefault(record["arm"], []).append(record["metrics"][metric])
    return found


def differences(records: Sequence[dict[str, Any]], metric: str, reference: str) -> dict[str, Difference]:
    """Return how much each arm differs from the reference.

    The model is value = arm + seed + noise, by least squares: trials with one seed share their first weights and much
    of their order, so they are compared with each other. The noise is taken to be the same in all arms, which makes
    its estimate usable with few seeds. The intervals are about other seeds, not about other patients.

    Args:
        records: of all trials; those that did not finish are left out.
        metric: its name in the records.
        reference: the arm to compare with.
    """
    found = [r for r in _finished(records) if r["metrics"][metric] is not None]
    arms = list(dict.fromkeys(r["arm"] for r in found))
    seeds = sorted({r["seed"] for r in found})
    if reference not in arms:
        return {}
    others = [arm for arm in arms if arm != reference]
    design = np.array(
        [[1.0, *(r["arm"] == arm for arm in others), *(r["seed"] == seed for seed in seeds[1:])] for r in found], float
    )
    values = np.array([r["metrics"][metric] for r in found])
    inverse = np.linalg.pinv(design.T @ design)
    effects = inverse @ design.T @ values
    free = len(values) - np.linalg.matrix_rank(design)
    out = {}
    for position, arm in enumerate(others, start=1):
        mean, half = float(effects[position]), None
        if free > 0:
            noise = float(np.sum((values - design @ effects) ** 2)) / free
            half = float(student.ppf(0.975, free)) * float(np.sqrt(noise * inverse[position, position]))
        out[arm] = Difference(mean, None if half is None else mean - half, None if half is None else mean + half)
    return out


def best_record(study: Study, records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the best trial of a search, or a trial of the best arm of an ablation, by validation loss; None if none finished."""
    finished = _finished(records)
    if not finished:
        return None
    if study.is_search:
        return min(finished, key=lambda record: record["metrics"]["val_loss"])
    means = {arm: float(np.mean(values)) for arm, values in by_arm(records, "val_loss").items()}
    # An arm of which a trial diverged is not the best, however well the others went.
    whole = {r["arm"] for r in records} - {r["arm"] for r in records if r["status"] != "finished"}
    arm = min(whole or means, key=lambda name: means[name])
    return next(record for record in finished if record["arm"] == arm)


def ablation_markdown(study: Study, base: TrainConfig, records: Sequence[dict[str, Any]]) -> str:
    """Return the tables of an ablation as Markdown."""
    reference = str(study.reference_arm)
    count: dict[str, list[str]] = {}
    for record in records:
        count.setdefault(record["arm"], []).append(record["status"])
    values = {metric: by_arm(records, metric) for metric in SHOWN}
    lines = [
        f"# {study.name}: {study.varies}",
        "",
        f"{base.model.arch} at {base.data.image_size} px, at most {base.epochs} epochs; the best epoch by validation loss; "
        "mean and standard deviation over seeds, on validation.",
        "",
        *_table(
            ("arm", "trials", *SHOWN),
            [
                [arm, _trials(statuses), *(_spread(values[m].get(arm, [])) for m in SHOWN)]
                for arm, statuses in count.items()
            ],
        ),
        "",
        f"Difference to {reference}, with 95 % intervals over seeds (arm and seed as additive effects, one noise for all arms):",
        "",
    ]
    compared: Mapping[str, dict[str, Difference]] = {m: differences(records, m, reference) for m in COMPARED}
    lines += _table(
        ("arm", *COMPARED),
        [[arm, *(_difference(compared[m].get(arm)) for m in COMPARED)] for arm in count if arm != reference],
    )
    return "\n".join([*lines, "", MEANING, ""])


def _finished(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if record["status"] == "finished"]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _trials(statuses: Sequence[str]) -> str:
    others = [f"{statuses.count(s)} {s}" for s in dict.fromkeys(statuses) if s != "finished"]
    return ", ".join([str(statuses.count("finished")), *others])


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{np.mean(values):.4f}" + (f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else "")


def _difference(found: Difference | None) -> str:
    if found is None:
        return ""
    return f"{found.mean:+.4f}" + ("" if found.low is None else f" ({found.low:+.4f} to {found.high:+.4f})")
