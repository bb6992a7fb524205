"""Run a training from its config to a model bundle: check everything, train on the cluster, calibrate, write."""

import json
import platform
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer

from pneumo_ray import storage
from pneumo_ray.cli import as_flat, as_plain, flatten, save_config
from pneumo_ray.console import duration, say
from pneumo_ray.data.augment import base_size
from pneumo_ray.data.manifest import fingerprint, refuse_leakage
from pneumo_ray.data.pipeline import StreamConfig
from pneumo_ray.data.prepare import cache_of, load_training_rows
from pneumo_ray.data.sampling import effective_odds, positive_weight
from pneumo_ray.data.stream import BatchSource
from pneumo_ray.errors import ClusterError, ConfigError, ManifestError, PneumoError
from pneumo_ray.evaluate.calibration import fit_temperature
from pneumo_ray.evaluate.curves import draw_curves
from pneumo_ray.evaluate.metrics import classification_metrics
from pneumo_ray.evaluate.operating_point import choose_operating_point
from pneumo_ray.model import Preprocessing, build_model, save_bundle
from pneumo_ray.train.config import TrainConfig
from pneumo_ray.train.loop import STREAM, WorkerJob, train_worker
from pneumo_ray.train.monitor import printed, start_monitor
from pneumo_ray.train.state import TrainState, latest_epoch, load_state
from pneumo_ray.train.trackers import write_history

NOT_PART_OF_THE_RUN = ("out", "epochs", "scaling", "mlflow", "manifest", "allow_leakage", "operating_point")
"""Options that may change when a run continues: they do not change what has been trained so far."""


@dataclass(frozen=True)
class FitResult:
    """What a finished run is."""

    model: str
    """Folder of the bundle."""
    model_hash: str
    history: list[dict[str, Any]]
    best_epoch: int
    validation: dict[str, Any]
    """Metrics on the validation images at the operating point, calibrated."""


class _Cluster:
    """How the cluster's CPUs are shared between training and preparing pictures."""

    def __init__(self, config: TrainConfig) -> None:
        scaling = config.scaling
        total = ray.cluster_resources().get("CPU", 1.0)
        auto = 1.0 if scaling.use_gpu else min(1.0, 0.75 * total / scaling.num_workers)
        self.cpus_per_worker = scaling.cpus_per_worker or auto
        self.needed = {"CPU": self.cpus_per_worker * scaling.num_workers} | (
            {"GPU": float(scaling.num_workers)} if scaling.use_gpu else {}
        )
        free = total - self.needed["CPU"]
        # Without a CPU left for data the run would wait for ever, silently.
        self.cpus_per_task = 1.0 if free >= 2 else max(0.05, free / 2)
        if free <= 0:
            self.needed["CPU"] += 0.1

    def wait(self, seconds: float) -> None:
        """Wait until the cluster has what the run needs.

        Raises:
            ClusterError: if it has not after `seconds`.
        """
        deadline = time.monotonic() + seconds
        while True:
            have = ray.cluster_resources()
            lacking = [name for name, amount in self.needed.items() if have.get(name, 0.0) < amount]
            if not lacking:
                return
            if time.monotonic() >= deadline:
                raise ClusterError(
                    "the cluster has "
                    + " and ".join(
                        f"{have.get(name, 0.0):g} {name}s where the run needs {self.needed[name]:g}" for name in lacking
                    )
                    + f" (waited {seconds:g} s); ask for fewer --scaling.num-workers, or raise --scaling.wait-seconds where nodes are still coming"
                )
            time.sleep(min(1.0, seconds))


def fit(config: TrainConfig) -> FitResult:
    """Train, or continue, or find that everything is done already. Needs a running Ray.

    Raises:
        PneumoError: one sentence about what cannot work, before anything is trained.
    """
    run = storage.absolute(config.out)
    manifest, train, val = load_training_rows(config.manifest)
    if not config.allow_leakage:
        refuse_leakage(manifest)
    if "copy_of" in manifest.column_names and config.balance in ("copies", "paper"):
        raise ConfigError(
            f"the manifest already holds written copies, which --balance {config.balance} would double; use --balance none, sampler or pos-weight"
        )
    storage.require_writable(run)
    identity = _identity(config, manifest)
    state = load_state(run)
    _check_same_run(config, run, state, identity)
    finished = state is not None and (state.stopped or state.epoch >= config.epochs)
    if finished and storage.exists(storage.join(run, "model", "model.json")):
        assert state is not None
        say(
            f"{run} is finished: {state.epoch} epochs, best {state.best_epoch}; nothing to do (raise --epochs or choose another --out)"
        )
        return _finish(config, run, state, manifest, write=False)
    _announce(config, train, val)
    if not finished:
        cluster = _Cluster(config)
        cluster.wait(config.scaling.wait_seconds)
        torch.manual_seed(config.seed)
        initial = build_model(config.model).state_dict()
        save_config(config, storage.join(run, "train.json"))
        if state is not None:
            say(f"continuing after epoch {state.epoch}")
        state = _train(config, run, BatchSource(**_source(config, train, val)), initial, identity, cluster)
    assert state is not None
    return _finish(config, run, state, manifest, write=True)


def _source(config: TrainConfig, train: pa.Table, val: pa.Table) -> dict[str, Any]:
    return {
        "train": train,
        "val": val,
        "image_size": config.data.image_size,
        "balance": config.balance,
        "augment": config.augment,
        "seed": config.seed,
        "batch_size": config.batch_size,
        "cache_folder": cache_of(train, config.manifest),
    }


def _train(
    config: TrainConfig,
    run: str,
    source: BatchSource,
    initial: dict[str, torch.Tensor],
    identity: dict[str, Any],
    cluster: _Cluster,
) -> TrainState:
    monitor = start_monitor()
    job = WorkerJob(
        config=config,
        run=run,
        preprocessing=preprocessing(config),
        schedule=source.schedule(config.scaling.num_workers),
        positive_weight=positive_weight(source.train_labels, config.balance),
        identity=identity,
        initial_weights=ray.put(initial),
        monitor=monitor,
    )
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.scaling.num_workers,
            use_gpu=config.scaling.use_gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if config.scaling.use_gpu else {}),
        ),
        # A placeholder: what a worker consumes depends on the epoch where it continues, so `StreamConfig` makes it then.
        datasets={STREAM: ray.data.range(1)},
        dataset_config=StreamConfig(ray.put(source), config.epochs, lambda: latest_epoch(run), cluster.cpus_per_task),
        run_config=ray.train.RunConfig(
            name="ray_train",
            storage_path=run,
            failure_config=ray.train.FailureConfig(max_failures=config.scaling.max_failures),
        ),
    )
    with printed(monitor, config.epochs):
        trainer.fit()
    if (reason := ray.get(monitor.failure.remote())) is not None:
        raise PneumoError(reason)
    state = load_state(run)
    assert state is not None, "the trainer ended well without a saved state"
    return state


def preprocessing(config: TrainConfig) -> Preprocessing:
    """Return how pictures become the network's input in this run."""
    return Preprocessing(image_size=config.data.image_size, resize_size=base_size(config.data.image_size))


def _finish(config: TrainConfig, run: str, state: TrainState, manifest: pa.Table, *, write: bool) -> FitResult:
    """Calibrate and choose the operating point on validation, then write the bundle, the curves and the history."""
    logits, labels = state.best_val["logit"].numpy(), state.best_val["label"].numpy()
    temperature = fit_temperature(logits, labels)
    prob = 1 / (1 + torch.exp(torch.from_numpy(-logits / temperature)).numpy())
    point = choose_operating_point(prob, labels, config.operating_point)
    metrics = classification_metrics(labels, prob, point.threshold)
    folder = storage.join(run, "model")
    digest = ""
    if write:
        write_history(run, state.history)
        net = build_model(replace(config.model, weights="none"))
        net.load_state_dict(state.best)
        digest = save_bundle(
            folder,
            net,
            preprocessing=preprocessing(config),
            temperature=temperature,
            operating_point=point.to_dict(),
            provenance=_provenance(config, state, manifest, metrics),
        )
        draw_curves(state.history, storage.join(run, "curves.png"))
        say(
            f"wrote {folder}: epoch {state.best_epoch} of {state.epoch}, validation AUC {metrics['auc']:.4f}, temperature {temperature:.2f}, "
            f"threshold {point.threshold:.3f} ({point.rule}); {duration(sum(r['seconds'] for r in state.history))} of training"
        )
        say(f"curves {storage.join(run, 'curves.png')}, history {storage.join(run, 'history.jsonl')}")
    else:
        digest = json.loads(storage.read_bytes(storage.join(folder, "model.json")))["hash"]
    return FitResult(folder, digest, state.history, state.best_epoch, metrics)


def _provenance(config: TrainConfig, state: TrainState, manifest: pa.Table, metrics: dict[str, Any]) -> dict[str, Any]:
    facts = manifest.schema.metadata or {}
    return {
        "config": as_plain(config),
        "manifest": {
            "fingerprint": state.identity["manifest"],
            "protocol": facts.get(b"protocol", b"").decode() or None,
        },
        "epochs": state.epoch,
        "best_epoch": state.best_epoch,
        "validation": metrics,
        "versions": {name: version(name) for name in ("pneumo_ray", "torch", "torchvision", "ray", "numpy")},
        "platform": platform.platform(),
    }


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
    before = flatten(json.loads(storage.read_bytes(storage.join(run, "train.json"))))
    now = as_flat(config)
    different = [
        name for name in now if before.get(name) != now[name] and name.split(".")[0] not in NOT_PART_OF_THE_RUN
    ]
    if different:
        name = different[0]
        raise ConfigError(
            f"{run} was begun with {name} {before.get(name)} and not {now[name]}; choose another --out, or repeat its command to continue it"
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
