"""Metrics of a network on the validation images: raw, and calibrated as its bundle will be."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from pneumo_ray.data.soft_labels import SoftLabels
from pneumo_ray.evaluate.calibration import fit_calibration, fit_soft_calibration
from pneumo_ray.evaluate.metrics import classification_metrics
from pneumo_ray.evaluate.soft_scores import soft_log_loss
from pneumo_ray.model.calibrated import Calibration

Floats = NDArray[np.float64]

SELECTED_BY = "loss_scaled"
"""The one criterion between runs: what halving stops by, what a search learns from, and what chooses the best. It is the
validation loss of the calibrated probabilities, because those are what a bundle gives; the raw loss would punish a run
for a scale and a prior that are corrected anyway."""


def calibrated(passes: Floats, labels: NDArray[np.int64], soft: SoftLabels | None = None) -> tuple[Calibration, Floats]:
    """Return the calibration of a run, and the probabilities [n] that its bundle gives the images it was fitted on.

    Args:
        passes: raw logits [n, T], of the Monte Carlo passes that scoring makes by default; [n] of a network without.
        labels: [n], 0 or 1.
        soft: labels as probabilities, which are fitted instead; None where hard ones are learned.
    """
    if soft is None:
        calibration = fit_calibration(passes, labels)
    else:
        calibration = fit_soft_calibration(np.asarray(passes, dtype=np.float64), soft.target, soft.weight)
    prob = calibration.prob(np.asarray(passes, dtype=np.float64))
    return calibration, prob.mean(1) if prob.ndim == 2 else prob


def calibrated_loss(passes: Floats, labels: NDArray[np.int64], soft: SoftLabels | None = None) -> float:
    """Return `SELECTED_BY`: the log loss in nats of the calibrated probabilities, against soft labels where they are learned."""
    prob = calibrated(passes, labels, soft)[1]
    if soft is not None:
        return soft_log_loss(prob, soft.target, soft.weight)
    loss = classification_metrics(labels, prob, 0.5).log_loss
    assert loss is not None, "there are validation images"
    return float(loss)


def validation_metrics(
    logits: Floats, labels: NDArray[np.int64], passes: Floats | None = None, soft: SoftLabels | None = None
) -> dict[str, float | None]:
    """Return the metrics by which trials are compared.

    Args:
        logits: raw logits [n] without dropout.
        labels: [n], 0 or 1.
        passes: as for `calibrated`; None takes `logits`.
        soft: as for `calibrated`; `val_loss` and `loss_scaled` are then against them, everything else against `labels`.

    Returns:
        `val_loss` (nats) and `val_auc`; `ece`, `brier`, `accuracy`, `recall`, `specificity` of the raw probabilities at
        0.5; `bias`, their mean minus the share of pneumonia; `temperature`, and `ece_scaled` and `loss_scaled` of the
        calibrated probabilities; `intercept`.
    """
    calibration, prob = calibrated(logits if passes is None else passes, labels, soft)
    raw = classification_metrics(labels, expit(logits), 0.5)
    scaled = classification_metrics(labels, prob, 0.5)
    losses = [raw.log_loss, scaled.log_loss]
    if soft is not None:
        losses = [soft_log_loss(of, soft.target, soft.weight) for of in (expit(logits), prob)]
    return {
        "val_loss": losses[0],
        "val_auc": raw.auc,
        **{name: raw[name] for name in ("ece", "brier", "accuracy", "recall", "specificity")},
        "bias": float(expit(logits).mean() - labels.mean()),
        "temperature": calibration.temperature,
        "ece_scaled": scaled.ece,
        "loss_scaled": losses[1],
        "intercept": calibration.intercept,
    }
