"""How well the uncertainty of a trained network finds its errors on validation, for the study of dropout."""

import numpy as np
import torch
from scipy.special import expit

from pneumo_ray.data.dataset import load_inputs
from pneumo_ray.data.prepare import cache_of, load_training_rows
from pneumo_ray.data.split import permute_labels
from pneumo_ray.evaluate.uncertainty import error_detection, max_prob_uncertainty
from pneumo_ray.explain import BayesGradCAM
from pneumo_ray.model import load_bundle
from pneumo_ray.train.config import TrainConfig


def error_finding(config: TrainConfig, model: str, own_device: bool) -> dict[str, float | None]:
    """Explain the validation images with the trained network and measure how well each uncertainty ranks its errors.

    An error is an image on the wrong side of raw probability 0.5 without dropout, so that both uncertainties are asked about
    the same errors. The computation is in float32, whatever the training was in.

    Args:
        config: of the trial.
        model: folder of its bundle, which holds the weights of its best epoch.
        own_device: whether this process reserved the training device; otherwise it computes on the CPU.

    Returns:
        `error_auroc_mi` of the mutual information of the passes and `error_auroc_plain` of `1 - max(p, 1 - p)`; None
        where nothing, or everything, is wrong.
    """
    device = torch.device("cuda" if own_device and config.scaling.use_gpu else "cpu")
    bundle = load_bundle(model)
    # Passes and calibration as jobs/explain.py has them; the decision is that of the raw logit, as in the trial's accuracy.
    engine = BayesGradCAM(
        bundle.model.to(device), None, config.seed, temperature=bundle.temperature, intercept=bundle.intercept
    )
    manifest, _, val = load_training_rows(config.manifest)
    if config.permute_labels:
        val = permute_labels(val, config.seed)
    cache, seen = cache_of(manifest, config.manifest), bundle.preprocessing
    logits, information = [], []
    for start in range(0, len(val), config.batch_size):
        taken = val.slice(start, config.batch_size)
        grey = torch.from_numpy(load_inputs(taken, seen.image_size, cache, seen.fit, seen.margin)).to(device)
        explained = engine(seen.normalise(grey))
        logits.append(explained.logit.cpu().numpy())
        information.append(explained.mutual_information.cpu().numpy())
    logit = np.concatenate(logits).astype(np.float64)
    wrong = (logit >= 0) != (val["label"].to_numpy() == 1)
    return {
        "error_auroc_mi": error_detection(np.concatenate(information).astype(np.float64), wrong),
        "error_auroc_plain": error_detection(max_prob_uncertainty(expit(logit)), wrong),
    }
