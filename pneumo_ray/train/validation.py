"""What the validation images say of a network: raw, and as its bundle will have it."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from pneumo_ray.evaluate.calibration import fit_calibration
from pneumo_ray.evaluate.metrics import classification_metrics
from pneumo_ray.model.calibrated import Calibration

Floats = NDArray[np.float64]

SELECTED_BY = "loss_scaled"
"""The one criterion between runs: what halving stops by, what a search learns from, and what chooses the best. It is the
validation loss of the calibrated probabilities, because those are what a bundle gives; the raw loss would punish a run
for a scale and a prior that are corrected anyway."""


def calibrated(passes: Floats, labels: NDArray[np.int64]) -> tuple[Calibration, Floats]:
    """Return the calibration of a run, and the probabilities [n] that its bundle gives the images it was fitted on.

    Args:
        passes: raw logits [n, T], of the Monte Carlo passes that scoring makes by default; [n] of a network without.
        labels: [n], 0 or 1.
    """
    calibration = fit_calibration(passes, labels)
    prob = calibration.prob(np.asarray(passes, dtype=np.float64))
    return calibration, prob.mean(1) if prob.ndim == 2 else prob


def calibrated_loss(passes: Floats, labels: NDArray[np.int64]) -> float:
    """Return `SELECTED_BY`: the log loss in nats of the calibrated probabilities."""
    loss = classification_metrics(labels, calibrated(passes, labels)[1], 0.5).log_loss
    assert loss is not None, "there are validation images"
    return float(loss)


def validation_metrics(
    logits: Floats, labels: NDArray[np.int64], passes: Floats | None = None
) -> dict[str, float | None]:
    """Return the metrics by which trials are compared.

    Args:
        logits: raw logits [n] without dropout.
        labels: [n], 0 or 1.
        passes: as for `calibrated`; None takes `logits`.

    Returns:
        `val_loss` (nats) and `val_auc`; `ece`, `brier`, `accuracy`, `recall`, `specificity` of the raw probabilities at
        0.5; `bias`, their mean minus the share of pneumonia; `temperature`, and `ece_scaled` and `loss_scaled` of the
        calibrated probabilities; `intercept`.
    """
    calibration, prob = calibrated(logits if passes is None else passes, labels)
    raw = classification_metrics(labels, expit(logits), 0.5)
    scaled = classification_metrics(labels, prob, 0.5)
    return {
        "val_loss": raw.log_loss,
        "val_auc": raw.auc,
        **{name: raw[name] for name in ("ece", "brier", "accuracy", "recall", "specificity")},
        "bias": float(expit(logits).mean() - labels.mean()),
        "temperature": calibration.temperature,
        "ece_scaled": scaled.ece,
        "loss_scaled": scaled.log_loss,
        "intercept": calibration.intercept,
    }
