"""The figures of the pages about a site."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from pneumo_ray.evaluate.drawing import INK, NORMAL, PNEUMONIA, THIRD, house_style
from pneumo_ray.site.labels import Floats, Labelled
from pneumo_ray.site.triage import NoTriage, Triage


def score_figure(data: Labelled, threshold: float, triage: Triage | NoTriage) -> Figure:
    """Draw the probabilities of the labelled images by class, with the threshold and those of triage.

    Args:
        data: the labelled images.
        threshold: for the site, on `prob_mean`.
        triage: its two thresholds, where there are any.
    """
    with house_style():
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        axes = figure.subplots()
        edges = np.linspace(0, 1, 31).tolist()
        for label, name, colour in ((0, "normal", NORMAL), (1, "pneumonia", PNEUMONIA)):
            axes.hist(data.prob[data.label == label], edges, color=colour, alpha=0.6, label=name)
        axes.axvline(threshold, color=INK, lw=1.5, label=f"threshold {threshold:.3g}")
        if isinstance(triage, Triage):
            for place, edge in enumerate((triage.low, triage.high)):
                if edge <= 1:
                    axes.axvline(edge, color=THIRD, lw=1.5, ls="--", label=None if place else "triage")
        axes.set_xlabel("probability of pneumonia, as the model gives it")
        axes.set_ylabel("labelled images")
        axes.legend(loc="upper center")
    return figure


def distribution_figure(shown: Sequence[tuple[str, Floats, Floats]]) -> Figure:
    """Draw the distributions of numbers, the reference filled and the others as a line.

    Args:
        shown: name, values of the reference and values here, at most six.
    """
    with house_style():
        columns = min(3, len(shown))
        rows = -(-len(shown) // columns)
        figure = Figure(figsize=(3.3 * columns, 2.4 * rows), layout="constrained")
        all_axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in all_axes[len(shown) :]:
            axes.set_axis_off()
        for axes, (name, reference, here) in zip(all_axes, shown, strict=False):
            low, high = np.quantile(np.concatenate([reference, here]), [0.005, 0.995])
            edges = np.linspace(low, high if high > low else low + 1, 31).tolist()
            axes.hist(reference, edges, density=True, color=NORMAL, alpha=0.45, label="reference")
            axes.hist(here, edges, density=True, color=PNEUMONIA, histtype="step", lw=1.6, label="here")
            axes.set_title(name.replace("_", " "), fontsize=9)
            axes.set_yticks([])
        all_axes[0].legend(loc="best")
    return figure


def group_figure(groups: Sequence[str], lines: Mapping[str, Mapping[str, float]], matters: float) -> Figure:
    """Draw the stability index of quantities over groups, such as weeks.

    Args:
        groups: in their order; weeks are joined by lines, other groups have none.
        lines: by quantity, the index of each group; a group may lack.
        matters: from which index a difference matters.
    """
    with house_style():
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        axes = figure.subplots()
        weeks = all(re.fullmatch(r"\d{4}-W\d\d", group) for group in groups)
        styles, markers = ("-", "--", "-.", ":"), "osD^"
        for number, (name, values) in enumerate(lines.items()):
            colour = (NORMAL, PNEUMONIA, THIRD)[number % 3]
            y = [values.get(group, np.nan) for group in groups]
            axes.plot(
                range(len(groups)),
                y,
                linestyle=styles[number % 4] if weeks else "none",
                marker="o" if weeks else markers[number % 4],
                ms=3 if weeks else 6,
                alpha=0.8,
                color=colour,
                label=name.replace("_", " "),
            )
        axes.axhline(matters, color=INK, lw=0.8, ls=":")
        step = max(1, len(groups) // 12)
        axes.set_xticks(range(0, len(groups), step), list(groups)[::step], rotation=30, ha="right")
        axes.set_ylabel("stability index")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
