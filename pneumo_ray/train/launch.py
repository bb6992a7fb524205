"""Run a training from its config to a model bundle: check everything, train on the cluster, calibrate, write."""

import json
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pyarrow as pa
import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from pneumo_ray import storage
from pneumo_ray.cli import as_flat, flatten, save_config
from pneumo_ray.console import say
from pneumo_ray.data.manifest import fingerprint, refuse_leakage
from pneumo_ray.data.pipeline import StreamConfig
from pneumo_ray.data.prepare import cache_of, load_training_rows
from pneumo_ray.data.sampling import effective_odds, positive_weight
from pneumo_ray.data.split import permute_labels
from pneumo_ray.data.stream import BatchSource, TicketSource
from pneumo_ray.errors import ConfigError, ManifestError
from pneumo_ray.model import PneumoniaNet, build_model
from pneumo_ray.train.capacity import CpuShares, wait_for_cluster
from pneumo_ray.train.config import ScalingConfig, TrainConfig
from pneumo_ray.train.loop import STREAM, WorkerJob, train_worker
from pneumo_ray.train.monitor import Monitor, RemoteMonitor, followed
from pneumo_ray.train.results import FitResult, is_written, preprocessing, read_result, write_results
from pneumo_ray.train.state import TrainState, latest_epoch, load_state

NOT_PART_OF_THE_RUN = ("out", "epochs", "scaling", "mlflow", "manifest", "allow_leakage", "operating_point")
"""Options that may change when a run continues: they do not change what has been trained so far."""


@dataclass(frozen=True)
class Place:
    """Where a run that is one of several takes place: in resources that were reserved for it."""

    shares: CpuShares
    monitor: Monitor
    """Hears of progress instead of the terminal."""
    reserved: PlacementGroup | None
    """Where the pictures are prepared."""
    in_process: bool
    """Train in the process that calls, which is then the only worker."""
    tell: Callable[[dict[str, Any]], None] | None = None
    """Takes the record of every finished epoch where that of another process is heard; None prints it."""


def fit(config: TrainConfig, place: Place | None = None) -> FitResult:
    """Train, or continue, or find that everything is done already. Needs a running Ray.

    Args:
        config: the run.
        place: where it takes place; None shares the cluster with nobody.

    Raises:
        PneumoError: one sentence about what cannot work, before anything is trained.
    """
    run = storage.absolute(config.out)
    manifest, train, val = load_training_rows(config.manifest)
    if not config.allow_leakage:
        refuse_leakage(manifest)
    if config.permute_labels:
        train, val = permute_labels(train, config.seed), permute_labels(val, config.seed)
        say("warning: --permute-labels: the labels are random, and so is what this model will say of anybody")
    if "copy_of" in manifest.column_names and config.balance in ("copies", "paper"):
        raise ConfigError(
            f"the manifest already holds written copies, which --balance {config.balance} would double; use --balance none, sampler or pos-weight"
        )
    if config.mlflow and find_spec("mlflow") is None:
        raise ConfigError(
            "--mlflow needs MLflow, which is not installed; pip install 'pneumo_ray[mlflow]', or leave the option out"
        )
    identity = _identity(config, manifest)
    state = load_state(run)
    _check_same_run(config, run, state, identity)
    finished = state is not None and (state.stopped or state.epoch >= config.epochs)
    if state is not None and finished and is_written(config, run, state):
        say(
            f"{run} is finished: {state.epoch} epochs, best {state.best_epoch}; nothing to do (raise --epochs or choose another --out)"
        )
        return read_result(run, state)
    _announce(config, train, val)
    if not finished:
        place = place or Place(wait_for_cluster(config.scaling), RemoteMonitor(), None, in_process=False)
        storage.require_writable(run)
        torch.manual_seed(config.seed)
        # A run that continues has its weights in the state, and needs no file or network to begin with.
        initial = (build_model(config.model) if state is None else PneumoniaNet(config.model)).state_dict()
        save_config(config, storage.join(run, "train.json"))
        if state is not None:
            say(f"continuing after epoch {state.epoch}")
        state = _train(config, run, _source(config, train, val), initial, identity, place)
    assert state is not None
    write_results(config, run, state, manifest)
    return read_result(run, state)


def _source(config: TrainConfig, train: pa.Table, val: pa.Table) -> BatchSource:
    return BatchSource(
        train=train,
        val=val,
        image_size=config.data.image_size,
        balance=config.balance,
        augment=config.augment,
        seed=config.seed,
        batch_size=config.batch_size,
        cache_folder=cache_of(train, config.manifest),
    )


def _train(
    config: TrainConfig,
    run: str,
    source: BatchSource,
    initial: dict[str, torch.Tensor],
    identity: dict[str, Any],
    place: Place,
) -> TrainState:
    job = WorkerJob(
        config=config,
        run=run,
        preprocessing=preprocessing(config),
        schedule=source.schedule(config.scaling.min_workers),
        positive_weight=positive_weight(source.train_labels, config.balance),
        identity=identity,
        initial_weights=ray.put(initial),
        monitor=place.monitor,
    )
    run_workers(train_worker, job, source, config.epochs, config.scaling, run, place)
    state = load_state(run)
    assert state is not None, "the trainer ended well without a saved state"
    return state


def run_workers(
    worker: Callable[[dict[str, Any]], None],
    job: Any,
    source: TicketSource,
    epochs: int,
    scaling: ScalingConfig,
    run: str,
    place: Place,
) -> None:
    """Run workers over a stream of tickets, from where the run stands to its last epoch, and print what they report.

    Args:
        worker: takes {"job": job} in each worker; what it cannot mend it tells `place.monitor`.
        job: arguments shared by all workers.
        source: makes the tickets.
        epochs: of the run.
        scaling: how many workers, and on what.
        run: folder of the run, where its state is.
        place: where the run takes place.

    Raises:
        PneumoError: what a worker told the monitor.
    """
    gpus = {"GPU": scaling.gpus_per_worker} if scaling.use_gpu else {}
    own = _set_aside(place.shares.set_aside) if place.shares.set_aside else None
    reserved = own or place.reserved
    stream = StreamConfig(ray.put(source), epochs, lambda: latest_epoch(run), place.shares.per_task, reserved)
    workers = (scaling.min_workers, scaling.max_workers) if scaling.is_elastic else scaling.max_workers
    trainer = TorchTrainer(
        worker,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=0 if place.in_process else workers,  # 0 is Ray Train's word for this process
            use_gpu=scaling.use_gpu,
            resources_per_worker={"CPU": place.shares.per_worker} | gpus,
        ),
        # A placeholder: what a worker consumes depends on the epoch where it continues, so `StreamConfig` makes it then.
        datasets={STREAM: stream.stream(1) if place.in_process else ray.data.range(1)},
        dataset_config=stream,
        run_config=ray.train.RunConfig(
            name="ray_train",
            storage_path=run,
            # How often without progress is for the workers to say; Ray Train would count over the whole run.
            failure_config=ray.train.FailureConfig(max_failures=-1 if scaling.max_failures else 0),
        ),
    )
    with nullcontext() if place.in_process else followed(place.monitor, epochs, place.tell):
        try:
            trainer.fit() if place.in_process else _beside_main_thread(trainer.fit)
        except Exception:
            if place.monitor.failure() is None:
                raise
        finally:
            if own is not None:
                remove_placement_group(own)
    if (reason := place.monitor.failure()) is not None:
        raise reason


def _set_aside(cpus: float) -> PlacementGroup:
    """Keep CPUs from the workers; whoever does this in a process that lives on gives them back."""
    group = placement_group([{"CPU": cpus}])
    ray.get(group.ready())
    return group


def _beside_main_thread(action: Callable[[], object]) -> None:
    """Do something in a thread of its own: in the main one Ray Train takes Ctrl-C for itself, and ends without a word."""
    raised: list[BaseException] = []

    def act() -> None:
        try:
            action()
        except BaseException as error:  # raised again where somebody waits
            raised.append(error)

    thread = threading.Thread(target=act, name="trainer", daemon=True)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def _identity(config: TrainConfig, manifest: pa.Table) -> dict[str, Any]:
    return {"manifest": fingerprint(manifest), "seed": config.seed, "num_workers": config.scaling.num_workers}


def _check_same_run(config: TrainConfig, run: str, state: TrainState | None, identity: dict[str, Any]) -> None:
    """Refuse to continue a run with other data or other settings.

    Raises:
        ConfigError: naming what differs.
        ManifestError: if the manifest is another one.
    """
    if state is None:
        return
    if state.identity["manifest"] != identity["manifest"]:
        raise ManifestError(f"{run} was trained on another manifest than {config.manifest}; choose another --out")
    try:
        before = flatten(json.loads(storage.read_bytes(storage.join(run, "train.json"))))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{run} holds the state of a run but not its train.json, so it cannot be continued; choose another --out"
        ) from error
    # An option that the run did not know yet had, in effect, its default.
    before = as_flat(TrainConfig(manifest=config.manifest, out=config.out)) | before
    now = as_flat(config)
    different = [name for name in now if before[name] != now[name] and name.split(".")[0] not in NOT_PART_OF_THE_RUN]
    if different:
        name = different[0]
        raise ConfigError(
            f"{run} was begun with {name} {before[name]} and not {now[name]}; choose another --out, or repeat its command to continue it"
        )


def _announce(config: TrainConfig, train: pa.Table, val: pa.Table) -> None:
    labels = train["label"].to_numpy()
    odds = effective_odds(labels, config.balance)
    say(
        f"training {config.model.arch} at {config.data.image_size} px on {len(train):,} images ({int((labels == 0).sum()):,} normal), "
        f"validating on {len(val):,}; balance {config.balance}: odds of pneumonia in the loss {odds:.2f}"
    )
    if config.balance == "paper":
        say(
            "warning: --balance paper corrects the class imbalance three times over, so the model will underestimate pneumonia; "
            "copies, sampler or pos-weight alone correct it once"
        )
