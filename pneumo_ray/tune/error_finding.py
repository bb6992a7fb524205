"""How well the uncertainty of a trained network finds its errors on validation, for the study of dropout."""

import numpy as np
from scipy.special import expit

from pneumo_ray.data.prepare import load_training_rows
from pneumo_ray.data.split import permute_labels
from pneumo_ray.evaluate.uncertainty import error_detection, max_prob_uncertainty
from pneumo_ray.train.config import TrainConfig
from pneumo_ray.tune.held_out import explain_rows


def error_finding(config: TrainConfig, model: str, own_device: bool) -> dict[str, float | None]:
    """Explain the validation images with the trained network and measure how well each uncertainty ranks its errors.

    An error is an image on the wrong side of raw probability 0.5 without dropout, so that both uncertainties are asked about
    the same errors. The computation is in float32, also after training in mixed precision.

    Args:
        config: of the trial.
        model: folder of its bundle, which holds the weights of its best epoch.
        own_device: whether this process reserved the training device; otherwise it computes on the CPU.

    Returns:
        `error_auroc_mi` of the mutual information of the passes and `error_auroc_plain` of `1 - max(p, 1 - p)`; None
        where nothing, or everything, is wrong.
    """
    manifest, _, val = load_training_rows(config.manifest)
    if config.permute_labels:
        val = permute_labels(val, config.seed)
    explained = list(explain_rows(config, model, manifest, val, own_device))
    logits = [part.logit.cpu().numpy() for part in explained]
    information = [part.mutual_information.cpu().numpy() for part in explained]
    logit = np.concatenate(logits).astype(np.float64)
    wrong = (logit >= 0) != (val["label"].to_numpy() == 1)
    return {
        "error_auroc_mi": error_detection(np.concatenate(information).astype(np.float64), wrong),
        "error_auroc_plain": error_detection(max_prob_uncertainty(expit(logit)), wrong),
    }
