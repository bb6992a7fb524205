"""The learning curves of a run, as a figure."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from pneumo_ray.evaluate.drawing import INK, NORMAL, PNEUMONIA, THIRD, house_style
from pneumo_ray.records import JsonObject


def learning_figure(history: Sequence[JsonObject]) -> Figure:
    """Draw loss, AUC and learning rate by epoch, with the best epoch marked.

    Args:
        history: records of history.jsonl, at least one.
    """
    epochs = [record["epoch"] for record in history]
    best = [record["epoch"] for record in history if record["best"]][-1]
    with house_style():
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        loss, auc, rate = figure.subplots(1, 3)
        train = [record["train_loss"] for record in history]
        loss.plot(epochs, train, "o-", ms=3, color=NORMAL, label="training (augmented, as weighted)")
        loss.plot(epochs, [record["val_loss"] for record in history], "^-", ms=4, color=PNEUMONIA, label="validation")
        loss.set_ylabel("cross-entropy (nats)")
        loss.set_ylim(0, 1.35 * loss.get_ylim()[1])  # room for the legend
        auc.plot(epochs, [record["val_auc"] for record in history], "^-", ms=4, color=PNEUMONIA)
        auc.set_ylabel("validation AUC")
        rate.step(epochs, [record["lr"] for record in history], where="mid", color=THIRD)
        rate.set_ylabel("learning rate")
        rate.set_yscale("log")
        for axes in (loss, auc, rate):
            axes.axvline(best, color=INK, lw=0.8, ls=":")
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
        loss.legend(loc="upper right")
        figure.suptitle(f"best epoch {best} of {epochs[-1]}", fontsize=9)
    return figure
