"""Run a study with Ray Tune: the remaining trials, as many at once as fit on the cluster, then the tables.

The list of trials is fixed and every finished trial has a record in its folder. So the remaining trials are
those without a record, and Ray Tune's own state, which is pickled, is never read.
"""

import logging
import time
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace

from ray import tune
from ray.exceptions import OutOfMemoryError
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from pneumo_ray import storage
from pneumo_ray.config import as_plain, flatten
from pneumo_ray.console import log
from pneumo_ray.cpu_shares import TrialShares, share_trials
from pneumo_ray.data.folds import assign_folds
from pneumo_ray.data.manifest import fingerprint, read_manifest, refuse_leakage
from pneumo_ray.data.prepare import cached_manifest, load_training_rows
from pneumo_ray.errors import ClusterError, PneumoError, StudyFailedError
from pneumo_ray.model import build_model
from pneumo_ray.ray_cluster import compute_environment, living_nodes, trials_started_with
from pneumo_ray.records import JsonObject
from pneumo_ray.run_folder import RunFolder
from pneumo_ray.train.config import TrainConfig
from pneumo_ray.train.launch import NOT_PART_OF_THE_RUN
from pneumo_ray.train.validation import SELECTED_BY
from pneumo_ray.tune.board import Board
from pneumo_ray.tune.config import StudyConfig
from pneumo_ray.tune.doubt import write_doubt, write_folds
from pneumo_ray.tune.records import TrialRecord, read_record
from pneumo_ray.tune.results import write_results
from pneumo_ray.tune.study import Study, Trial, configure, plan
from pneumo_ray.tune.trial import TrialJob, TrialRunner, record_trial


class Halving(ASHAScheduler):
    """Asynchronous successive halving (arXiv 1810.05934) that records the trials that it stopped."""

    def __init__(self, epochs: int) -> None:
        # At `max_t` a trial ends with its last report, before it has written its model.
        super().__init__(
            time_attr="epoch",
            metric=SELECTED_BY,
            mode="min",
            max_t=epochs + 1,
            grace_period=max(1, min(3, epochs // 3)),
            reduction_factor=3,
        )
        self._epochs = epochs
        self.stopped: set[str] = set()

    def on_trial_result(self, tune_controller: TuneController, trial: TuneTrial, result: JsonObject) -> str:
        """Decide, and record a stopped trial."""
        decision: str = super().on_trial_result(tune_controller, trial, result)
        if result.get("epoch", 0) >= self._epochs:  # stopping saves nothing, and the model is not written yet
            return str(TrialScheduler.CONTINUE)
        if decision == TrialScheduler.STOP:
            self.stopped.add(trial.config["name"])
        return decision

    def recall(self, record: TrialRecord) -> None:
        """Add the results of a trial of an earlier command."""
        past = SimpleNamespace(trial_id=f"past-{record.name}", config={"name": record.name})
        self.on_trial_add(None, past)
        for epoch in record.history:
            super().on_trial_result(None, past, epoch)


def run_study(config: StudyConfig, study: Study | None = None) -> list[TrialRecord]:
    """Run a study, or continue it, or report that it is complete; return the records of its trials. Needs a running Ray.

    Args:
        config: its options.
        study: None takes the one that the options choose.

    Raises:
        PneumoError: the reason in one sentence, before anything is trained; or that trials are left.
        StudyFailedError: if all trials are over and none finished, all of them having diverged or failed.
    """
    study, base = study or config.chosen(), config.base()
    trials = plan(study, base)
    manifest, _, _ = load_training_rows(base.manifest)
    if study.folds:
        assign_folds(manifest, study.folds, base.seed)  # too few patients are detected before the images are decoded
    if not base.allow_leakage:
        refuse_leakage(manifest)
    for model in {configure(base, trial).model for trial in trials}:
        build_model(model)  # missing weights are detected before the first trial
    out = base.out
    folder = RunFolder(out, "study.json")
    with folder.held():
        share = _begin(folder, config, study, base, fingerprint(manifest), len(trials))
        left = _left(base, trials)
        done = len(trials) - len(left)
        log(
            f"study {study.name} ({study.varies}): {len(trials)} trials of at most {base.epochs} epochs"
            f"{f', {done} of them done before' if done else ''}"
        )
        if left:
            # Images are decoded once and not once per trial. Results name the given manifest.
            shared = replace(base, manifest=cached_manifest(base.manifest, manifest, base.data.image_size, out))
            if study.folds:
                write_folds(study, base, read_manifest(shared.manifest))
            _run_all(config, study, base, shared, share, trials)
        records = _records(base, trials)
        if records:
            write_results(study, base, out, records)
        if study.folds and len(records) == len(trials) and any(record.status == "finished" for record in records):
            uri = cached_manifest(base.manifest, manifest, base.data.image_size, out)
            write_doubt(study, replace(base, manifest=uri), read_manifest(uri), list(zip(trials, records, strict=True)))
    if len(records) < len(trials):
        raise PneumoError(
            f"{len(trials) - len(records)} of {len(trials)} trials are left after {config.time_budget:g} s of --time-budget; "
            "the same command continues"
        )
    if not any(record.status == "finished" for record in records):
        reasons = Counter(record.status for record in records)
        raise StudyFailedError(
            f"none of {len(records)} trials finished ({', '.join(f'{n} {status}' for status, n in reasons.items())}), so there is no "
            f"best config; {out}/study.csv says why for each"
        )
    return records


def _folder(base: TrainConfig, trial: Trial) -> str:
    return configure(base, trial).out


def _left(base: TrainConfig, trials: list[Trial]) -> list[Trial]:
    return [trial for trial in trials if read_record(_folder(base, trial)) is None]


def _records(base: TrainConfig, trials: list[Trial]) -> list[TrialRecord]:
    return [record for trial in trials if (record := read_record(_folder(base, trial))) is not None]


def _begin(
    folder: RunFolder, config: StudyConfig, study: Study, base: TrainConfig, manifest: str, num_trials: int
) -> TrialShares:
    """Start the study's folder, or refuse it; return how the cluster is shared."""
    before = folder.read(("study", "config", "manifest", "threads"))
    scaling = base.scaling
    if before is not None:
        _refuse_other_study(folder, before, study, base, manifest)
        # Rounding depends on the number of threads, so all trials use that of the first one.
        scaling = replace(scaling, threads_per_worker=scaling.threads_per_worker or before["threads"])
    share = share_trials(
        living_nodes(),
        scaling.max_workers,
        num_trials,
        max_concurrent=config.max_concurrent,
        cpus_per_worker=scaling.cpus_per_worker,
        gpus_per_worker=scaling.gpus_per_worker if scaling.use_gpu else 0.0,
        threads_per_worker=scaling.threads_per_worker,
    )
    folder.write({"study": as_plain(study), "config": as_plain(base), "manifest": manifest, "threads": share.threads})
    return share


class _NodeFullError(Exception):
    """A node had no memory left, and Ray has ended the process of a trial."""

    def __init__(self, running: Sequence[Trial]) -> None:
        self.running = tuple(running)


def _run_all(
    config: StudyConfig,
    study: Study,
    base: TrainConfig,
    shared: TrainConfig,
    share: TrialShares,
    trials: list[Trial],
) -> None:
    """Run the trials without a record; where they do not fit the memory of a node, go on with half as many at once.

    A trial that does not fit alone, in as many attempts as one that fails otherwise, is recorded as failed. Arguments as for
    `_run`.

    Raises:
        ClusterError: if the memory is full before a trial has begun.
    """
    deaths = Counter[tuple[str, ...]]()
    ends = time.monotonic() + config.time_budget
    while left := _left(base, trials):
        seconds = max(1.0, ends - time.monotonic()) if config.time_budget else None
        try:
            _run(config, study, base, shared, share, left, _records(base, trials), seconds)
            return
        except _NodeFullError as full:
            if share.trials > 1:
                share = replace(share, trials=share.trials // 2)
                log(f"warning: the memory of a node was full; {share.trials} trial(s) at once from here on")
                continue
            names = tuple(trial.name for trial in full.running)
            deaths[names] += 1
            if deaths[names] <= base.scaling.max_failures:
                continue
            if not names:
                raise ClusterError(
                    "the memory of a node is full before a trial begins; free some, and repeat the command"
                ) from full
            for trial in full.running:
                record_trial(
                    _folder(base, trial), trial, "failed", reason="the memory of a node was full, with no other trial"
                )


def _run(
    config: StudyConfig,
    study: Study,
    base: TrainConfig,
    shared: TrainConfig,
    share: TrialShares,
    left: list[Trial],
    past: list[TrialRecord],
    seconds: float | None,
) -> None:
    """Run the trials that are left, and give a record to those that failed or were stopped.

    Args:
        config: options of the study.
        study: the study.
        base: config that the trials vary.
        shared: the same with the manifest whose images are decoded.
        share: the resources of a trial.
        left: trials without a record.
        past: records of the others.
        seconds: time for it; None for no limit.

    Raises:
        _NodeFullError: if the memory of a node was full.
    """
    scaling = base.scaling
    log(
        f"{share.trials} trial(s) at once, {share.threads} thread(s) in each of {scaling.max_workers} worker(s) per trial"
    )
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are in the records
    by_name = {trial.name: trial for trial in left}
    halving = _halving(base.epochs, past) if study.is_search else None
    stopped = halving.stopped if halving is not None else set[str]()
    search = None
    if config.search == "optuna":
        from pneumo_ray.tune.search import OptunaSearch  # Optuna is an extra

        folders = {name: (trial, _folder(base, trial)) for name, trial in by_name.items()}
        search = OptunaSearch(study, folders, past, base.seed)
    board = Board(
        by_name,
        base.epochs,
        study,
        stopped,
        lambda name: record.status if (record := read_record(storage.join(base.out, "trials", name))) else None,
    )
    job = TrialJob(
        shared, by_name, share, judged=study.is_search, uncertainty=study.uncertainty, held_out=study.folds > 0
    )
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(TrialRunner, job=job), tune.PlacementGroupFactory([dict(b) for b in share.bundles])
        ),
        param_space=None if search else {"name": tune.grid_search(list(by_name))},
        tune_config=tune.TuneConfig(
            search_alg=search,
            num_samples=len(left) if search else 1,
            scheduler=halving or FIFOScheduler(),
            max_concurrent_trials=share.trials,
            time_budget_s=seconds,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.config["name"]),
        ),
        run_config=tune.RunConfig(
            name="ray_tune",
            storage_path=base.out,
            callbacks=[board],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a trial saves its own state
            failure_config=tune.FailureConfig(max_failures=scaling.max_failures),
            verbose=0,
        ),
    )
    # The process of a trial computes only where it is the trial's one worker.
    own = compute_environment(scaling.allocator, use_gpu=scaling.use_gpu) if share.in_process else {}
    full = False
    try:
        with board.shown(), trials_started_with(own):
            tuner.fit()
    except RuntimeError as error:  # what Ray Tune makes of a process that is ended for want of memory
        if not isinstance(error.__cause__, OutOfMemoryError):
            raise
        full = True
    known = by_name | (search.drawn if search else {})
    _record_others(base, known, board.errors, stopped)
    if full:
        raise _NodeFullError([known[name] for name in board.running()])


def _halving(epochs: int, past: list[TrialRecord]) -> Halving:
    """Return the scheduler of a search, with the results of earlier commands."""
    halving = Halving(epochs)
    for record in past:
        halving.recall(record)
    return halving


def _record_others(
    base: TrainConfig, trials: Mapping[str, Trial], errors: Mapping[str, str], stopped: Container[str]
) -> None:
    """Write the records of trials that did not write their own: those that failed in all attempts, or were stopped."""
    for name, trial in trials.items():
        folder = _folder(base, trial)
        if read_record(folder) is not None:
            continue
        if name in errors:
            record_trial(folder, trial, "failed", reason=errors[name])
        elif name in stopped:
            record_trial(folder, trial, "stopped", reason="stopped early by successive halving")


def _refuse_other_study(folder: RunFolder, before: JsonObject, study: Study, base: TrainConfig, manifest: str) -> None:
    """Refuse a folder of another study; more arms, seeds or trials extend the same study.

    Raises:
        ConfigError: naming what differs.
    """
    was, now = before["study"], as_plain(study)
    folder.refuse_other(f"another study ({was['name']})", was["name"], study.name)
    folder.refuse_other("a study on another manifest", before["manifest"], manifest)
    for arm, settings in now["arms"].items():
        folder.refuse_other(f"a study whose arm {arm} differs", was["arms"].get(arm, settings), settings)
    folder.refuse_other("a study of another space", was["space"], now["space"])
    folder.refuse_other("a study with another number of folds", was.get("folds", 0), now["folds"])
    free = set(NOT_PART_OF_THE_RUN) - {"epochs"}
    folder.refuse_other_options(flatten(before["config"]), flatten(as_plain(base)), free=free)
