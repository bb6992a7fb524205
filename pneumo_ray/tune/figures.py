"""Figures of a study: differences to the reference, the points of a search, and learning curves.

They are drawn from the records of the trials. A diverged trial has no numbers, or some that are not finite:
it is named or marked where possible and never hides the others.
"""

import math
from collections.abc import Sequence
from typing import TypeGuard

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, MaxNLocator, NullFormatter
from matplotlib.typing import ColorType

from pneumo_ray.evaluate.drawing import INK, NORMAL, PNEUMONIA, THIRD, house_style
from pneumo_ray.tune.comparison import best_record, differences, value_of
from pneumo_ray.tune.records import TrialRecord
from pneumo_ray.tune.study import Study

FOREST, MAP, CURVES = "differences", "lr-weight-decay", "learning-curves"
"""Names of the files, without extension."""

PANELS = {"val_auc": "AUC (right is better)", "loss_scaled": "loss after calibration (left is better)"}
"""Metrics of the forest plot."""
LR, DECAY = "optim.lr", "optim.weight_decay"
COLOURS = "viridis"
"""Perceptually uniform; the darker, the lower the loss."""


def study_figures(study: Study, records: Sequence[TrialRecord]) -> dict[str, Figure]:
    """Return the possible figures of a study by file name.

    Args:
        study: which.
        records: of its trials that are over.
    """
    figures = {
        FOREST: forest_figure(study, records),
        MAP: map_figure(study, records),
        CURVES: curves_figure(study, records),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def forest_figure(study: Study, records: Sequence[TrialRecord]) -> Figure | None:
    """Draw each arm less the reference, with 95 % intervals over seeds.

    A small dot is one trial less the reference's trial of the same seed. Their mean is the difference where every arm
    has every seed.

    Returns:
        The figure; None where no arm can be compared.
    """
    reference = study.reference_arm
    if reference is None:
        return None
    found = {metric: differences(records, metric, reference) for metric in PANELS}
    arms = [arm for arm in dict.fromkeys(record.arm for record in records) if arm != reference]
    if not any(found.values()):
        return None
    with house_style():
        figure = Figure(figsize=(9.5, 1.6 + 0.32 * len(arms)), layout="constrained")
        for axes, (metric, title) in zip(figure.subplots(1, len(PANELS), sharey=True), PANELS.items(), strict=True):
            axes.axvline(0, color=INK, lw=0.8, ls=":")
            for row, arm in enumerate(arms):
                pairs = _pairs(records, metric, arm, reference)
                axes.scatter(
                    pairs, [row + 0.22] * len(pairs), s=8, color=THIRD, linewidths=0, gid=f"{metric}-trials-{row}"
                )
                if (difference := found[metric].get(arm)) is None:
                    continue
                if difference.low is not None and difference.high is not None:
                    axes.plot(
                        [difference.low, difference.high],
                        [row, row],
                        color=NORMAL,
                        lw=2,
                        gid=f"{metric}-interval-{row}",
                    )
                axes.plot([difference.mean], [row], "o", color=NORMAL, ms=6, gid=f"{metric}-mean-{row}")
            axes.set_xlabel(title)
            axes.set_yticks(range(len(arms)), [_named(arm, records) for arm in arms])
            axes.grid(visible=False, axis="y")
            axes.set_ylim(len(arms) - 0.5, -0.5)
        sure = any(d.low is not None for metric in found.values() for d in metric.values())
        over = "bar: 95 % interval over seeds" if sure else "too few seeds for intervals"
        figure.suptitle(f"{study.name}: each arm less {reference}, on validation; {over}; dot: one seed", fontsize=9)
    return figure


def map_figure(study: Study, records: Sequence[TrialRecord]) -> Figure | None:
    """Draw the learning rates and weight decays of a search, coloured by the best validation loss.

    Returns:
        The figure; None if the trials are not drawn from two positive numbers.
    """
    drawn = [r for r in records if _positive(r.settings.get(LR)) and _positive(r.settings.get(DECAY))]
    if not study.is_search or not drawn:
        return None
    scale = _scale(drawn)
    with house_style():
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        axes = figure.subplots()
        axes.set(xscale="log", yscale="log", xlabel="peak learning rate", ylabel="weight decay")
        for status, marker, label in (("finished", "o", "finished"), ("stopped", "v", "stopped early")):
            group = [r for r in drawn if r.status == status and best_loss(r) is not None]
            if group:
                x, y = _places(group)
                losses = [best_loss(r) for r in group]
                axes.scatter(
                    x,
                    y,
                    s=55,
                    marker=marker,
                    linewidths=0.6,
                    label=label,
                    c=losses,
                    cmap=COLOURS,
                    norm=scale,
                    edgecolors=INK,
                )
        if lost := [r for r in drawn if r.status not in ("finished", "stopped") or best_loss(r) is None]:
            axes.scatter(*_places(lost), s=45, marker="x", color=INK, label="diverged or failed")
        best = best_record(study, drawn)
        if best is not None:
            x, y = _places([best])
            label = f"best, {best.name}"
            axes.scatter(x, y, s=190, marker="o", facecolors="none", edgecolors=PNEUMONIA, linewidths=2, label=label)
        if scale is not None:
            _colourbar(figure, axes, scale, "best validation loss (nats)")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            axis.set_major_formatter(
                LogFormatterSciNotation(labelOnlyBase=False, minor_thresholds=(math.inf, math.inf))
            )
            axis.set_minor_formatter(NullFormatter())
        figure.legend(loc="outside upper center", ncols=4)
    return figure


def curves_figure(study: Study, records: Sequence[TrialRecord]) -> Figure | None:
    """Draw the validation loss of every trial by epoch, coloured by arm, or in a search by its best.

    Returns:
        The figure; None where no trial finished an epoch.
    """
    curves = [(record, points) for record in records if (points := _curve(record))]
    if not curves:
        return None
    arms = list(dict.fromkeys(record.arm for record, _ in curves))
    scale = _scale([record for record, _ in curves]) if study.is_search else None
    with house_style():
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        axes = figure.subplots()
        for record, points in curves:
            if scale is not None:
                colour = mpl.colormaps[COLOURS](scale(min(loss for _, loss in points)))
            else:
                colour = _arm_colour(record.arm, arms, study.reference_arm)
            style = "-" if record.status == "finished" else ":"
            axes.plot(
                *zip(*points, strict=True),
                style,
                marker="o",
                ms=2.5,
                lw=1.2,
                color=colour,
                gid=f"curve-{record.name}",
            )
        losses = [loss for _, points in curves for _, loss in points]
        if min(losses) > 0 and max(losses) > 10 * min(losses):
            axes.set_yscale("log")
        axes.set(xlabel="epoch", ylabel="validation loss (nats)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if scale is not None:
            _colourbar(figure, axes, scale, "best validation loss (nats)")
        else:
            for arm in arms:
                axes.plot([], [], color=_arm_colour(arm, arms, study.reference_arm), label=arm)
        if any(record.status != "finished" for record, _ in curves):
            axes.plot([], [], ":", color=INK, label="did not finish")
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside upper center" if scale is not None else "outside right upper")
        figure.suptitle(f"{study.name}: every trial on validation", fontsize=9)
    return figure


def best_loss(record: TrialRecord) -> float | None:
    """Return the lowest validation loss of a trial over its epochs, or None."""
    return min((loss for _, loss in _curve(record)), default=value_of(record, "val_loss"))


def _curve(record: TrialRecord) -> list[tuple[int, float]]:
    """Return (epoch, validation loss) where the loss is a number."""
    return [(e["epoch"], e["val_loss"]) for e in record.history if _finite(e.get("val_loss"))]


def _finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _positive(value: object) -> TypeGuard[float]:
    return _finite(value) and value > 0


def _pairs(records: Sequence[TrialRecord], metric: str, arm: str, reference: str) -> list[float]:
    of = {
        (r.arm, r.seed): value for r in records if r.status == "finished" and (value := value_of(r, metric)) is not None
    }
    return [of[arm, seed] - of[reference, seed] for name, seed in of if name == arm and (reference, seed) in of]


def _named(arm: str, records: Sequence[TrialRecord]) -> str:
    """Return the name of an arm with the status of its unfinished trials."""
    others = [r.status for r in records if r.arm == arm and r.status != "finished"]
    lost = ", ".join(f"{others.count(status)} {status}" for status in dict.fromkeys(others))
    return f"{arm} ({lost})" if lost else arm


def _places(records: Sequence[TrialRecord]) -> tuple[list[float], list[float]]:
    return [r.settings[LR] for r in records], [r.settings[DECAY] for r in records]


def _scale(records: Sequence[TrialRecord]) -> Normalize | None:
    """Return colours from the best to the worst that finished; a trial that stopped at a high loss must not stretch the scale."""
    known = {r.name: loss for r in records if (loss := best_loss(r)) is not None}
    over = [known[r.name] for r in records if r.status == "finished" and r.name in known] or list(known.values())
    if not over:
        return None
    low, high = min(known.values()), max(over)
    return Normalize(low, high if high > low else low + 1e-6, clip=True)


def _colourbar(figure: Figure, axes: Axes, scale: Normalize, label: str) -> None:
    mappable = mpl.cm.ScalarMappable(norm=scale, cmap=COLOURS)
    figure.colorbar(mappable, ax=axes, label=label, extend="max").outline.set_visible(False)


def _arm_colour(arm: str, arms: Sequence[str], reference: str | None) -> ColorType:
    if arm == reference:
        return INK
    others = [other for other in arms if other != reference]
    if len(others) <= 3:
        return (NORMAL, PNEUMONIA, THIRD)[others.index(arm)]
    return mpl.colormaps[COLOURS](0.1 + 0.85 * others.index(arm) / (len(others) - 1))
