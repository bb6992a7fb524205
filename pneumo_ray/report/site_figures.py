"""The figures of the pages about a site."""

import numpy as np
from matplotlib.figure import Figure

from pneumo_ray.evaluate.drawing import INK, NORMAL, PNEUMONIA, THIRD, house_style
from pneumo_ray.site.labels import Labelled
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
        edges = np.linspace(0, 1, 31)
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
