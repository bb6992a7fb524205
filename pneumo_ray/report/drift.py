"""The drift job: two score folders in, a table, figures and a page out."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pneumo_ray import storage
from pneumo_ray.config import as_plain
from pneumo_ray.console import log
from pneumo_ray.data.manifest import read_manifest
from pneumo_ray.errors import ConfigError, DriftAlarm, ManifestError
from pneumo_ray.evaluate.drawing import save_figure
from pneumo_ray.evaluate.metrics import number_groups
from pneumo_ray.evaluate.scores import Scores, read_scores
from pneumo_ray.report.shell import made, render
from pneumo_ray.report.site_figures import distribution_figure, group_figure
from pneumo_ray.report.wording import Cell
from pneumo_ray.site.config import DriftConfig
from pneumo_ray.site.drift import MATTERS, MIN_IMAGES, Comparison, Drift, compare
from pneumo_ray.site.profile import other_probabilities
from pneumo_ray.site.quantities import Floats, Words, quantities, taken

MAX_GROUPS = 200
"""Values of --by above which it is no grouping."""
SHOWN_ALARMS = 20
"""Alarms that the page lists above its table."""
_SHOWN = 6
"""Quantities that the figures show."""


@dataclass(frozen=True)
class Side:
    """The quantities of one score folder, one image per patient."""

    found: dict[str, Floats | Words]
    groups: list[str] | None
    images: int
    """Before one of each patient was drawn."""
    patients_known: bool


def write_drift(config: DriftConfig) -> Drift:
    """Compare two score folders, and write drift.json, drift.csv, drift.html and the figures.

    Raises:
        DriftAlarm: with --alarm, where there is one; the files are written.
        PneumoError: if the folders cannot be compared.
    """
    reference, here = read_scores(config.reference), read_scores(config.scores)
    check_comparable(reference, here)
    sides = (
        side_of(reference, config.reference_manifest, None, config.seed),
        side_of(here, config.manifest, config.by, config.seed),
    )
    return write_comparison(sides, config)


def check_comparable(reference: Scores, here: Scores) -> None:
    """Refuse scores of two models, or with other options.

    Raises:
        ConfigError: in one sentence.
    """
    facts = [scores.table.schema.metadata for scores in (reference, here)]
    if facts[0].get(b"model_hash") != facts[1].get(b"model_hash"):
        raise ConfigError(
            "--reference and --scores are of two models, so that their scores differ anyway; score both with one"
        )
    if other := other_probabilities(*(json.loads(fact[b"method"]) for fact in facts)):
        raise ConfigError(f"--reference has scores with {other}, so that they differ anyway; score both with the same")
    if (reference.target, reference.zone_mode) != (here.target, here.zone_mode):
        raise ConfigError(
            f"--reference explains {reference.target} in zones of the {reference.zone_mode}, --scores {here.target} in zones of the "
            f"{here.zone_mode}; score both with the same --target and --zones"
        )
    if reference.map_size != here.map_size:
        raise ConfigError(
            "--reference has maps of another size than --scores, so that what is measured in them differs anyway; score both "
            "with the same --maps"
        )


def write_comparison(sides: tuple[Side, Side], config: DriftConfig) -> Drift:
    """Compare two sides and write all files of the job; see `write_drift`."""
    out = storage.absolute(config.out)
    storage.require_writable(out)
    # Groups differ in what they were made by.
    sides = (_without(sides[0], config.by), _without(sides[1], config.by))
    drift = compare(sides[0].found, sides[1].found, sides[1].groups, config.level)
    if not drift.comparisons:
        raise ConfigError(
            f"nothing could be compared: each side needs {MIN_IMAGES} images (of other patients) with a known value"
        )
    rows = [asdict(comparison) for comparison in drift.comparisons]
    plain = {"config": as_plain(config), "level": drift.level, "matters": MATTERS, "comparisons": rows,
             "left_out": [list(entry) for entry in drift.left_out], "alarms": len(drift.alarms)}  # fmt: skip
    storage.write_json(plain, storage.join(out, "drift.json"), allow_nan=False)
    storage.write_csv([tuple(rows[0]), *(tuple(row.values()) for row in rows)], storage.join(out, "drift.csv"))
    folder = storage.join(out, "figures")
    drawn = {name: save_figure(figure, folder, name) for name, figure in _figures(drift, sides).items()}
    page = _page(drift, sides, config, drawn)
    storage.write_bytes(storage.join(out, "drift.html"), page.encode("utf-8", "replace"))
    log(
        f"{len(drift.comparisons):,} comparisons of {len({c.group for c in drift.comparisons}):,} group(s) with the reference: "
        f"{len(drift.alarms):,} alarm(s)"
    )
    for alarm in drift.alarms[:10]:
        log(f"  {_sentence(alarm)}")
    log(f"wrote drift.json and drift.csv; page {storage.join(out, 'drift.html')}")
    if config.alarm and drift.alarms:
        raise DriftAlarm(
            f"{len(drift.alarms):,} of {len(drift.comparisons):,} comparisons raise an alarm; see {storage.join(out, 'drift.html')}"
        )
    return drift


def side_of(scores: Scores, manifest: str | None, by: str | None, seed: int) -> Side:
    """Return the quantities of one image per patient, and its group.

    Args:
        scores: all rows.
        manifest: of the same images, for patients and groups; None where the images are the units.
        by: column of the manifest, or of the scores.
        seed: of the draw.

    Raises:
        PneumoError: if the manifest is of other images, or has no such column.
    """
    table, known = None, False
    rows = np.ones(len(scores.table), bool)
    if manifest is not None:
        table = read_manifest(storage.absolute(manifest))
        scores_in = pc.is_in(scores.table["image_id"], value_set=table["image_id"].combine_chunks())
        if not pc.all(scores_in).as_py():
            raise ManifestError(
                f"{pc.sum(pc.invert(scores_in)).as_py():,} scored images are not in {manifest}; give the manifest of the same archive"
            )
        joined = scores.joined(table, ("patient_id",)).table["patient_id"].to_pylist()
        patient_of, _ = number_groups(joined)
        order = np.random.default_rng(seed).permutation(len(patient_of))
        _, first = np.unique(patient_of[order], return_index=True)
        rows = np.zeros(len(patient_of), bool)
        rows[order[first]] = True
        known = any(patient is not None for patient in joined)
    groups = None if by is None else [g for g, kept in zip(_groups(scores, table, by), rows, strict=True) if kept]
    return Side(taken(quantities(scores), rows), groups, len(scores.table), known)


def _without(side: Side, quantity: str | None) -> Side:
    return replace(side, found={name: values for name, values in side.found.items() if name != quantity})


def _groups(scores: Scores, manifest: pa.Table | None, by: str) -> list[str]:
    if by in scores.table.column_names:
        values = scores.table[by].to_pylist()
    elif manifest is not None and by in manifest.column_names:
        values = scores.joined(manifest.select(["image_id", by]), (by,)).table[by].to_pylist()
    else:
        raise ConfigError(f"--by {by} is a column of neither the scores nor the --manifest; give one that is")
    names = [period(value) for value in values]
    if (count := len(set(names))) > MAX_GROUPS:
        raise ConfigError(
            f"--by {by} has {count:,} different values; give a column of at most {MAX_GROUPS}, or of dates, which become weeks"
        )
    return names


def period(value: object) -> str:
    """Return the group of a value: dates (of Python, `2026-11-25` or `20261125`) become ISO weeks, others their text."""
    if value is None:
        return "unknown"
    found = value if isinstance(value, date) else None
    if isinstance(value, str):
        try:
            found = date.fromisoformat(value[:10] if "-" in value else value)
        except ValueError:
            found = None
    if found is None:
        return str(value)
    year, week, _ = found.isocalendar()
    return f"{year}-W{week:02d}"


def _order(drift: Drift, names: Sequence[str]) -> list[str]:
    """Return the quantities by their largest stability index."""
    largest = {name: max((c.psi for c in drift.comparisons if c.quantity == name), default=0.0) for name in names}
    return sorted(names, key=lambda name: -largest[name])


def _figures(drift: Drift, sides: tuple[Side, Side]) -> dict[str, Figure]:
    compared = sorted({c.quantity for c in drift.comparisons})
    numbers = [name for name in compared if sides[0].found[name].dtype != object]
    drawn: dict[str, Figure] = {}
    if numbers:
        shown = _order(drift, numbers)[:_SHOWN]
        drawn["distributions"] = distribution_figure(
            [(n, _finite(sides[0].found[n]), _finite(sides[1].found[n])) for n in shown]
        )
    return drawn | week_figure(drift)


def week_figure(drift: Drift) -> dict[str, Figure]:
    """Return the figure of the quantities that differ most, by group, under the name `weeks`; nothing of a single group."""
    groups = sorted({c.group for c in drift.comparisons})
    if len(groups) < 2:
        return {}
    compared = sorted({c.quantity for c in drift.comparisons})
    lines = {
        name: {c.group: c.psi for c in drift.comparisons if c.quantity == name}
        for name in _order(drift, compared)[:_SHOWN]
    }
    return {"weeks": group_figure(groups, lines, MATTERS)}


def _finite(values: Floats | Words) -> NDArray[np.float64]:
    numbers = values.astype(np.float64)
    return numbers[np.isfinite(numbers)]


def _sentence(c: Comparison) -> str:
    where = "" if c.group == "all" else f"{c.group}: "
    what = "" if c.reference.endswith("%") else "median "
    return (
        f"{where}{c.quantity.replace('_', ' ')}: {what}{c.reference} in the reference, {c.here} here (stability index {c.psi:.2f}, "
        f"p {_p_text(c.p_adjusted)})"
    )


def _p_text(p: float) -> str:
    """Return a p-value as text; one that is 0 in float64 is small, not nothing."""
    return f"{p:.2g}" if p > 0 else "< 1e-300"


def _page(drift: Drift, sides: tuple[Side, Side], config: DriftConfig, figures: dict[str, str]) -> str:
    groups = {c.group for c in drift.comparisons}
    largest = max(drift.comparisons, key=lambda c: c.psi)
    units = "one image per patient" if all(side.patients_known for side in sides) else (
        "images, as patients are not known on both sides: give --manifest and --reference-manifest, or several images of one patient count as independent"
    )  # fmt: skip
    context = {
        "title": "Drift",
        "subtitle": f"{config.scores} against {config.reference}",
        "sections": [("summary", "Summary"), ("figures", "Distributions"), ("table", "All comparisons")],
        "figures": figures,
        "numbers_shown": [
            {"name": "alarms", "value": f"{len(drift.alarms):,}", "interval": f"of {len(drift.comparisons):,} comparisons"},
            {"name": "images", "value": f"{sides[1].images:,}", "interval": f"{sides[0].images:,} in the reference"},
            {"name": "groups", "value": f"{len(groups):,}", "interval": config.by or "not divided"},
            {"name": "largest stability index", "value": f"{largest.psi:.2f}", "interval": largest.quantity.replace("_", " ")},
        ],
        "about": [
            f"The units are {units}. "
            + ("No quantity differs by more than chance and by enough to matter." if not drift.alarms else "")
        ],
        "warnings": [_sentence(alarm) for alarm in drift.alarms[:SHOWN_ALARMS]]
        + ([f"and {more:,} more in the table below"] if (more := len(drift.alarms) - SHOWN_ALARMS) > 0 else []),
        "method": f"Numbers: Kolmogorov-Smirnov; words: chi-square; Holm over all {len(drift.comparisons):,} comparisons, so that where nothing "
        f"changed the probability of any alarm is at most {100 * drift.level:g} %. An alarm also needs a population stability index of "
        f"{MATTERS:g} above its mean by chance; by convention a difference from {MATTERS:g} on is moderate and from 0.25 on large. The columns "
        "reference and here have medians of numbers, and of words the share of the one that is most frequent in the reference.",
        "rows": [
            [c.group, c.quantity.replace("_", " "), c.n, c.reference, c.here, c.psi, Cell(c.p, _p_text(c.p)), Cell(c.p_adjusted, _p_text(c.p_adjusted)), "alarm" if c.alarm else "no"]
            for c in drift.comparisons
        ],
        "left_rows": [list(entry) for entry in drift.left_out],
        "made": made(),
    }  # fmt: skip
    return render("drift.html", context)
