"""The scoring job: list -> decode -> explain -> Parquet, on a laptop or a cluster, interrupted or not.

The list of pictures is written once. Shard k of it becomes `part-k.parquet`, written whole or not at all by the actor
that explained it, so what is done is what lies in the folder: a picture cannot be scored twice or lost, not even by
workers that outlive their driver, and whoever reads the folder while the job runs never meets half a file.
"""

import json
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import ray.data
import torch
from torch.utils.flop_counter import FlopCounterMode

from pneumo_ray import storage
from pneumo_ray.cli import as_plain
from pneumo_ray.console import duration, progress, say
from pneumo_ray.data.manifest import fingerprint, read_manifest
from pneumo_ray.errors import ClusterError, ConfigError, PneumoError, StorageError
from pneumo_ray.model import Bundle, load_bundle
from pneumo_ray.score.config import ExplainConfig
from pneumo_ray.score.explainer import take_apart
from pneumo_ray.score.gallery import render_top
from pneumo_ray.score.lock import folder_lock
from pneumo_ray.score.source import Source, list_pictures, open_source, take_manifest
from pneumo_ray.score.workers import ActorPlan, Plan, part_name, score_shards

WORTH_COMPILING = {"cpu": 1e13, "cuda": 1e15}
"""Floating-point operations of a job from which on the seconds that compiling takes come back."""


@dataclass(frozen=True)
class ScoreSummary:
    """What a finished job is."""

    out: str
    num_rows: int
    num_failed: int
    failures: dict[str, int]
    """How many failed, by `stage: kind`."""


def explain_archive(config: ExplainConfig) -> ScoreSummary:
    """Score and explain every picture, or continue, or find that all is done. Needs a running Ray.

    Raises:
        PneumoError: one sentence about what cannot work; what was scored before stays.
    """
    out = storage.absolute(config.out)
    bundle = load_bundle(storage.absolute(config.model))
    storage.require_writable(out)
    with folder_lock(storage.join(out, "_job", "lock.json")):
        return _run(config, out, bundle)


def _run(config: ExplainConfig, out: str, bundle: Bundle) -> ScoreSummary:
    source = _source(config, out, bundle)
    done = set(storage.list_files(out))
    left = [shard for shard in range(source.num_shards) if part_name(shard) not in done]
    drawn = not config.render or storage.exists(storage.join(out, "pictures", "index.csv"))
    if not left and "_run.json" in done:
        summary = _read_summary(out)
        rest = "its pictures follow" if not drawn else "nothing to do (choose another --out to score the archive again)"
        say(f"{out} is finished: {summary.num_rows:,} rows; {rest}")
    else:
        summary = _score(config, out, bundle, source, left)
    if not drawn:
        for sheet in render_top(out, source, take_apart(bundle, config), config):
            say(f"pictures {sheet}")
    return summary


def _score(config: ExplainConfig, out: str, bundle: Bundle, source: Source, left: list[int]) -> ScoreSummary:
    """Score the shards that are left, count all rows and write `_run.json`."""
    total = sum(source.length(shard) for shard in left)
    before = source.num_pictures - total
    model = bundle.model.config
    say(
        f"{source.num_pictures:,} pictures{f', {before:,} of them scored before' if before else ''}; "
        f"{config.passes} passes with dropout {model.dropout:g} at the {model.dropout_site} of {model.arch}"
    )
    started = time.monotonic()
    actors = plan_actors(config)
    compiled = _compile(config, bundle, total)
    if compiled:
        say("the network is compiled first, which takes a while and comes back")
    if left:
        plan = Plan(source, take_apart(bundle, config), config, out, compiled)
        with progress("explaining", total) as tick:
            for report in score_shards(plan, left, actors):
                if report.fatal is not None:
                    raise StorageError(report.fatal)
                tick(report.num_rows)
    seconds = time.monotonic() - started
    summary = _summarise(out, source)
    facts = {
        "config": as_plain(config),
        "model": {"hash": bundle.hash, "architecture": model.arch, "temperature": bundle.temperature},
        "operating_point": bundle.operating_point,
        "config_hash": config.config_hash,
        "monte_carlo": "standard error of a mean over the passes: std / sqrt(passes)",
        "rows": summary.num_rows,
        "ok": summary.num_rows - summary.num_failed,
        "failed": summary.num_failed,
        "failures": summary.failures,
        "scored_in_this_run": total,
        "seconds": round(seconds, 2),
        "images_per_second": round(total / seconds, 2),
        "device": "cuda" if config.scale.use_gpu else "cpu",
        "actors": actors.count,
        "compiled": compiled,
        "versions": {name: version(name) for name in ("pneumo_ray", "torch", "torchvision", "ray", "pyarrow", "numpy")},
        "platform": platform.platform(),
        "use": "research use only",
    }
    storage.write_bytes(storage.join(out, "_run.json"), (json.dumps(facts, indent=2) + "\n").encode())
    kinds = ", ".join(f"{count} {kind}" for kind, count in summary.failures.items())
    say(
        f"wrote {summary.num_rows:,} rows to {out}; {summary.num_failed:,} failed"
        f"{f' ({kinds}), see error_stage and error' if kinds else ''}; {total / seconds:,.1f} img/s, {duration(seconds)}"
    )
    return summary


def plan_actors(config: ExplainConfig) -> ActorPlan:
    """Choose how many processes hold the model, with how many threads, and what is left to decode.

    Raises:
        ClusterError: if the cluster has fewer GPUs than are asked for, or a single CPU.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = [node.get("CPU", 0.0) for node in nodes if node.get("CPU", 0.0) >= 1]
    # Ray Data makes no progress, silently, unless it is left one whole CPU.
    if sum(cpus) < 2:
        raise ClusterError(f"scoring needs at least 2 CPUs, one of them to decode; the cluster has {sum(cpus):g}")
    if config.scale.use_gpu:
        gpus = int(sum(node.get("GPU", 0.0) for node in nodes))
        count = config.scale.num_actors or gpus
        if not 0 < count <= gpus:
            raise ClusterError(
                f"the cluster has {gpus} GPUs where the job needs {max(count, 1)}; ask for fewer --scale.num-actors"
            )
        reserved = min(1.0, (sum(cpus) - 1) / count)
        return ActorPlan(count, reserved, 1, 1)
    count = config.scale.num_actors or sum(max(1, int(number // 8)) for number in cpus)
    per_node = -(-count // len(cpus))
    threads = max(1, int(min(cpus) // per_node))
    reserved = min(max(0.5, 0.75 * threads), (sum(cpus) - 1) / count)
    if reserved * per_node > min(cpus) or reserved < 0.05:
        raise ClusterError(f"{count} actors do not fit on {sum(cpus):g} CPUs; ask for fewer --scale.num-actors")
    return ActorPlan(count, reserved, 0, threads)


def _compile(config: ExplainConfig, bundle: Bundle, pictures: int) -> bool:
    if config.scale.compile != "auto":
        return config.scale.compile == "on"
    if bundle.model.config.dropout_site == "tail":
        return False
    size = bundle.preprocessing.image_size
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        bundle.model.feature_maps(torch.zeros(1, 3, size, size))
    return bool(pictures * counter.get_total_flops() > WORTH_COMPILING["cuda" if config.scale.use_gpu else "cpu"])


def _source(config: ExplainConfig, out: str, bundle: Bundle) -> Source:
    """Return the list of pictures, made now or by the run that this one continues.

    Raises:
        ConfigError: if the folder holds the scores of another model, config or archive.
    """
    if config.manifest is not None:
        pictures: Any = fingerprint(read_manifest(storage.absolute(config.manifest)))
    else:
        pictures = [storage.absolute(archive) for archive in config.archive]
    job = {"model": bundle.hash, "config": config.config_hash, "method": config.method, "pictures": pictures}
    about, listed = (storage.join(out, "_job", name) for name in ("job.json", "pictures.parquet"))
    if storage.exists(about) and storage.exists(listed):
        before = json.loads(storage.read_bytes(about))
        for key, what in (("model", "another model"), ("pictures", "another archive or manifest")):
            if before[key] != job[key]:
                raise ConfigError(f"{out} holds the scores of {what}; choose another --out")
        if before["config"] != job["config"]:
            name = next(name for name in config.method if before["method"].get(name) != config.method[name])
            raise ConfigError(
                f"{out} was begun with {name} {before['method'].get(name)} and not {config.method[name]}; choose another --out, or repeat its command to continue it"
            )
        return open_source(listed)
    if any(name.endswith(".parquet") for name in storage.list_files(out)):
        raise ConfigError(f"{out} holds Parquet files of something else; choose another --out")
    if config.manifest is not None:
        source = take_manifest(config.manifest, listed, bundle.preprocessing if config.zones == "box" else None)
    else:
        source = list_pictures(config.archive, listed)
    storage.write_bytes(about, (json.dumps(job, indent=2) + "\n").encode())
    return source


def _summarise(out: str, source: Source) -> ScoreSummary:
    """Count the rows of every shard, which must be those of the list.

    Raises:
        PneumoError: if rows are missing.
    """
    failures: dict[str, int] = {}
    rows = 0
    for shard in range(source.num_shards):
        fs, path = storage.filesystem(storage.join(out, part_name(shard)))
        with fs.open_input_file(path) as file:
            table = pq.read_table(file, columns=["error_stage", "error"])
        if len(table) != source.length(shard):
            raise PneumoError(
                f"{part_name(shard)} in {out} has {len(table)} rows instead of {source.length(shard)}; remove it and repeat the command"
            )
        rows += len(table)
        failed = table.filter(pc.is_valid(table["error_stage"]))
        for stage, error in zip(*(failed[name].to_pylist() for name in ("error_stage", "error")), strict=True):
            kind = f"{stage}: {error.split(':', 1)[0]}"
            failures[kind] = failures.get(kind, 0) + 1
    return ScoreSummary(out, rows, sum(failures.values()), dict(sorted(failures.items(), key=lambda item: -item[1])))


def _read_summary(out: str) -> ScoreSummary:
    facts = json.loads(storage.read_bytes(storage.join(out, "_run.json")))
    return ScoreSummary(out, facts["rows"], facts["failed"], facts["failures"])
