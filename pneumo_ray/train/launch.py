"""Run a training from its config to a model bundle: check everything, train on the cluster, calibrate, write."""

from contextlib import nullcontext
from importlib.util import find_spec

import pyarrow as pa
import ray
import ray.train
import torch

from pneumo_ray import storage
from pneumo_ray.config import as_flat, as_plain, flatten
from pneumo_ray.console import log
from pneumo_ray.data.manifest import fingerprint, refuse_leakage, usable
from pneumo_ray.data.prepare import cache_of, load_training_rows
from pneumo_ray.data.sampling import effective_odds, positive_weight
from pneumo_ray.data.soft_labels import soft_fingerprint, soft_labels
from pneumo_ray.data.split import permute_labels
from pneumo_ray.errors import ConfigError
from pneumo_ray.model import PneumoniaNet, build_model
from pneumo_ray.records import JsonObject
from pneumo_ray.run_folder import RunFolder
from pneumo_ray.train.batches import BatchSource
from pneumo_ray.train.config import TrainConfig
from pneumo_ray.train.loop import train_worker
from pneumo_ray.train.lungs_use import LungUse, decide_lungs
from pneumo_ray.train.monitor import epoch_line
from pneumo_ray.train.records import EpochRecord
from pneumo_ray.train.results import FitResult, is_written, preprocessing, read_result, write_results
from pneumo_ray.train.state import TrainState, load_state
from pneumo_ray.train.worker_job import WorkerJob
from pneumo_ray.train.workers import Reservation, run_workers, whole_cluster

NOT_PART_OF_THE_RUN = (
    *("out", "epochs", "scaling", "mlflow", "manifest", "allow_leakage", "operating_point", "recipe"),
    *("posterior", "members"),
)
"""Options that may change when a run continues: they do not change what has been trained so far. (--epochs does where the
learning rate falls over all of them.)"""


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
    identity: JsonObject,
    manifest: pa.Table,
    source: BatchSource,
    lungs: LungUse,
    reservation: Reservation[EpochRecord] | None,
) -> FitResult:
    """Train what is left of the run, and write its results."""
    run = folder.out
    state = _refuse_other_run(config, folder, identity)
    _announce(config, source)
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
        soft=soft_labels(train, config.manifest) if config.labels == "soft" else None,
    )


def _train(
    config: TrainConfig,
    run: str,
    source: BatchSource,
    guided: bool,
    initial: dict[str, torch.Tensor],
    identity: JsonObject,
    reservation: Reservation[EpochRecord],
) -> TrainState:
    job = WorkerJob(
        config=config,
        run=run,
        preprocessing=preprocessing(config),
        schedule=source.schedule(config.scaling.min_workers),
        positive_weight=positive_weight(source.balanced_labels, config.balance),
        identity=identity,
        initial_weights=ray.put(initial),
        monitor=reservation.monitor,
        val_soft=soft_labels(source.val, config.manifest) if config.labels == "soft" else None,
        guided=guided,
    )
    run_workers(train_worker, job, source, config.epochs, config.scaling, run, reservation)
    state = load_state(run)
    assert state is not None, "the trainer ended without a saved state"
    return state


def _identity(config: TrainConfig, manifest: pa.Table, lungs: LungUse) -> JsonObject:
    soft = {"soft_labels": soft_fingerprint(usable(manifest))} if config.labels == "soft" else {}
    return {
        "manifest": fingerprint(manifest),
        "lungs": lungs.fingerprint,
        "seed": config.seed,
        "num_workers": config.scaling.num_workers,
        **soft,
    }


def _refuse_other_run(config: TrainConfig, folder: RunFolder, identity: JsonObject) -> TrainState | None:
    """Return the newest state of the run, after refusing to continue it with other data or other settings.

    Raises:
        ConfigError: naming what differs.
    """
    state = load_state(folder.out)
    if state is None:
        return None
    folder.refuse_other("a run on another manifest", state.identity["manifest"], identity["manifest"])
    folder.refuse_other("a run on other lungs of the same images", state.identity.get("lungs"), identity["lungs"])
    if config.labels == "soft" and "soft_labels" in state.identity:
        readers = "a run on other readings of the same images"
        folder.refuse_other(readers, state.identity["soft_labels"], identity["soft_labels"])
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


def _announce(config: TrainConfig, source: BatchSource) -> None:
    odds = effective_odds(source.balanced_labels, config.balance)
    normal = f"{int((source.train_labels == 0).sum()):,} normal"
    if source.soft is not None:
        normal += f", {source.soft.masses[0]:,.1f} expected by the soft labels"
    log(
        f"training {config.model.arch} at {config.data.image_size} px on {len(source.train):,} images ({normal}), "
        f"validating on {len(source.val):,}; balance {config.balance}: odds of pneumonia in the loss {odds:.2f}"
    )
    if config.balance == "paper":
        log(
            "warning: --balance paper corrects the class imbalance three times over, so the model will underestimate pneumonia; "
            "copies, sampler or pos-weight alone correct it once"
        )
