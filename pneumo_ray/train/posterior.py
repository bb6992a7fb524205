"""Fit the Laplace posterior of a finished model: one pass of Ray Data over its training images, as they are, and a sum.

Actors with the model return pooled features, K numbers an image, in the order of the manifest and in batches that do not
depend on the workers; the sum of outer products is made where they arrive, so that no matrix travels and any number of
workers gives the same result.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray

from pneumo_ray import storage
from pneumo_ray.console import duration, log, progress
from pneumo_ray.data.dataset import load_inputs
from pneumo_ray.data.manifest import fingerprint
from pneumo_ray.data.prepare import cache_of, load_training_rows
from pneumo_ray.data.soft_labels import SoftLabels, soft_labels
from pneumo_ray.data.split import permute_labels
from pneumo_ray.errors import ConfigError, ManifestError, PneumoError
from pneumo_ray.evaluate.config import OperatingPointConfig
from pneumo_ray.evaluate.metrics import classification_metrics
from pneumo_ray.evaluate.operating_point import choose_operating_point
from pneumo_ray.evaluate.scores import fact
from pneumo_ray.explain.laplace import Curvature, LaplaceFit, fit_laplace
from pneumo_ray.explain.masks import DEFAULT_PASSES
from pneumo_ray.explain.posterior import LaplacePosterior
from pneumo_ray.model import Bundle, ModelConfig, Preprocessing, load_bundle, save_bundle
from pneumo_ray.model.network import restored
from pneumo_ray.model.precision import amp_dtype, autocast
from pneumo_ray.model.stored_posterior import StoredPosterior
from pneumo_ray.ray_cluster import Shared, fetch_once, map_actors, range_dataset
from pneumo_ray.records import json_of
from pneumo_ray.score.config import ScoringScale
from pneumo_ray.score.workers import collected, decoding_cpus, environment_of, plan_actors, worker_device
from pneumo_ray.train.config import TrainConfig
from pneumo_ray.train.posterior_config import PosteriorConfig
from pneumo_ray.train.validation import calibrated

Floats = NDArray[np.float64]

BATCH_SIZE = 64
"""Images of one forward pass, unless asked otherwise. Where batches begin does not depend on the workers."""


@dataclass(frozen=True)
class _SharedArguments:
    """Arguments shared by all workers."""

    rows: pa.Table
    """Training images, then validation images."""
    cache_folder: str | None
    config: PosteriorConfig
    model: ModelConfig
    weights: dict[str, NDArray[Any]]
    preprocessing: Preprocessing


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
        for pooled in _features(config, bundle, images.rows, images.cache_folder):
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
    scale = ScoringScale(use_gpu=config.scaling.use_gpu, wait_seconds=config.scaling.wait_seconds)
    return PosteriorConfig(model, config.manifest, config.posterior, config.amp, scale)


def _features(
    config: PosteriorConfig, bundle: Bundle, rows: pa.Table, cache_folder: str | None
) -> Iterator[NDArray[np.float32]]:
    """Yield the pooled features of manifest rows, float32 [n, K], in order.

    Raises:
        ManifestError: naming a file that can no longer be read.
    """
    wanted = [name for name in rows.column_names if name not in ("label", "patient_id", "subtype")]
    weights = {name: tensor.numpy() for name, tensor in bundle.model.state_dict().items()}
    arguments = _SharedArguments(
        rows.select(wanted), cache_folder, config, bundle.model.config, weights, bundle.preprocessing
    )
    actors = plan_actors(config.scale)
    shared = ray.put(arguments)
    blocks = -(-len(rows) // (config.scale.batch_size or BATCH_SIZE))
    dataset = range_dataset(blocks, partial(_load, shared=shared), decoding_cpus(actors))
    dataset.context.target_max_block_size = None  # a block is one batch
    dataset.context.execution_options.preserve_order = True
    environment = environment_of(config.scale)
    for table in collected(map_actors(_FeatureActor, dataset, (shared, actors.threads), actors, environment)):
        for row in table.to_pylist():
            if row["error"] is not None:
                raise ManifestError(row["error"])
            yield np.frombuffer(row["features"], np.float32).reshape(row["images"], -1)


def _load(batch: dict[str, np.ndarray], shared: Shared) -> Iterator[pa.Table]:
    cv2.setNumThreads(1)
    arguments: _SharedArguments = fetch_once(shared)
    seen, size = arguments.preprocessing, arguments.config.scale.batch_size or BATCH_SIZE
    for block in batch["id"]:
        rows = arguments.rows.slice(int(block) * size, size)
        pixels, error = None, None
        try:
            inputs = load_inputs(rows, seen.image_size, arguments.cache_folder, seen.fit, seen.margin)
            pixels = inputs.tobytes()
        except PneumoError as reason:  # Ray would wrap an exception in its own text
            error = str(reason)
        yield pa.table(
            {
                "images": pa.array([len(rows)]),
                "pixels": pa.array([pixels], pa.large_binary()),
                "error": pa.array([error], pa.string()),
            }
        )


class _FeatureActor:
    """Actor with the model; turns images into pooled features."""

    def __init__(self, shared: Shared, threads: int) -> None:
        arguments: _SharedArguments = ray.get(shared)
        self._preprocessing = arguments.preprocessing
        self._device = worker_device(threads, use_gpu=arguments.config.scale.use_gpu)
        self._net = restored(arguments.model, arguments.weights, self._device)
        self._dtype = amp_dtype(arguments.config.amp, self._device)

    @torch.inference_mode()
    def __call__(self, block: pa.Table) -> pa.Table:
        size = self._preprocessing.image_size
        made: list[bytes | None] = []
        for row in block.to_pylist():
            if row["pixels"] is None:
                made.append(None)
                continue
            pixels = np.frombuffer(row["pixels"], np.uint8).reshape(row["images"], size, size)
            grey = torch.from_numpy(pixels.copy()).to(self._device)
            with autocast(self._dtype, self._device):
                maps = self._net.feature_maps(self._preprocessing.normalise(grey, channels_last=True))
            made.append(maps.float().mean((2, 3)).cpu().numpy().tobytes())
        columns = {"images": block["images"], "features": pa.array(made, pa.large_binary()), "error": block["error"]}
        return pa.table(columns)


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
