"""The scoring job: list -> decode -> explain -> Parquet, on a laptop or a cluster, interrupted or not.

The list of images is written once. Shard k of it becomes `part-k.parquet`, written whole or not at all by the actor
that explained it. The files in the folder are the state of the job: an image cannot be scored twice or lost, even by
workers that outlive their driver, and a reader of the folder never sees half a file.
"""

import platform
import time
from importlib.metadata import version

from pneumo_ray import storage
from pneumo_ray.config import as_plain
from pneumo_ray.console import duration, log, progress
from pneumo_ray.errors import StorageError
from pneumo_ray.run_folder import RunFolder
from pneumo_ray.score.begin import Job, begin, check_method, models_of, remember_compiled, zones_of
from pneumo_ray.score.config import ExplainConfig
from pneumo_ray.score.explainer import ModelPayload
from pneumo_ray.score.foreign import ForeignSet
from pneumo_ray.score.image_list import Source, part_name
from pneumo_ray.score.model_set import ModelSet
from pneumo_ray.score.schema import MONTE_CARLO, NO_MONTE_CARLO
from pneumo_ray.score.shards import start_decoder
from pneumo_ray.score.summary import ScoreSummary, read_summary, summarise
from pneumo_ray.score.workers import SharedArguments, WorkersDiedError, plan_actors, score_shards

JOB = "_job/job.json"
"""The record of a job in the folder of its scores."""
MAX_FRUITLESS = 5
"""Consecutive deaths of workers without a new file of scores after which the job ends."""


def explain_archive(config: ExplainConfig) -> ScoreSummary:
    """Score and explain every image, or continue, or report that the job is complete. Needs a running Ray.

    Raises:
        PneumoError: the reason in one sentence; finished files are kept.
    """
    out = storage.absolute(config.out)
    start_decoder()
    models = models_of(config)
    config = config.resolved(models.site, zones_of(config, models.preprocessing), models.posterior)
    check_method(config, models)
    folder = RunFolder(out, JOB)
    with folder.held():
        return _run(config, folder, models)


def _run(config: ExplainConfig, folder: RunFolder, models: ModelSet | ForeignSet) -> ScoreSummary:
    out, model = folder.out, ModelPayload.of(models, config)
    job = begin(config, folder, model)
    source = job.source
    done = set(storage.list_files(out))
    left = _left(source, done)
    if not left and "_run.json" in done:
        summary = read_summary(out)
        log(
            f"{out} is finished: {summary.num_rows:,} rows; nothing to score (images added to the archive since need another --out)"
        )
    else:
        summary = _score(config, folder, models, job, model, left)
    if config.render:
        from pneumo_ray.score.gallery import render_top  # brings matplotlib

        for sheet in render_top(out, source, model, config):
            log(f"images {sheet}")
    return summary


def _left(source: Source, done: set[str]) -> list[int]:
    """Return the shards whose file is not there yet."""
    return [shard for shard in range(source.num_shards) if part_name(shard) not in done]


def _score(
    config: ExplainConfig,
    folder: RunFolder,
    models: ModelSet | ForeignSet,
    job: Job,
    model: ModelPayload,
    left: list[int],
) -> ScoreSummary:
    """Score the shards that are left, count all rows and write `_run.json`."""
    out, source, choice = folder.out, job.source, job.compiled
    total = sum(source.length(shard) for shard in left)
    before = source.num_images - total
    log(
        f"{source.num_images:,} images{f', {before:,} of them scored before' if before else ''}; {_method(config, models)}"
    )
    started = time.monotonic()
    finished: list[tuple[float, int]] = []
    compiled = fruitless = 0
    actors = plan_actors(config.scale)
    with progress("explaining", total) as tick:
        while left:
            arguments = SharedArguments(source, model, config, out, choice, halvings=max(0, fruitless - 1))
            before_this = len(left)
            try:
                for report in score_shards(arguments, left, actors):
                    if report.fatal is not None:
                        raise StorageError(report.fatal)
                    if choice is None:
                        choice = report.compiled
                        remember_compiled(folder, choice)
                    tick(report.num_rows)
                    compiled += report.compiled * report.num_rows
                    finished.append((time.monotonic(), report.num_rows))
                left = []
            except WorkersDiedError:
                left = _left(source, set(storage.list_files(out)))
                fruitless = fruitless + 1 if len(left) == before_this else 0
                if fruitless > MAX_FRUITLESS:
                    raise
                smaller = ", with half the batch" if fruitless > 1 else ""
                log(
                    f"a worker died; continuing with the {len(left):,} of {source.num_shards:,} files that are left{smaller}"
                )
                actors = plan_actors(config.scale)
    seconds = time.monotonic() - started
    summary = summarise(out, source, models.hash, config.config_hash)
    facts = {
        "config": as_plain(config),
        "model": models.facts(),
        "operating_point": models.operating_point,
        "config_hash": config.config_hash,
        "site_hash": None if model.facts.site is None else model.facts.site.hash,
        "monte_carlo": NO_MONTE_CARLO if config.passes == "exact" else MONTE_CARLO,
        "rows": summary.num_rows,
        "ok": summary.num_rows - summary.num_failed,
        "failed": summary.num_failed,
        "failures": summary.failures,
        "decode_notes": summary.decode_notes,
        "passed_over": dict(source.passed_over),
        "scored_in_this_run": total,
        "seconds": round(seconds, 2),
        "images_per_second": round(total / seconds, 2),
        "images_per_second_after_the_first_shard": _steady_rate(finished),
        "device": "cuda" if config.scale.use_gpu else "cpu",
        "actors": actors.count,
        "scored_by_a_compiled_network": compiled,
        "versions": {name: version(name) for name in ("pneumo_ray", "torch", "torchvision", "ray", "pyarrow", "numpy")},
        "platform": platform.platform(),
        "use": "research use only",
    }
    storage.write_json(facts, storage.join(out, "_run.json"))
    kinds = ", ".join(f"{count} {kind}" for kind, count in summary.failures.items())
    log(
        f"wrote {summary.num_rows:,} rows to {out}; {summary.num_failed:,} failed"
        f"{f' ({kinds}), see error_stage and error' if kinds else ''}; {total / seconds:,.1f} img/s, {duration(seconds)}"
    )
    return summary


def _method(config: ExplainConfig, models: ModelSet | ForeignSet) -> str:
    """Return how the images are explained, for the log."""
    if isinstance(models, ForeignSet):
        what = f"{config.passes} passes with the dropout of {models.source.factory}"
        return f"{what} by autograd, a forward and a backward pass each, which is slower than a model of jobs/train.py"
    network, count = models.first.model.config, len(models.bundles)
    what = "the Laplace posterior" if models.posterior == "laplace" else f"dropout {network.dropout:g}"
    where = network.dropout_site if models.posterior == "dropout" else "head"
    how = f"closed forms of {what}" if config.passes == "exact" else f"{config.passes} passes with {what}"
    of = f"{how} at the {where} of {f'each of {count} ' if count > 1 else ''}{network.arch}"
    return of if config.maps == "last" else f"{of}, maps divided among the cells of the stage before"


def _steady_rate(finished: list[tuple[float, int]]) -> float | None:
    """Return images per second from the end of the first shard to that of the last, without start-up."""
    if len(finished) < 2:
        return None
    seconds = finished[-1][0] - finished[0][0]
    return round(sum(rows for _, rows in finished[1:]) / seconds, 2) if seconds > 0 else None
