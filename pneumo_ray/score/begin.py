"""The beginning of a job, which all its runs share: which pictures, which model, which method, compiled or not.

What is decided here is written down before the first picture is scored, so that a run that continues decides nothing
anew and a folder never holds the scores of two jobs.
"""

import json
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch.utils.flop_counter import FlopCounterMode

from pneumo_ray import storage
from pneumo_ray.config import save_config
from pneumo_ray.errors import ConfigError, StorageError
from pneumo_ray.explain import BayesGradCAM
from pneumo_ray.model import Bundle
from pneumo_ray.score.config import ExplainConfig
from pneumo_ray.score.image_list import (
    Source,
    list_fingerprint,
    list_pictures,
    manifest_pictures,
    open_source,
    write_list,
)

WORTH_COMPILING = {"cpu": 1e13, "cuda": 1e15}
"""Floating-point operations of a job from which on the seconds that compiling takes come back."""


@dataclass(frozen=True)
class Job:
    """What all runs of a job share."""

    source: Source
    compiled: bool


def check_method(config: ExplainConfig, bundle: Bundle) -> None:
    """Refuse what no actor could do, before anything is written.

    Raises:
        ModelError: if the model has no dropout to sample.
        ConfigError: if float16 is asked for on a CPU.
    """
    BayesGradCAM(bundle.model, config.passes, config.seed)
    if config.amp == "fp16" and not config.scale.use_gpu:
        raise ConfigError("--amp fp16 needs --scale.use-gpu; use bf16, auto or off")


def begin(config: ExplainConfig, out: str, bundle: Bundle) -> Job:
    """Return the job that the folder holds, or begin it.

    Raises:
        ConfigError: if the folder holds the scores of another model, config or archive.
        PneumoError: if the pictures cannot be listed.
    """
    size = bundle.preprocessing.image_size
    listed = None
    pictures: Any = [storage.absolute(archive) for archive in config.archive]
    if config.manifest is not None:
        listed = manifest_pictures(config.manifest, bundle.preprocessing, boxes=config.zones == "box")
        pictures = list_fingerprint(listed)
    about, names = (storage.join(out, "_job", name) for name in ("job.json", "pictures.parquet"))
    # The list is written before job.json: where that is, both are whole.
    if storage.exists(about):
        before = _read_job(about)
        _check_same(config, out, before, {"model": bundle.hash, "pictures": pictures})
        return Job(open_source(names, size), bool(before["compiled"]))
    if any(name.endswith(".parquet") for name in storage.list_files(out)):
        raise ConfigError(f"{out} holds Parquet files of something else; choose another --out")
    source = list_pictures(config.archive, names, size) if listed is None else write_list(listed, names, size)
    _check_shared(names)
    compiled = worth_compiling(config, bundle, source.num_pictures)
    job = {
        "model": bundle.hash,
        "pictures": pictures,
        "config": config.config_hash,
        "method": config.method,
        "compiled": compiled,
    }
    save_config(config, storage.join(out, "explain.json"))
    storage.write_json(job, about)
    return Job(source, compiled)


def _read_job(uri: str) -> dict[str, Any]:
    try:
        before: dict[str, Any] = json.loads(storage.read_bytes(uri))
        if {"model", "pictures", "config", "method", "compiled"} <= before.keys():
            return before
    except (OSError, ValueError, AttributeError):
        pass
    raise StorageError(f"{uri} is damaged, so nobody can say whose scores these are; choose another --out")


def _check_same(config: ExplainConfig, out: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    for key, what in (("model", "another model"), ("pictures", "another archive or manifest")):
        if before[key] != now[key]:
            raise ConfigError(f"{out} holds the scores of {what}; choose another --out")
    if before["config"] != config.config_hash:
        different = (
            f"{name} {before['method'].get(name)} and not {value}"
            for name, value in config.method.items()
            if before["method"].get(name) != value
        )
        what = next(different, "other options of another version")
        raise ConfigError(f"{out} was begun with {what}; choose another --out, or repeat its command to continue it")


def _check_shared(uri: str) -> None:
    """Refuse a local folder that some node of the cluster does not see.

    Raises:
        StorageError: if there is one.
    """
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2 or not storage.is_local(uri):
        return
    look = ray.remote(num_cpus=0)(storage.exists)
    seen = ray.get(
        [look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(n, soft=False)).remote(uri) for n in nodes]
    )
    if not all(seen):
        raise StorageError(
            f"{seen.count(False)} of {len(nodes)} nodes do not see {uri}; --out must be a folder that all nodes share, or a URI such as s3://"
        )


def worth_compiling(config: ExplainConfig, bundle: Bundle, pictures: int) -> bool:
    """Whether the trunk is to be compiled for so many pictures."""
    if config.scale.compile == "off" or bundle.model.config.dropout_site == "tail":
        return False
    if config.scale.compile == "on":
        return True
    size = bundle.preprocessing.image_size
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        bundle.model.feature_maps(torch.zeros(1, 3, size, size))
    return bool(pictures * counter.get_total_flops() > WORTH_COMPILING["cuda" if config.scale.use_gpu else "cpu"])
