"""Probabilities that a trial gives to labelled images that it has not trained on."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pneumo_ray import storage
from pneumo_ray.data.dataset import load_inputs
from pneumo_ray.data.manifest import usable
from pneumo_ray.data.prepare import cache_of, load_training_rows
from pneumo_ray.explain import BayesGradCAM, Explanation
from pneumo_ray.model import load_bundle
from pneumo_ray.train.config import TrainConfig

HELD_OUT = "held_out.parquet"
"""Name of the table in a trial's folder: image_id, and prob, the calibrated probability of pneumonia."""


def explain_rows(
    config: TrainConfig, model: str, manifest: pa.Table, rows: pa.Table, own_device: bool
) -> Iterator[Explanation]:
    """Yield the explanations of manifest rows, a batch at a time, with the passes and the calibration of jobs/explain.py.

    Args:
        config: of the trial.
        model: folder of its bundle, which holds the weights of its best epoch.
        manifest: that the rows are of, for its cache.
        rows: to explain.
        own_device: whether this process reserved the training device; otherwise it computes on the CPU.
    """
    device = torch.device("cuda" if own_device and config.scaling.use_gpu else "cpu")
    bundle = load_bundle(model)
    engine = BayesGradCAM(
        bundle.model.to(device), None, config.seed, temperature=bundle.temperature, intercept=bundle.intercept
    )
    cache, seen = cache_of(manifest, config.manifest), bundle.preprocessing
    for start in range(0, len(rows), config.batch_size):
        taken = rows.slice(start, config.batch_size)
        grey = torch.from_numpy(load_inputs(taken, seen.image_size, cache, seen.fit, seen.margin)).to(device)
        yield engine(seen.normalise(grey))


def write_held_out(config: TrainConfig, model: str, own_device: bool) -> None:
    """Write `HELD_OUT`: of every readable, labelled image that did not train, of whatever split; arguments as `explain_rows`."""
    manifest, _, _ = load_training_rows(config.manifest)
    labelled = usable(manifest)
    rows = labelled.filter(pc.invert(pc.fill_null(pc.equal(labelled["split"], "train"), False))).combine_chunks()
    prob = [part.prob_mean.cpu().numpy() for part in explain_rows(config, model, manifest, rows, own_device)]
    table = pa.table({"image_id": rows["image_id"], "prob": np.concatenate(prob).astype(np.float64)})
    storage.write_table(table, storage.join(config.out, HELD_OUT))
