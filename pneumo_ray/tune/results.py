"""Results of a study, all on validation: one row per trial, the comparison of arms, and the config of the best."""

import json
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pyarrow as pa

from pneumo_ray import storage
from pneumo_ray.config import save_config
from pneumo_ray.console import log
from pneumo_ray.evaluate.drawing import save_figure
from pneumo_ray.records import JsonObject
from pneumo_ray.train.config import TrainConfig
from pneumo_ray.train.validation import SELECTED_BY
from pneumo_ray.tune.comparison import Difference, best_record, by_arm, differences
from pneumo_ray.tune.figures import FOREST, study_figures
from pneumo_ray.tune.records import TrialRecord
from pneumo_ray.tune.study import Study, Trial, configure

SHOWN = ("val_loss", "loss_scaled", "val_auc", "ece", "recall", "specificity", "bias")
"""Metrics of the table of arms."""
COMPARED = ("val_loss", "loss_scaled", "val_auc", "ece")
"""Metrics of the table of differences."""
OF_UNCERTAINTY = ("error_auroc_mi", "error_auroc_plain")
"""Metrics of both tables in a study that is also judged on its uncertainty."""

MEANING = """\
val_loss: cross-entropy of the raw probabilities, in nats; loss_scaled: the same of the calibrated ones, by which the best is
chosen; ece: calibration error of the raw probabilities; recall, specificity: at 0.5; bias: mean raw probability less the
share of pneumonia. A difference is left empty where failed trials leave it without seeds in common."""
MEANING_OF_UNCERTAINTY = """\
error_auroc_mi: AUROC of the mutual information of Monte Carlo dropout for finding the errors at 0.5; error_auroc_plain: the
same of 1 - max(p, 1 - p) without dropout, which needs no passes. Trials with few errors carry little information about either."""


def write_results(study: Study, base: TrainConfig, out: str, records: Sequence[TrialRecord]) -> None:
    """Write study.parquet, study.csv, best.json, the figures and, for an ablation, ablation.md; print a summary."""
    rows = study_rows(records)
    storage.write_table(pa.Table.from_pylist(rows), storage.join(out, "study.parquet"))
    storage.write_csv([list(rows[0]), *(list(row.values()) for row in rows)], storage.join(out, "study.csv"))
    written = ["study.parquet", "study.csv"]
    figures = study_figures(study, records)
    for name, figure in figures.items():
        save_figure(figure, storage.join(out, "figures"), name)
        written.append(f"figures/{name}.png")
    if study.reference_arm is not None:
        text = ablation_markdown(study, base, records, figures)
        storage.write_bytes(storage.join(out, "ablation.md"), text.encode())
        written.append("ablation.md")
        log(text)
    if not study.folds and (best := best_record(study, records)) is not None:
        trial = Trial("best", best.arm, best.settings, best.seed if study.is_search else base.seed)
        # It has its own folder: jobs/train.py --config best.json trains the winner again.
        save_config(configure(base, trial), storage.join(out, "best.json"))
        written.append("best.json")
        log(f"best on validation, by {SELECTED_BY}: {best.arm} {json.dumps(best.settings)}")
    unfinished = [f"{r.name} {r.status}: {r.reason}" for r in records if r.status in ("diverged", "failed")]
    for line in unfinished:
        log(f"  {line}")
    if unfinished:
        log("remove the folder of such a trial to run it again")
    log(f"wrote {', '.join(written)} to {out}")


def study_rows(records: Sequence[TrialRecord]) -> list[JsonObject]:
    """Return one flat row per trial, all with the same columns."""
    options = sorted({option for record in records for option in record.settings})
    metrics = list(dict.fromkeys(name for record in records for name in record.metrics))
    rows = []
    for record in records:
        overhead = record.overhead_seconds
        rows.append(
            {
                **{name: getattr(record, name) for name in ("name", "arm", "seed", "status", "reason")},
                **{option: _scalar(record.settings.get(option)) for option in options},
                **{name: record.metrics.get(name) for name in metrics},
                "epochs": record.epochs,
                "best_epoch": record.best_epoch,
                "seconds": record.training_seconds + (overhead or 0.0),
                "overhead_seconds": overhead,
                "checkpoint": record.checkpoint,
            }
        )
    # A column has one type: options that are numbers in one arm and text in another become text.
    for option in options:
        if any(isinstance(row[option], str) for row in rows):
            for row in rows:
                row[option] = None if row[option] is None else str(row[option])
    return rows


def _scalar(value: object) -> object:
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value


def ablation_markdown(
    study: Study, base: TrainConfig, records: Sequence[TrialRecord], figures: Collection[str] = ()
) -> str:
    """Return the tables of an ablation as Markdown, with a link to the forest plot if it is among the `figures`."""
    extra = OF_UNCERTAINTY if study.uncertainty else ()
    shown, metrics = (*SHOWN, *extra), (*COMPARED, *extra)
    reference = str(study.reference_arm)
    count: dict[str, list[str]] = {}
    for record in records:
        count.setdefault(record.arm, []).append(record.status)
    values = {metric: by_arm(records, metric) for metric in shown}
    lines = [
        f"# {study.name}: {study.varies}",
        "",
        f"{base.model.arch} at {base.data.image_size} px, at most {base.epochs} epochs; the best epoch by validation loss; "
        f"mean and standard deviation over {'folds and ' if study.folds else ''}seeds, on validation.",
        "",
        *_table(
            ("arm", "trials", *shown),
            [
                [arm, _trials(statuses), *(_spread(values[m].get(arm, [])) for m in shown)]
                for arm, statuses in count.items()
            ],
        ),
        "",
    ]
    if len(count) == 1:
        return "\n".join([*lines, MEANING, ""])
    lines += [
        f"Difference to {reference}, with 95 % intervals over seeds (arm and seed as additive effects, one noise for all arms):",
        "",
    ]
    compared: Mapping[str, dict[str, Difference]] = {m: differences(records, m, reference) for m in metrics}
    lines += _table(
        ("arm", *metrics),
        [[arm, *(_difference(compared[m].get(arm)) for m in metrics)] for arm in count if arm != reference],
    )
    if FOREST in figures:
        lines += ["", f"![Differences to {reference}](figures/{FOREST}.png)"]
    return "\n".join([*lines, "", MEANING, *([MEANING_OF_UNCERTAINTY] if extra else []), ""])


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
