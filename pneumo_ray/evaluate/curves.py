"""The learning curves of a run, as a picture."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from pneumo_ray import storage


def draw_curves(history: Sequence[dict[str, Any]], uri: str) -> None:
    """Write a PNG of loss, AUC and learning rate by epoch, with the best epoch marked.

    Args:
        history: records of history.jsonl.
        uri: where the picture goes.
    """
    epochs = [record["epoch"] for record in history]
    best = [record["epoch"] for record in history if record["best"]][-1]
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    loss, auc, rate = figure.subplots(1, 3)
    loss.plot(epochs, [r["train_loss"] for r in history], "o-", ms=3, label="training (augmented, as weighted)")
    loss.plot(epochs, [r["val_loss"] for r in history], "s-", ms=3, label="validation")
    loss.set_ylabel("cross-entropy (nats)")
    loss.set_ylim(bottom=0)
    auc.plot(epochs, [r["val_auc"] for r in history], "s-", ms=3, color="C1", label="validation")
    auc.set_ylabel("AUC")
    rate.step(epochs, [r["lr"] for r in history], where="mid", color="C2")
    rate.set_ylabel("learning rate")
    rate.set_yscale("log")
    for axes in (loss, auc, rate):
        axes.axvline(best, color="0.6", lw=1, ls=":")
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
    loss.legend(fontsize=8)
    figure.suptitle(f"best epoch {best} of {epochs[-1]}  ·  research use only", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    storage.write_bytes(uri, buffer.getvalue())
