"""Pooled features of the images of a manifest: one pass of Ray Data through a finished network, without its head.

Actors with the model return K numbers per image, in the order of the manifest and in batches that do not depend on the workers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray

from pneumo_ray.data.dataset import load_inputs
from pneumo_ray.errors import ManifestError, PneumoError
from pneumo_ray.model import Bundle, ModelConfig, Preprocessing
from pneumo_ray.model.network import restored
from pneumo_ray.model.precision import amp_dtype, autocast
from pneumo_ray.ray_cluster import Shared, fetch_once, map_actors, range_dataset
from pneumo_ray.score.workers import collected, decoding_cpus, environment_of, plan_actors, worker_device
from pneumo_ray.train.posterior_config import PosteriorConfig

BATCH_SIZE = 64
"""Images of one forward pass, unless asked otherwise. Where batches begin does not depend on the workers."""


@dataclass(frozen=True)
class _SharedArguments:
    """Arguments shared by all workers."""

    rows: pa.Table
    cache_folder: str | None
    config: PosteriorConfig
    model: ModelConfig
    weights: dict[str, NDArray[Any]]
    preprocessing: Preprocessing


def pooled_features(
    config: PosteriorConfig, bundle: Bundle, rows: pa.Table, cache_folder: str | None
) -> Iterator[NDArray[np.float32]]:
    """Yield the pooled features of manifest rows, float32 [n, K] per batch, in order.

    Args:
        config: resources and mixed precision.
        bundle: the model.
        rows: readable rows, whose images are taken as they are, without augmentation.
        cache_folder: of the manifest; None decodes the files.

    Raises:
        ManifestError: naming a file that can no longer be read.
    """
    wanted = [name for name in rows.column_names if name not in ("label", "patient_id", "subtype")]  # for workers
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
