"""Run a study with Ray Tune: which trials are left, all of them at once as far as the cluster goes, then the tables.

The list of trials is known from the start and every trial that is over has a record in its folder. So what is left is
what has no record, and Ray Tune's own state, which is pickled, is never read back.
"""

import json
import logging
import os
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from pneumo_ray import storage
from pneumo_ray.cli import as_plain, flatten
from pneumo_ray.cluster import living_nodes
from pneumo_ray.console import say
from pneumo_ray.data.manifest import fingerprint, refuse_leakage
from pneumo_ray.data.prepare import cached_manifest, load_training_rows
from pneumo_ray.errors import ConfigError, PneumoError, StudyFailedError
from pneumo_ray.folder_lock import folder_lock
from pneumo_ray.model import build_model
from pneumo_ray.train.board import Board
from pneumo_ray.train.config import TrainConfig
from pneumo_ray.train.launch import NOT_PART_OF_THE_RUN
from pneumo_ray.train.sharing import TrialShare, share_cluster
from pneumo_ray.train.study import Study, Trial, configure, plan
from pneumo_ray.train.study_config import StudyConfig
from pneumo_ray.train.study_results import write_results
from pneumo_ray.train.trial import TrialJob, TrialRunner, read_record, write_record


class Halving(ASHAScheduler):
    """Asynchronous successive halving (arXiv 1810.05934), which remembers what it stopped."""

    def __init__(self, epochs: int) -> None:
        # `max_t` would end a trial at its last report, before it has written its model.
        super().__init__(
            time_attr="epoch",
            metric="val_loss",
            mode="min",
            max_t=epochs + 1,
            grace_period=max(1, min(3, epochs // 3)),
            reduction_factor=3,
        )
        self._epochs = epochs
        self.stopped: set[str] = set()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide, and remember."""
        decision: str = super().on_trial_result(tune_controller, trial, result)
        if result.get("epoch", 0) >= self._epochs:  # nothing is left to save, and its model is not written yet
            return str(TrialScheduler.CONTINUE)
        if decision == TrialScheduler.STOP:
            self.stopped.add(trial.config["name"])
        return decision

    def recall(self, record: dict[str, Any]) -> None:
        """Learn from a trial of an earlier command what it would have reported in this one."""
        past = SimpleNamespace(trial_id=f"past-{record['name']}", config={"name": record["name"]})
        self.on_trial_add(None, past)
        for epoch in record["history"]:
            super().on_trial_result(None, past, epoch)


def run_study(config: StudyConfig) -> list[dict[str, Any]]:
    """Run a study, or continue it, or find that it is done; return the records of its trials. Needs a running Ray.

    Raises:
        PneumoError: one sentence about what cannot work, before anything is trained; or that trials are left.
        StudyFailedError: if all trials are over and none finished, all of them having diverged or failed.
    """
    study, base = config.chosen(), config.base()
    trials = plan(study, base)
    manifest, _, _ = load_training_rows(base.manifest)
    if not base.allow_leakage:
        refuse_leakage(manifest)
    for model in {configure(base, trial).model for trial in trials}:
        build_model(model)  # weights that cannot be had are found out before the first trial
    out = base.out
    storage.require_writable(out)
    with folder_lock(storage.join(out, "lock.json")):
        share = _begin(config, study, base, fingerprint(manifest), len(trials))
        left = [trial for trial in trials if read_record(_folder(base, trial)) is None]
        done = len(trials) - len(left)
        say(
            f"study {study.name} ({study.varies}): {len(trials)} trials of at most {base.epochs} epochs"
            f"{f', {done} of them done before' if done else ''}"
        )
        if left:
            # Pictures are decoded once and not once a trial. Results name the manifest that was given.
            shared = replace(base, manifest=cached_manifest(base.manifest, manifest, base.data.image_size, out))
            _run(config, study, base, shared, share, left, _records(base, trials))
        records = _records(base, trials)
        if records:
            write_results(study, base, out, records)
    if len(records) < len(trials):
        raise PneumoError(
            f"{len(trials) - len(records)} of {len(trials)} trials are left after {config.time_budget:g} s of --time-budget; "
            "the same command continues"
        )
    if not any(record["status"] == "finished" for record in records):
        reasons = Counter(record["status"] for record in records)
        raise StudyFailedError(
            f"none of {len(records)} trials finished ({', '.join(f'{n} {status}' for status, n in reasons.items())}), so there is no "
            f"best config; {out}/study.csv says why for each"
        )
    return records


def _folder(base: TrainConfig, trial: Trial) -> str:
    return configure(base, trial).out


def _records(base: TrainConfig, trials: list[Trial]) -> list[dict[str, Any]]:
    return [record for trial in trials if (record := read_record(_folder(base, trial))) is not None]


def _begin(config: StudyConfig, study: Study, base: TrainConfig, manifest: str, num_trials: int) -> TrialShare:
    """Begin the study's folder, or refuse it; return how the cluster is shared."""
    about = storage.join(base.out, "study.json")
    before = json.loads(storage.read_bytes(about)) if storage.exists(about) else None
    scaling = base.scaling
    if before is not None:
        _check_same_study(before, study, base, manifest)
        # Sums over threads round differently: all trials have the number that the first had, whenever they are run.
        scaling = replace(scaling, threads_per_worker=scaling.threads_per_worker or before["threads"])
    share = share_cluster(living_nodes(), scaling, num_trials, config.max_concurrent)
    description = {"study": as_plain(study), "config": as_plain(base), "manifest": manifest, "threads": share.threads}
    storage.write_json(description, about)
    return share


def _run(
    config: StudyConfig,
    study: Study,
    base: TrainConfig,
    shared: TrainConfig,
    share: TrialShare,
    left: list[Trial],
    past: list[dict[str, Any]],
) -> None:
    say(
        f"{share.trials} trial(s) at once, {share.threads} thread(s) in each of {base.scaling.max_workers} worker(s) a trial"
    )
    scheduler: Any = FIFOScheduler()
    if study.is_search:
        scheduler = Halving(base.epochs)
        for record in past:
            scheduler.recall(record)
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # Ray Tune's newer output speaks even where it was asked not to
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what fails is in the records
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # histories are ours
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a trial that diverged ends without a loss
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # an interrupted job says so and ends
    by_name = {trial.name: trial for trial in left}
    job = TrialJob(shared, by_name, share, judged=study.is_search, uncertainty=study.uncertainty)
    search = None
    if config.search == "optuna":
        from pneumo_ray.train.search import OptunaSearch  # Optuna is an extra

        folders = {name: (trial, _folder(base, trial)) for name, trial in by_name.items()}
        search = OptunaSearch(study, folders, past, base.seed)
    board = Board(
        by_name,
        base.epochs,
        study,
        scheduler.stopped if study.is_search else (),
        lambda name: (read_record(storage.join(base.out, "trials", name)) or {}).get("status"),
    )
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(TrialRunner, job=job), tune.PlacementGroupFactory([dict(b) for b in share.bundles])
        ),
        param_space=None if search else {"name": tune.grid_search(list(by_name))},
        tune_config=tune.TuneConfig(
            search_alg=search,
            num_samples=len(left) if search else 1,
            scheduler=scheduler,
            max_concurrent_trials=share.trials,
            time_budget_s=config.time_budget or None,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.config["name"]),
        ),
        run_config=tune.RunConfig(
            name="ray_tune",
            storage_path=base.out,
            callbacks=[board],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a trial's state is its own
            failure_config=tune.FailureConfig(max_failures=base.scaling.max_failures),
            verbose=0,
        ),
    )
    with board.shown():
        tuner.fit()
    if search:
        by_name |= search.drawn
    for name, trial in by_name.items():
        folder = _folder(base, trial)
        if read_record(folder) is not None:
            continue
        if name in board.errors:
            write_record(folder, trial, "failed", reason=board.errors[name])
        elif study.is_search and name in scheduler.stopped:
            write_record(folder, trial, "stopped", reason="stopped early by successive halving")


def _check_same_study(before: dict[str, Any], study: Study, base: TrainConfig, manifest: str) -> None:
    """Refuse a folder that belongs to another study; more arms, seeds or trials are the same study grown.

    Raises:
        ConfigError: naming what differs.
    """
    other = f"{base.out} belongs to another study"
    if before["study"]["name"] != study.name:
        raise ConfigError(f"{other} ({before['study']['name']}); choose another --out")
    if before["manifest"] != manifest:
        raise ConfigError(f"{other}: it was begun with another manifest; choose another --out")
    now = as_plain(study)
    changed = [arm for arm, settings in now["arms"].items() if before["study"]["arms"].get(arm, settings) != settings]
    if changed or before["study"]["space"] != now["space"]:
        what = f"arm {changed[0]}" if changed else "the space"
        raise ConfigError(f"{other}: {what} was something else; choose another --out")
    was, is_now = flatten(before["config"]), flatten(as_plain(base))
    free = set(NOT_PART_OF_THE_RUN) - {"epochs"}
    for name, value in is_now.items():
        if name.split(".")[0] not in free and was.get(name, value) != value:
            raise ConfigError(f"{other}: it was begun with {name} {was[name]} and not {value}; choose another --out")
