"""Run a training from its config to a model bundle: check everything, train on the cluster, calibrate, write."""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Generic

import pyarrow as pa
import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer
from ray.util.placement_group import PlacementGroup, remove_placement_group

from pneumo_ray import storage
from pneumo_ray.config import as_flat, as_plain, flatten
from pneumo_ray.console import log
from pneumo_ray.cpu_shares import TrainShares, share_elastic_training, share_training
from pneumo_ray.data.manifest import fingerprint, refuse_leakage
from pneumo_ray.data.prepare import cache_of, load_training_rows
from pneumo_ray.data.sampling import effective_odds, positive_weight
from pneumo_ray.data.split import permute_labels
from pneumo_ray.errors import ConfigError
from pneumo_ray.model import PneumoniaNet, build_model
from pneumo_ray.ray_cluster import reserve_cpus, wait_for_training
from pneumo_ray.run_folder import RunFolder
from pneumo_ray.train.batches import BatchSource, TicketSource
from pneumo_ray.train.config import ScalingConfig, TrainConfig
from pneumo_ray.train.loop import STREAM, train_worker
from pneumo_ray.train.lungs_use import LungUse, decide_lungs
from pneumo_ray.train.monitor import Monitor, Record, RemoteMonitor, epoch_line, followed
from pneumo_ray.train.ray_stream import StreamConfig
from pneumo_ray.train.records import EpochRecord
from pneumo_ray.train.results import FitResult, is_written, preprocessing, read_result, write_results
from pneumo_ray.train.state import TrainState, latest_epoch, load_state
from pneumo_ray.train.worker_job import WorkerJob

NOT_PART_OF_THE_RUN = (
    *("out", "epochs", "scaling", "mlflow", "manifest", "allow_leakage", "operating_point", "recipe"),
    *("posterior", "members"),
)
"""Options that may change when a run continues: they do not change what has been trained so far. (--epochs does where the
learning rate falls over all of them.)"""


@dataclass(frozen=True)
class Reservation(Generic[Record]):
    """Reserved resources of a run that is one of several."""

    shares: TrainShares
    monitor: Monitor[Record]
    """Receives progress instead of the terminal."""
    reserved: PlacementGroup | None
    """Placement group of the tasks that prepare images."""
    in_process: bool
    """Train in the calling process, which is then the only worker."""
    on_epoch: Callable[[Record], None]
    """Called with the record of every finished epoch."""


def fit(config: TrainConfig, reservation: Reservation[EpochRecord] | None = None) -> FitResult:
    """Train, or continue, or report that the run is complete. Needs a running Ray.

    Args:
        config: the run.
        reservation: reserved resources; None uses the whole cluster.

    Raises:
        PneumoError: the reason in one sentence, before anything is trained.
    """
    folder = RunFolder(storage.absolute(config.out), "train.json")
    manifest, train, val = load_training_rows(config.manifest)
    if not config.allow_leakage:
        refuse_leakage(manifest)
    if config.permute_labels:
        train, val = permute_labels(train, config.seed), permute_labels(val, config.seed)
        log("warning: --permute-labels: the labels are random, so the predictions of this model have no meaning")
    if "copy_of" in manifest.column_names and config.balance in ("copies", "paper"):
        raise ConfigError(
            f"the manifest already holds written copies, which --balance {config.balance} would double; use --balance none, sampler or pos-weight"
        )
    if config.mlflow and find_spec("mlflow") is None:
        raise ConfigError(
            "--mlflow needs MLflow, which is not installed; pip install 'pneumo_ray[mlflow]', or leave the option out"
        )
    config, lungs = decide_lungs(config, manifest, train)
    identity = _identity(config, manifest, lungs)
    state = _refuse_other_run(config, folder, identity)
    if state is not None and _is_finished(config, state) and is_written(config, folder.out, state):
        log(
            f"{folder.out} is finished: {state.epoch} epochs, best {state.best_epoch}; nothing to do (raise --epochs or choose another --out)"
        )
        return read_result(folder.out, state)
    # A trial's folder is guarded by the lock of its study.
    with folder.held() if reservation is None else nullcontext():
        return _fit(config, folder, identity, manifest, _source(config, train, val, lungs), lungs, reservation)


def _fit(
    config: TrainConfig,
    folder: RunFolder,
    identity: dict[str, Any],
    manifest: pa.Table,
    source: BatchSource,
    lungs: LungUse,
    reservation: Reservation[EpochRecord] | None,
) -> FitResult:
    """Train what is left of the run, and write its results."""
    run = folder.out
    state = _refuse_other_run(config, folder, identity)
    _announce(config, source.train, source.val)
    lungs.announce()
    if state is None or not _is_finished(config, state):
        reservation = reservation or whole_cluster(
            config.scaling, lambda record: log(epoch_line(record, config.epochs))
        )
        torch.manual_seed(config.seed)
        # A continued run has its weights in the state and needs no initial weights.
        initial = (build_model(config.model) if state is None else PneumoniaNet(config.model)).state_dict()
        folder.write(as_plain(config))
        if state is not None:
            log(f"continuing after epoch {state.epoch}")
        state = _train(config, run, source, lungs.guided, initial, identity, reservation)
    write_results(config, run, state, manifest)
    return read_result(run, state)


def _is_finished(config: TrainConfig, state: TrainState) -> bool:
    return state.stopped or state.epoch >= config.epochs


def _source(config: TrainConfig, train: pa.Table, val: pa.Table, lungs: LungUse) -> BatchSource:
    return BatchSource(
        train=train,
        val=val,
        image_size=config.data.image_size,
        balance=config.balance,
        augment=config.augment,
        seed=config.seed,
        batch_size=config.batch_size,
        cache_folder=cache_of(train, config.manifest),
        fit=lungs.fit,
        margin=config.data.margin,
        lung_maps=lungs.maps,
        guided=lungs.guided,
    )


def _train(
    config: TrainConfig,
    run: str,
    source: BatchSource,
    guided: bool,
    initial: dict[str, torch.Tensor],
    identity: dict[str, Any],
    reservation: Reservation[EpochRecord],
) -> TrainState:
    job = WorkerJob(
        config=config,
        run=run,
        preprocessing=preprocessing(config),
        schedule=source.schedule(config.scaling.min_workers),
        positive_weight=positive_weight(source.train_labels, config.balance),
        identity=identity,
        initial_weights=ray.put(initial),
        monitor=reservation.monitor,
        guided=guided,
    )
    run_workers(train_worker, job, source, config.epochs, config.scaling, run, reservation)
    state = load_state(run)
    assert state is not None, "the trainer ended without a saved state"
    return state


def run_workers(
    worker: Callable[[dict[str, Any]], None],
    job: Any,
    source: TicketSource,
    epochs: int,
    scaling: ScalingConfig,
    run: str,
    reservation: Reservation[Record],
) -> None:
    """Run workers over a stream of tickets, from where the run stands to its last epoch, and print what they report.

    Args:
        worker: takes {"job": job} in each worker; an error that no restart can fix goes to `reservation.monitor`.
        job: arguments shared by all workers.
        source: makes the tickets.
        epochs: of the run.
        scaling: how many workers, and on what.
        run: folder of the run, where its state is.
        reservation: the resources that the run uses, and what receives its progress.

    Raises:
        PneumoError: that a worker reported to the monitor.
    """
    gpus = {"GPU": scaling.gpus_per_worker} if scaling.use_gpu else {}
    own = reserve_cpus(reservation.shares.set_aside) if reservation.shares.set_aside else None
    reserved = own or reservation.reserved
    stream = StreamConfig(ray.put(source), epochs, lambda: latest_epoch(run), reservation.shares.per_task, reserved)
    workers = (scaling.min_workers, scaling.max_workers) if scaling.is_elastic else scaling.max_workers
    trainer = TorchTrainer(
        worker,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=0 if reservation.in_process else workers,  # 0 makes Ray Train use this process
            use_gpu=scaling.use_gpu,
            resources_per_worker={"CPU": reservation.shares.per_worker} | gpus,
        ),
        # A placeholder: the stream depends on the epoch where the run continues, so `StreamConfig` makes it at that time.
        datasets={STREAM: stream.stream(1) if reservation.in_process else ray.data.range(1)},
        dataset_config=stream,
        run_config=ray.train.RunConfig(
            name="ray_train",
            storage_path=run,
            # Workers count restarts without progress themselves; Ray Train would count over the whole run.
            failure_config=ray.train.FailureConfig(max_failures=-1 if scaling.max_failures else 0),
        ),
    )
    with nullcontext() if reservation.in_process else followed(reservation.monitor, epochs, reservation.on_epoch):
        try:
            trainer.fit() if reservation.in_process else _beside_main_thread(trainer.fit)
        except Exception:
            if reservation.monitor.failure() is None:
                raise
        finally:
            if own is not None:
                remove_placement_group(own)
    if (reason := reservation.monitor.failure()) is not None:
        raise reason


def whole_cluster(scaling: ScalingConfig, on_epoch: Callable[[Record], None]) -> Reservation[Record]:
    """Wait until the cluster has room for the run, and share all of it.

    Raises:
        ClusterError: if there is none after `scaling.wait_seconds`.
    """
    workers = (scaling.min_workers, scaling.max_workers)
    nodes = wait_for_training(workers, scaling.cpus_per_worker, scaling.wait_seconds, use_gpu=scaling.use_gpu)
    if scaling.is_elastic:
        shares = share_elastic_training(nodes, scaling.cpus_per_worker, use_gpu=scaling.use_gpu)
    else:
        shares = share_training(nodes, scaling.max_workers, scaling.cpus_per_worker)
    return Reservation(shares, RemoteMonitor(), None, in_process=False, on_epoch=on_epoch)


def _beside_main_thread(action: Callable[[], object]) -> None:
    """Run an action in its own thread: in the main thread Ray Train handles Ctrl-C itself and ends without a message."""
    raised: list[BaseException] = []

    def act() -> None:
        try:
            action()
        except BaseException as error:  # raised again in the waiting thread
            raised.append(error)

    thread = threading.Thread(target=act, name="trainer", daemon=True)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def _identity(config: TrainConfig, manifest: pa.Table, lungs: LungUse) -> dict[str, Any]:
    return {
        "manifest": fingerprint(manifest),
        "lungs": lungs.fingerprint,
        "seed": config.seed,
        "num_workers": config.scaling.num_workers,
    }


def _refuse_other_run(config: TrainConfig, folder: RunFolder, identity: dict[str, Any]) -> TrainState | None:
    """Return the newest state of the run, after refusing to continue it with other data or other settings.

    Raises:
        ConfigError: naming what differs.
    """
    state = load_state(folder.out)
    if state is None:
        return None
    folder.refuse_other("a run on another manifest", state.identity["manifest"], identity["manifest"])
    folder.refuse_other("a run on other lungs of the same images", state.identity.get("lungs"), identity["lungs"])
    before = folder.read()
    if before is None:
        raise ConfigError(
            f"{folder.out} contains the state of a run but not its train.json, so it cannot be continued; choose another --out"
        )
    # An option that is newer than the run had its default.
    defaults = as_flat(TrainConfig(manifest=config.manifest, out=config.out))
    planned = config.optim.schedule != "plateau"
    free = [option for option in NOT_PART_OF_THE_RUN if not (planned and option == "epochs")]
    folder.refuse_other_options(defaults | flatten(before), as_flat(config), free=free)
    return state


def _announce(config: TrainConfig, train: pa.Table, val: pa.Table) -> None:
    labels = train["label"].to_numpy()
    odds = effective_odds(labels, config.balance)
    log(
        f"training {config.model.arch} at {config.data.image_size} px on {len(train):,} images ({int((labels == 0).sum()):,} normal), "
        f"validating on {len(val):,}; balance {config.balance}: odds of pneumonia in the loss {odds:.2f}"
    )
    if config.balance == "paper":
        log(
            "warning: --balance paper corrects the class imbalance three times over, so the model will underestimate pneumonia; "
            "copies, sampler or pos-weight alone correct it once"
        )
