"""The publication of scores: rows -> objects -> a folder or a PACS, in several processes.

What is there is not made again: every object has a UID that follows from its source, its model and its config. So the same
command continues an interrupted publication, and a second one changes nothing.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from datetime import datetime
from multiprocessing.connection import wait
from typing import Any

import cv2
import pyarrow as pa
import pyarrow.parquet as pq

from pneumo_ray import storage
from pneumo_ray.allocator import keep_freed_memory
from pneumo_ray.config import save_config
from pneumo_ray.console import log, progress
from pneumo_ray.dicomweb.server import server_of
from pneumo_ray.errors import ConfigError, ManifestError, StorageError
from pneumo_ray.evaluate.scores import fact, read_run
from pneumo_ray.explain.case import WHOLE, Window
from pneumo_ray.images.framing import Shape
from pneumo_ray.pacs.batch import NO_DICOM, OTHERS, Outcome, Plan, Publisher
from pneumo_ray.pacs.config import PublishConfig
from pneumo_ray.pacs.ledger import map_file, map_folder
from pneumo_ray.pacs.objects import OF_KIND
from pneumo_ray.pacs.outlets import Folder, Outlet, Pacs
from pneumo_ray.pacs.result import Algorithm, Part
from pneumo_ray.pacs.rows import Facts
from pneumo_ray.records import JsonObject
from pneumo_ray.run_folder import RunFolder
from pneumo_ray.score.image_list import Source, open_source, part_name

_ROWS = 32
"""Rows that a process publishes at a time."""


def publish(config: PublishConfig) -> Outcome:
    """Publish the results of scored DICOM images, or count what would be.

    Raises:
        PneumoError: the reason in one sentence; what was published stays.
    """
    scores = storage.absolute(config.scores)
    source, facts, run = _opened(config, scores)
    parts: tuple[Part, ...] = tuple(part for kind in OF_KIND if kind in config.kinds for part in OF_KIND[kind])
    algorithm = _algorithm(run, facts, scores, tuple(part for part in parts if part != "sr"))
    with _outlet(config, facts) as outlet:
        plan = Plan(facts, algorithm, parts, outlet, config.include_doubtful, config.beside, config.dry_run)
        if not config.dry_run:
            folder = scores if config.out is None else storage.absolute(config.out)
            save_config(config, storage.join(folder, "_publish", "publish.json"))
        outcome = _published(plan, source, scores, config)
    _tell(outcome, config)
    return outcome


def _opened(config: PublishConfig, scores: str) -> tuple[Source, Facts, JsonObject]:
    """Return the list of the scored images, what the rows share, and `_run.json`.

    Raises:
        PneumoError: if the scores are not there, not finished, or of another model.
    """
    from pneumo_ray.score.model_set import load_models  # brings torch

    models = load_models(config.model)
    if not storage.exists(storage.join(scores, "_run.json")):
        raise ManifestError(
            f"--scores {config.scores} are not there or not finished; repeat the command of jobs/explain.py"
        )
    run = read_run(scores)
    if (made_by := fact(run, "model", "hash")) != models.hash:
        raise ConfigError(
            f"--scores {config.scores} are those of another model (hash {str(made_by)[:12]}, and --model has {models.hash[:12]}); "
            "give the model that made them"
        )
    source = open_source(storage.join(scores, "_job", "pictures.parquet"), models.preprocessing.image_size)
    whole: Window = WHOLE
    if models.preprocessing.fit == "squash":
        from pneumo_ray.score.frame import input_window

        whole = input_window(models.preprocessing, Shape(1, 1), None, models.preprocessing.resize_size)
    facts = Facts.of(_metadata(storage.join(scores, part_name(0))), whole)
    if facts is None or facts.model_hash != models.hash:
        raise ManifestError(f"--scores {config.scores} are not those of jobs/explain.py, or of several jobs")
    return source, facts, run


def _algorithm(run: JsonObject, facts: Facts, scores: str, explanations: tuple[Part, ...]) -> Algorithm:
    named = ("posterior", "passes", "seed", "target", "zones", "refer_z")
    parameters = [f"{name} = {value}" for name in named if (value := fact(run, "config", name)) is not None]
    if fact(run, "config", "maps") == "fused":  # maps of the last stage are not named, as before there were others
        parameters.append("maps = fused")
    parameters += [f"temperature = {facts.temperature!r}", f"intercept = {facts.intercept!r}"]
    if site := fact(run, "site_hash"):
        parameters.append(f"site_hash = {site}")
    fs, path = storage.filesystem(storage.join(scores, "_run.json"))
    made: datetime = fs.get_file_info(path).mtime
    return Algorithm(
        str(fact(run, "model", "architecture")),
        str(fact(run, "versions", "pneumo_ray")),
        facts.model_hash,
        facts.config_hash,
        tuple(parameters),
        explanations,
        made.astimezone().replace(tzinfo=None, microsecond=0),
    )


@contextmanager
def _outlet(config: PublishConfig, facts: Facts) -> Iterator[Outlet]:
    """Yield where the objects go; a folder is held against other jobs, and refused if it holds results of another config."""
    if config.to is not None:
        server, rest = server_of(config.to)
        if rest:
            raise ConfigError(f"--to {config.to.partition('?')[0]} has a query, and results are stored without one")
        yield Pacs(server)
        return
    folder = Folder(storage.absolute(config.out or ""))
    record = RunFolder(folder.uri, "_publish/job.json")
    now = {"model": facts.model_hash, "config": facts.config_hash}
    before = record.read(now.keys())
    if before is not None and not config.beside:
        record.refuse_other("the results of another model", before["model"], now["model"])
        record.refuse_other("the results of another config of scoring", before["config"], now["config"])
    if config.dry_run:
        yield folder
        return
    folder.prepare()
    with record.held():
        record.write(now)
        yield folder


def _published(plan: Plan, source: Source, scores: str, config: PublishConfig) -> Outcome:
    outcome = Outcome()
    where = map_folder(config, scores)
    title = "counting" if config.dry_run else "publishing"
    with map_file(None if config.dry_run else where) as rows, progress(title, source.num_images) as tick:
        for done, count in _batches(plan, source, scores, config.num_workers):
            outcome.add(done)
            rows.writerows(done.map)
            tick(count)
    return outcome


def _batches(plan: Plan, source: Source, scores: str, num_workers: int) -> Iterator[tuple[Outcome, int]]:
    """Yield what became of each batch of rows, in order, and its length; a few batches are worked on at a time."""
    tasks = (
        (shard, start, min(_ROWS, source.length(shard) - start))
        for shard in range(source.num_shards)
        for start in range(0, source.length(shard), _ROWS)
    )
    workers = min(num_workers or len(os.sched_getaffinity(0)), -(-source.num_images // _ROWS))
    if workers <= 1:
        _begin(plan, source, scores)
        yield from ((_publish(*task), task[2]) for task in tasks)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may deadlock
    pool = ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(plan, source, scores))
    waiting: deque[tuple[Future[Outcome], int]] = deque()
    try:
        for task in tasks:
            waiting.append((pool.submit(_publish, *task), task[2]))
            if len(waiting) > 2 * workers:
                future, count = waiting.popleft()
                yield future.result(), count
        while waiting:
            future, count = waiting.popleft()
            yield future.result(), count
    except BrokenProcessPool as error:
        raise StorageError(
            "a process that makes the objects died, most likely of memory; the same command with a smaller --num-workers continues"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


class _Reader:
    """Reads the rows of the scores and of their list, a shard at a time."""

    def __init__(self, plan: Plan, source: Source, scores: str) -> None:
        self._facts, self._source, self._scores = plan.facts, source, scores
        self._shard, self._tables = -1, (pa.table({}), pa.table({}))

    def rows(self, shard: int, start: int, count: int) -> tuple[pa.Table, pa.Table]:
        """Return rows of a shard: of the scores, and of the list.

        Raises:
            StorageError: if the two are not of one job.
        """
        if shard != self._shard:
            scored, listed = storage.read_table(storage.join(self._scores, part_name(shard))), self._source.read(shard)
            if Facts.of(scored.schema.metadata, self._facts.whole) != self._facts or len(scored) != len(listed):
                raise StorageError(f"shard {shard} of the scores is of another job; score again into another --out")
            self._shard, self._tables = shard, (scored, listed)
        scored, listed = self._tables
        return scored.slice(start, count), listed.slice(start, count)


_state: dict[str, Any] = {}
"""Of a process: what it reads and publishes with."""


def _begin(plan: Plan, source: Source, scores: str) -> None:
    _state.update(publisher=Publisher(plan), reader=_Reader(plan, source, scores))


def _begin_worker(plan: Plan, source: Source, scores: str) -> None:
    cv2.setNumThreads(1)
    keep_freed_memory()
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)  # a pool does not see that the process that fills it was killed

    threading.Thread(target=end_with_parent, daemon=True).start()
    _begin(plan, source, scores)


def _publish(shard: int, start: int, count: int) -> Outcome:
    outcome: Outcome = _state["publisher"].publish(*_state["reader"].rows(shard, start, count))
    return outcome


def _metadata(uri: str) -> dict[bytes, bytes] | None:
    fs, path = storage.filesystem(uri)
    try:
        with fs.open_input_file(path) as file:
            metadata: dict[bytes, bytes] | None = pq.read_schema(file).metadata
            return metadata
    except (OSError, pa.ArrowException):
        return None


def _tell(outcome: Outcome, config: PublishConfig) -> None:
    """Log the counts.

    Raises:
        PneumoError: if there is nothing to publish, or something could not be.
    """
    reasons = [f"{count:,} {reason}" for reason, count in sorted(outcome.left_out.items())]
    left_out = f"; left out: {', '.join(reasons)}" if reasons else ""
    verb = "would publish" if config.dry_run else "published"
    place = (config.to or "").partition("?")[0] or config.out
    log(
        f"{verb} {outcome.made:,} objects of {outcome.images:,} images to {place}, {outcome.present:,} were there{left_out}"
    )
    others, foreign = outcome.left_out[OTHERS], outcome.left_out[NO_DICOM]
    if outcome.errors:
        words = ", ".join(f"{count:,} {reason}" for reason, count in outcome.errors.most_common(5))
        raise StorageError(
            f"{outcome.errors.total():,} results could not be published ({words}); the same command tries again"
        )
    if others:
        raise ConfigError(
            f"{others:,} images have results of another model or config in their study; remove those, or add --beside to publish "
            "beside them"
        )
    if foreign and not outcome.images:
        raise ConfigError(
            f"--scores {config.scores} are of images that are no DICOM, and only those of DICOM images can be published"
        )
