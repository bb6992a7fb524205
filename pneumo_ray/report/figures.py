"""The figures of an evaluation: every one a function from numbers to a matplotlib figure."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from pneumo_ray.evaluate.bands import roc_band
from pneumo_ray.evaluate.calibration import ReliabilityTable
from pneumo_ray.evaluate.drawing import INK, NORMAL, PNEUMONIA, THIRD, house_style
from pneumo_ray.evaluate.metrics import ConfusionMetrics
from pneumo_ray.evaluate.number_text import number_text, percent_text
from pneumo_ray.evaluate.uncertainty import RiskCoverage
from pneumo_ray.evaluate.zone_table import ZoneRecord

_MAX_POINTS = 600
"""Largest number of points of a curve; more are not visible, and a million cannot be opened."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def roc_figure(
    label: Ints, prob: Floats, patients: Sequence[str | None], threshold: float, auc: str, seed: int
) -> Figure:
    """Draw the ROC curve with its 95 % band over patients, and the threshold marked on it.

    Args:
        label: [n], both classes present.
        prob: [n].
        patients: [n].
        threshold: of the decision.
        auc: the area with its interval, as text.
        seed: of the bootstrap.
    """
    with house_style():
        figure, axes = _square()
        grid = np.linspace(0, 1, 201)
        if (band := roc_band(label, prob, patients, grid, seed=seed)) is not None:
            axes.fill_between(grid, *band, color=NORMAL, alpha=0.25, lw=0, label="95 % band over patients")
        false, true, _ = roc_curve(label, prob)
        axes.plot(*_thinned(false, true), color=NORMAL, lw=1.8, label=f"AUC {auc}")
        axes.plot([0, 1], [0, 1], color=INK, lw=0.8, ls=":")
        called = prob >= threshold
        axes.plot(
            (called & (label == 0)).sum() / (label == 0).sum(),
            (called & (label == 1)).sum() / (label == 1).sum(),
            "o", color=PNEUMONIA, ms=8, label=f"threshold {threshold:.3f}",
        )  # fmt: skip
        axes.set_xlabel("1 - specificity")
        axes.set_ylabel("sensitivity")
        axes.legend(loc="lower right")
    return figure


def precision_recall_figure(label: Ints, prob: Floats, threshold: float, average_precision: float) -> Figure:
    """Draw precision against recall, with the share of pneumonia, the precision of random guessing.

    Args:
        label: [n], both classes present.
        prob: [n].
        threshold: of the decision.
        average_precision: area under the curve.
    """
    with house_style():
        figure, axes = _square()
        precision, recall, _ = precision_recall_curve(label, prob)
        x, y = _thinned(recall, precision)
        axes.plot(x, y, color=NORMAL, lw=1.8, label=f"average precision {number_text(average_precision)}")
        axes.axhline(
            label.mean(), color=INK, lw=0.8, ls=":", label=f"share of pneumonia {number_text(float(label.mean()))}"
        )
        called = prob >= threshold
        if called.any():
            axes.plot(
                (called & (label == 1)).sum() / label.sum(), label[called].mean(), "o", color=PNEUMONIA, ms=8,
                label=f"threshold {threshold:.3f}",
            )  # fmt: skip
        axes.set_xlabel("recall (sensitivity)")
        axes.set_ylabel("precision (positive predictive value)")
        axes.legend(loc="lower left")
    return figure


def reliability_figure(tables: dict[str, ReliabilityTable]) -> Figure:
    """Draw the observed frequency of pneumonia by predicted probability, and the number of images.

    Args:
        tables: name of the probability and its table; the last one also as counts below.
    """
    with house_style():
        figure = Figure(figsize=(5, 5.6), layout="constrained")
        axes, below = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
        axes.plot([0, 1], [0, 1], color=INK, lw=0.8, ls=":", label="perfect")
        for (name, table), colour, mark in zip(tables.items(), (THIRD, NORMAL, PNEUMONIA), "sDo", strict=False):
            axes.plot(table.mean_prob, table.observed, f"{mark}-", color=colour, ms=5, lw=1.3, label=name)
        last = list(tables.values())[-1]
        below.bar(last.edges[:-1], last.counts, np.diff(last.edges), align="edge", color=PNEUMONIA, alpha=0.6)
        axes.set_ylabel("share that is pneumonia")
        below.set_ylabel("images")
        below.set_xlabel("probability of pneumonia")
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.02, 1.02)
        axes.legend(loc="upper left")
    return figure


def confusion_figure(points: dict[str, ConfusionMetrics]) -> Figure:
    """Draw confusion matrices side by side, each cell with its count and its share of the true class.

    Args:
        points: title and metrics.
    """
    with house_style():
        figure = Figure(figsize=(3.4 * len(points), 3.2), layout="constrained")
        for axes, (title, m) in zip(figure.subplots(1, len(points), squeeze=False)[0], points.items(), strict=True):
            counts = np.array([[m.tn, m.fp], [m.fn, m.tp]])
            shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
            axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
            for row, column in np.ndindex(2, 2):
                share = shares[row, column]
                text = f"{counts[row, column]:,}\n{percent_text(share)}"
                shade = "white" if share > 0.55 else "#101418"
                axes.text(column, row, text, ha="center", va="center", color=shade, fontsize=11)
            axes.set_xticks([0, 1], ["normal", "pneumonia"])
            axes.set_yticks([0, 1], ["normal", "pneumonia"], rotation=90, va="center")
            axes.set_xlabel("called")
            axes.set_ylabel("true")
            axes.set_title(title, fontsize=10)
            axes.grid(False)
    return figure


def residual_figure(label: Ints, prob: Floats, threshold: float) -> Figure:
    """Draw the residuals `label - probability`: their histogram by class, and each against its probability.

    Args:
        label: [n].
        prob: [n].
        threshold: of the decision.
    """
    with house_style():
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        residual = label - prob
        edges = np.linspace(-1, 1, 41)
        left.hist([residual[label == c] for c in (0, 1)], edges, stacked=True, color=[NORMAL, PNEUMONIA],
                  label=["normal", "pneumonia"])  # fmt: skip
        left.set_yscale("symlog", linthresh=10)
        left.set_xlabel("residual: label - probability")
        left.set_ylabel("images")
        left.legend()
        shown = np.random.default_rng(0).permutation(len(label))[: 4 * _MAX_POINTS]
        for c, colour, mark, name in ((0, NORMAL, "o", "normal"), (1, PNEUMONIA, "^", "pneumonia")):
            rows = shown[label[shown] == c]
            # Residuals lie on two lines; a small vertical offset shows overlapping points.
            apart = np.random.default_rng(c).uniform(-0.02, 0.02, len(rows))
            right.plot(prob[rows], residual[rows] + apart, mark, color=colour, ms=3, alpha=0.45, lw=0, label=name)
        right.axvline(threshold, color=INK, lw=0.8, ls=":", label=f"threshold {threshold:.3f}")
        right.set_xlabel("probability of pneumonia")
        right.set_ylabel("residual")
        right.legend()
        if len(shown) < len(label):
            right.set_title(f"{len(shown):,} of {len(label):,} images", fontsize=9)
    return figure


def risk_coverage_figure(curves: dict[str, RiskCoverage]) -> Figure:
    """Draw the share of errors among the images that are kept, as the uncertain ones are referred.

    Args:
        curves: name of the uncertainty and its curve; the first two need no Monte Carlo.
    """
    with house_style():
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        styles = ((INK, "--"), (INK, ":"), (NORMAL, "-"), (PNEUMONIA, "-"), (THIRD, "-."))
        for (name, curve), (colour, line) in zip(curves.items(), styles, strict=False):
            x, y = _thinned(curve.coverage, curve.risk)
            axes.plot(x, y, line, color=colour, lw=1.5, label=f"{name} (area {curve.area:.4f})")
        axes.set_xlabel("share of the images kept, the most certain first")
        axes.set_ylabel("share of errors among them")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.4 * axes.get_ylim()[1])  # room for the legend
        axes.legend(loc="upper left")
    return figure


def zone_figure(records: Sequence[ZoneRecord], zones: Sequence[str]) -> Figure:
    """Draw the mean activation of the six zones arranged as in the image, for each group of images.

    Args:
        records: of `zone_table`.
        zones: their names, right and left in turn, from top to bottom.
    """
    groups = list(dict.fromkeys(record.images for record in records))
    means = {(r.images, r.zone): np.nan if r.mean is None else r.mean for r in records}
    grids = [np.array([means[name, zone] for zone in zones]).reshape(-1, 2) for name in groups]
    top = max((float(np.nanmax(grid)) for grid in grids if np.isfinite(grid).any()), default=1.0) or 1.0
    with house_style():
        figure = Figure(figsize=(1.75 * len(groups) + 0.9, 3.1), layout="constrained")
        shown = ScalarMappable(Normalize(0, top), "inferno")
        for axes, name, grid in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups, grids, strict=True):
            axes.imshow(grid, cmap=shown.cmap, norm=shown.norm, aspect=0.85)
            for row, column in np.ndindex(*grid.shape):
                value = grid[row, column]
                shade = "white" if not value > 0.6 * top else "black"
                text = f"{value:.2f}" if np.isfinite(value) else "-"
                axes.text(column, row, text, ha="center", va="center", color=shade, fontsize=9)
            axes.set_xticks([0, 1], ["right", "left"])
            axes.set_yticks([0, 1, 2], ["upper", "middle", "lower"] if name == groups[0] else [""] * 3)
            axes.set_title(name, fontsize=9)
            axes.grid(False)
        figure.colorbar(shown, ax=figure.axes, label="logit per cell", shrink=0.8)
    return figure


def _square() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    return figure, axes


def _thinned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Return at most `_MAX_POINTS` points of a curve, its ends among them."""
    if len(x) <= _MAX_POINTS:
        return x, y
    rows = np.unique(np.linspace(0, len(x) - 1, _MAX_POINTS).round().astype(int))
    return x[rows], y[rows]
