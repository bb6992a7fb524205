"""Fit the Laplace posterior of a finished model: one pass over its training images, as they are, and a sum.

The sum of outer products is made where the features arrive, so that no matrix travels and any number of workers gives the
same result.
"""

import time
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pneumo_ray import storage
from pneumo_ray.console import duration, log, progress
from pneumo_ray.data.manifest import fingerprint
from pneumo_ray.data.prepare import cache_of, load_training_rows
from pneumo_ray.data.soft_labels import SoftLabels, soft_labels
from pneumo_ray.data.split import permute_labels
from pneumo_ray.errors import ConfigError
from pneumo_ray.evaluate.config import OperatingPointConfig
from pneumo_ray.evaluate.metrics import classification_metrics
from pneumo_ray.evaluate.operating_point import choose_operating_point
from pneumo_ray.evaluate.scores import fact
from pneumo_ray.explain.laplace import Curvature, LaplaceFit, fit_laplace
from pneumo_ray.explain.masks import DEFAULT_PASSES
from pneumo_ray.explain.posterior import LaplacePosterior
from pneumo_ray.model import Bundle, load_bundle, save_bundle
from pneumo_ray.model.stored_posterior import StoredPosterior
from pneumo_ray.records import json_of
from pneumo_ray.score.config import ScoringScale
from pneumo_ray.train.config import TrainConfig
from pneumo_ray.train.features import pooled_features
from pneumo_ray.train.posterior_config import PosteriorConfig
from pneumo_ray.train.validation import calibrated

Floats = NDArray[np.float64]


def fit_posterior(config: PosteriorConfig) -> str:
    """Give a model its Laplace posterior, or take it away, or report that nothing is to be done. Needs a running Ray.

    Returns:
        The hash of the model.

    Raises:
        PneumoError: the reason in one sentence; the model is left as it was.
    """
    folder = storage.absolute(config.model)
    bundle = load_bundle(folder)
    there, default = bundle.posterior, config.posterior == "laplace"
    as_asked = there is None if config.posterior == "dropout" else there is not None and there.default == default
    if as_asked:
        log(f"{folder} has its posterior as asked; nothing to do")
        return bundle.hash
    if config.posterior == "dropout":
        return _save(folder, bundle, None)
    if there is not None:
        return _save(folder, bundle, replace(there, default=default))
    return _save(folder, bundle, _fitted(config, bundle, default))


def _fitted(config: PosteriorConfig, bundle: Bundle, default: bool) -> StoredPosterior:
    """Fit the posterior on the training images and its calibration on the validation images, in one pass over both.

    Raises:
        ConfigError: if the model was trained on another manifest.
        ManifestError: if an image can no longer be read.
        ModelError: if there is nothing to fit.
    """
    started = time.monotonic()
    images = _images_of(config, bundle)
    classifier = bundle.model.classifier
    theta = torch.cat([classifier.weight[0], classifier.bias]).detach()
    curvature = Curvature(theta.double().numpy())
    of_val: list[NDArray[np.float32]] = []
    place, beside_forward = 0, 0.0
    with progress("features of the training images", len(images.rows)) as tick:
        for pooled in pooled_features(config, bundle, images.rows, images.cache_folder):
            arrived = time.monotonic()
            # A batch may hold the last training images and the first validation images.
            inside = max(0, min(len(pooled), images.num_train - place))
            if inside:
                curvature.add(pooled[:inside], *images.learned(place, place + inside))
            of_val.append(pooled[inside:])
            place += len(pooled)
            beside_forward += time.monotonic() - arrived
            tick(len(pooled))
    arrived = time.monotonic()
    fitted = fit_laplace(curvature)
    posterior = _calibrated(bundle, fitted, images, theta, np.concatenate(of_val), default)
    beside_forward += time.monotonic() - arrived
    log(
        f"Laplace posterior of {images.num_train:,} training images: prior precision {fitted.prior_precision:.3g}, "
        f"{fitted.effective_parameters:.1f} of {len(theta):,} weights determined, validation log loss "
        f"{posterior.facts['validation']['log_loss']:.4f}; {duration(time.monotonic() - started)}, {beside_forward:.1f} s of them "
        "beside the forward passes"
    )
    return posterior


@dataclass(frozen=True)
class _Images:
    """The images that a model was trained and validated on, with the labels that it learned."""

    rows: pa.Table
    """Manifest rows: training images, then validation images."""
    num_train: int
    soft: tuple[SoftLabels, SoftLabels] | None
    """Of the training images and of the validation images; None where the model learned hard labels."""
    cache_folder: str | None

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Labels [n] of all rows, 0 or 1."""
        labels: NDArray[np.int64] = self.rows["label"].to_numpy().astype(np.int64)
        return labels

    def learned(self, first: int, end: int) -> tuple[NDArray[np.int64]] | tuple[Floats, Floats]:
        """Return what the model learned of some training images: labels, or targets and weights, each [end - first]."""
        if self.soft is None:
            return (self.labels[first:end],)
        return self.soft[0].target[first:end], self.soft[0].weight[first:end]


def _images_of(config: PosteriorConfig, bundle: Bundle) -> _Images:
    """Return the images of a model.

    Raises:
        ConfigError: if the model was trained on another manifest.
    """
    manifest, train, val = load_training_rows(config.manifest)
    trained_on = fact(bundle.provenance, "manifest", "fingerprint")
    if trained_on is not None and trained_on != fingerprint(manifest):
        raise ConfigError(
            f"--manifest {config.manifest} is not the one that {config.model} was trained on; a posterior is that of the "
            "training images, so give their manifest"
        )
    if fact(bundle.provenance, "config", "permute_labels"):
        seed = int(fact(bundle.provenance, "config", "seed") or 0)
        train, val = permute_labels(train, seed), permute_labels(val, seed)
    soft = None
    if fact(bundle.provenance, "config", "labels") == "soft":
        soft = soft_labels(train, config.manifest), soft_labels(val, config.manifest)
    rows = pa.concat_tables([train, val]).combine_chunks()
    return _Images(rows, len(train), soft, cache_of(manifest, config.manifest))


def posterior_of(config: TrainConfig, model: str) -> PosteriorConfig:
    """Return the fit of the posterior of a model that a run has trained, with what the run has.

    Args:
        config: of the run.
        model: folder of the model.
    """
    scaling = config.scaling
    scale = ScoringScale(use_gpu=scaling.use_gpu, allocator=scaling.allocator, wait_seconds=scaling.wait_seconds)
    return PosteriorConfig(model, config.manifest, config.posterior, config.amp, scale)


def _calibrated(
    bundle: Bundle,
    fitted: LaplaceFit,
    images: _Images,
    theta: torch.Tensor,
    features: NDArray[np.float32],
    default: bool,
) -> StoredPosterior:
    """Return the posterior with a calibration and a threshold, fitted on validation under the passes that scoring takes.

    Args:
        bundle: the model.
        fitted: the posterior.
        images: that it was fitted on.
        theta: the head, [K + 1].
        features: pooled, [n, K], of the validation images.
        default: see `StoredPosterior`.
    """
    labels, soft = images.labels[images.num_train :], None if images.soft is None else images.soft[1]
    factor = torch.from_numpy(fitted.factor).float()
    generator = torch.Generator().manual_seed(0)  # passes and seed as scoring has them by default
    posterior = LaplacePosterior(factor)
    passes = posterior.samples(theta, posterior.draw(DEFAULT_PASSES["head"], len(theta) - 1, generator))
    logits = torch.from_numpy(features) @ passes[:, :-1].mT + passes[:, -1]
    calibration, prob = calibrated(logits.double().numpy(), labels, soft)
    rule = fact(bundle.provenance, "config", "operating_point")
    point = choose_operating_point(prob, labels, OperatingPointConfig(**rule) if rule else OperatingPointConfig())
    metrics = json_of(classification_metrics(labels, prob, point.threshold))
    return StoredPosterior(
        factor=factor,
        prior_precision=fitted.prior_precision,
        images=images.num_train,
        temperature=calibration.temperature,
        intercept=calibration.intercept,
        operating_point=point.to_dict(),
        default=default,
        facts={
            "effective_parameters": fitted.effective_parameters,
            "log_marginal_likelihood": fitted.log_marginal_likelihood,
            "validation": metrics,
            "fitted_on": {"passes": len(passes), "seed": 0},
        },
    )


def _save(folder: str, bundle: Bundle, posterior: StoredPosterior | None) -> str:
    """Write the bundle with another posterior, or none; return its hash."""
    digest = save_bundle(
        folder,
        bundle.model,
        preprocessing=bundle.preprocessing,
        temperature=bundle.temperature,
        intercept=bundle.intercept,
        operating_point=bundle.operating_point,
        provenance=bundle.provenance,
        posterior=posterior,
    )
    default = "Laplace" if posterior is not None and posterior.default else "dropout"
    what = (
        "without a Laplace posterior"
        if posterior is None
        else f"with its Laplace posterior; scoring takes {default} by default"
    )
    log(f"wrote {folder} {what}")
    return digest
