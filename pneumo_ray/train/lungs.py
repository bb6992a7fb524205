"""Train the lung segmenter on a manifest with masks: the same stream, workers and state as the classifier's training."""

import hashlib
import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from pneumo_ray import storage
from pneumo_ray.anatomy.masks import MASK_COLUMN, MaskError, decode_mask, read_masks, resize_mask
from pneumo_ray.anatomy.measure import measure, measured_lines
from pneumo_ray.anatomy.network import WIDTHS, LungNet
from pneumo_ray.anatomy.objective import dice, mask_loss
from pneumo_ray.anatomy.segmenter import load_segmenter, save_segmenter
from pneumo_ray.cli import as_plain, save_config
from pneumo_ray.console import duration, progress, say
from pneumo_ray.data.manifest import fingerprint, read_manifest, refuse_leakage
from pneumo_ray.data.pixels import CACHE_SIZE, load_squares
from pneumo_ray.data.prepare import cache_of
from pneumo_ray.data.stream import PADDING, Schedule
from pneumo_ray.errors import ClusterError, ConfigError, ManifestError, PneumoError
from pneumo_ray.model.precision import amp_dtype, autocast
from pneumo_ray.train.capacity import wait_for_cluster
from pneumo_ray.train.config import ScalingConfig
from pneumo_ray.train.launch import Place, run_workers
from pneumo_ray.train.loop import DivergedError, tickets_of, use_threads
from pneumo_ray.train.lung_source import LungSource, draw_phantoms, load_masks
from pneumo_ray.train.monitor import Monitor, RemoteMonitor
from pneumo_ray.train.state import TrainState, load_state, save_state

_PLACES = ("manifest", "masks", "out", "scaling")
"""Options that say where, which stay out of what is shipped."""


@dataclass(frozen=True)
class LungsConfig:
    """Train the lung segmenter; the same command continues an interrupted run."""

    manifest: str
    """manifest.parquet from jobs/prepare.py; its split says who trains and who is held out."""
    masks: str
    """Parquet table with image_id and mask_png, or a folder of PNG files named as the images."""
    out: str
    """Folder of the run: lungs.safetensors, dice.json, state/."""
    phantoms: int = 600
    """Phantom chests with true lungs that are mixed among the images."""
    batch_size: int = 32
    """Images of one optimiser step, over all workers."""
    epochs: int = 12
    """Epochs of the one-cycle schedule."""
    lr: float = 4e-3
    """Highest learning rate of AdamW, after a fifth of the run."""
    weight_decay: float = 1e-3
    """Decoupled weight decay of AdamW."""
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Mixed precision: auto takes bfloat16 where the device has it, else float16 on a GPU, else none."""
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    seed: int = 0
    """Of weights, order and augmentation."""
    measure: tuple[Literal["val", "test"], ...] = ("val",)
    """Splits that dice.json is about; the test folder is for one look at the end."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "lr"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name.replace('_', '-')} must be positive, got {getattr(self, name)}")
        if self.phantoms < 0 or self.weight_decay < 0:
            raise ConfigError("phantoms and weight-decay must not be negative")
        if self.batch_size < self.scaling.max_workers:
            raise ConfigError(f"batch-size {self.batch_size} has no image for some workers; raise it")


@dataclass(frozen=True)
class _Job:
    """Arguments shared by all workers."""

    config: LungsConfig
    run: str
    schedule: Schedule
    """Of a run with the fewest workers; there may be more."""
    identity: dict[str, Any]
    monitor: Monitor


def fit_lungs(config: LungsConfig) -> dict[str, Any]:
    """Train, or continue, then measure; return what dice.json holds. Needs a running Ray.

    Raises:
        PneumoError: one sentence about what cannot work, before anything is trained.
    """
    run = storage.absolute(config.out)
    manifest = read_manifest(config.manifest)
    refuse_leakage(manifest)
    rows = _with_masks(manifest, config.masks)
    parts = {name: rows.filter(pc.equal(rows["split"], name)).combine_chunks() for name in ("train", "val", "test")}
    for name in dict.fromkeys(("train", "val", *config.measure)):
        if not len(parts[name]):
            raise ManifestError(f"no image of split {name} of {config.manifest} has a mask; the segmenter needs some")
    identity = _identity(config, manifest, rows)
    state = load_state(run)
    if state is not None and state.identity != identity:
        raise ConfigError(f"{run} was begun with other images, masks or options; choose another --out")
    if state is None or state.epoch < config.epochs:
        say(
            f"training the lung segmenter on {len(parts['train']):,} images and {config.phantoms:,} phantoms, "
            f"validating on {len(parts['val']):,} images of other patients"
        )
        if state is not None:
            say(f"continuing after epoch {state.epoch}")
        place = Place(
            wait_for_cluster(config.scaling), RemoteMonitor(), None, in_process=False, tell=_Lines(config.epochs)
        )
        storage.require_writable(run)
        save_config(config, storage.join(run, "lungs.json"))
        source = LungSource(
            parts["train"],
            parts["val"],
            *draw_phantoms(config.phantoms),
            config.seed,
            config.batch_size,
            cache_of(manifest, config.manifest),
        )
        job = _Job(config, run, source.schedule(config.scaling.min_workers), identity, place.monitor)
        run_workers(_train_worker, job, source, config.epochs, config.scaling, run, place)
        state = load_state(run)
        assert state is not None, "the trainer ended well without a saved state"
    return _write(config, run, state, parts, cache_of(manifest, config.manifest))


def _with_masks(manifest: pa.Table, uri: str) -> pa.Table:
    """Return the readable rows of a manifest that have a mask, with the column `mask_png`.

    Raises:
        ManifestError: if the masks cannot be read, or one of them is none.
    """
    rows = manifest.filter(pc.equal(manifest["status"], "ok"))
    masks = read_masks(uri, rows["image_id"].to_pylist())
    for image_id, png in zip(rows["image_id"].to_pylist(), masks, strict=True):
        try:
            if png is not None:
                decode_mask(png)
        except MaskError as error:
            raise ManifestError(
                f"--masks {uri}: the mask of {image_id} {error}; leave it out or write it again"
            ) from error
    rows = rows.append_column(MASK_COLUMN, pa.array(masks, pa.binary()))
    return rows.filter(pc.is_valid(rows[MASK_COLUMN]))


def _identity(config: LungsConfig, manifest: pa.Table, rows: pa.Table) -> dict[str, Any]:
    masks = hashlib.sha256()
    for png in rows[MASK_COLUMN].to_pylist():
        masks.update(hashlib.sha256(png).digest())
    options = {
        name: getattr(config, name) for name in ("phantoms", "batch_size", "epochs", "lr", "weight_decay", "seed")
    }
    return {"manifest": fingerprint(manifest), "masks": masks.hexdigest(), **options}


class _Lines:
    """Prints the record of an epoch."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs

    def __call__(self, record: dict[str, Any]) -> None:
        left = (self._epochs - record["epoch"]) * record["seconds"]
        say(
            f"epoch {record['epoch']:>3}/{self._epochs}  loss {record['train_loss']:.4f}  val Dice {record['val_dice']:.4f}  "
            f"lr {record['lr']:.1e}  {record['images_per_second']:.0f} img/s  "
            + (f"{duration(left)} left" if left else "done")
        )


def _train_worker(settings: dict[str, Any]) -> None:
    job: _Job = settings["job"]
    if job.monitor.failure() is not None:
        return  # Ray Train restarts a failed group without asking why it failed
    try:
        _train(job)
    except PneumoError as error:
        job.monitor.fail(error)
        raise


def _train(job: _Job) -> None:
    config, context = job.config, ray.train.get_context()
    rank, schedule = context.get_world_rank(), replace(job.schedule, world_size=context.get_world_size())
    device = ray.train.torch.get_device()
    use_threads(device, config.scaling.threads_per_worker)
    state = load_state(job.run)
    first_epoch = state.epoch if state else 0
    if first_epoch >= config.epochs:
        return
    attempts = job.monitor.begin(first_epoch, schedule.world_size) if rank == 0 else 0
    if config.scaling.max_failures and attempts > config.scaling.max_failures + 1:
        raise ClusterError(
            f"workers died {attempts - 1} times in epoch {first_epoch + 1}, most likely for want of memory; what is "
            "finished is kept, so repeat the command with more --scaling.num-workers, or with more memory"
        )
    learner = _Learner(job, schedule, device)
    state = learner.restored(state) if state else learner.fresh_state()
    with closing(tickets_of(rank, schedule, first_epoch, ("pixels", "mask", "row"))) as tickets:
        for epoch in range(first_epoch, config.epochs):
            start = time.monotonic()
            loss = learner.train_epoch(tickets, epoch, rank)
            trained = time.monotonic()
            overlap = learner.validate(tickets)
            record = {
                "epoch": epoch + 1,
                "train_loss": loss,
                "val_dice": overlap,
                "lr": float(learner.optimizer.param_groups[0]["lr"]),
                "images_per_second": schedule.train_slots / (trained - start),
                "seconds": time.monotonic() - start,
            }
            learner.advance(state, record)
            if rank == 0:
                save_state(job.run, state)
                job.monitor.finish_epoch(record)
            ray.train.report(record)  # a barrier for all ranks, after the state was saved


class _Learner:
    """The network, its optimiser and schedule, and how they move through an epoch."""

    def __init__(self, job: _Job, schedule: Schedule, device: torch.device) -> None:
        config = job.config
        self.job, self.schedule, self.device = job, schedule, device
        torch.manual_seed(config.seed)
        self.net = LungNet(WIDTHS).to(device).to(memory_format=torch.channels_last)
        self.forward: Any = ray.train.torch.prepare_model(self.net, move_to_device=False)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, config.lr, total_steps=config.epochs * schedule.train_steps, pct_start=0.2
        )
        self.dtype = amp_dtype(config.amp, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def fresh_state(self) -> TrainState:
        """Return the state before the first epoch."""
        return TrainState(0, {}, {}, {}, {}, {}, -1, math.inf, {}, 0, False, self.job.identity)

    def restored(self, state: TrainState) -> TrainState:
        """Continue from a state, and return it."""
        self.net.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        self.scheduler.load_state_dict(state.scheduler)
        self.scaler.load_state_dict(state.scaler)
        return state

    def train_epoch(self, tickets: Iterator[dict[str, np.ndarray]], epoch: int, rank: int) -> float:
        """Take every optimiser step of an epoch; return the mean training loss over all workers.

        Raises:
            DivergedError: if the loss is not finite at the end of the epoch.
        """
        schedule = self.schedule
        self.forward.train()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for step in range(schedule.train_steps):
            batch = next(tickets)
            real = batch["row"] != PADDING
            masks = torch.from_numpy(batch["mask"][real]).to(self.device).float() / 255
            with autocast(self.dtype, self.device):
                logits = self.forward(torch.from_numpy(batch["pixels"][real]).to(self.device))
            # The workers' gradients are averaged; so weighted, that is the gradient of the mean over the global batch.
            loss = mask_loss(logits.float(), masks) * (len(masks) * schedule.world_size / schedule.batch_size)
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.scheduler.step()
            total += loss.detach()
            if rank == 0:
                self.job.monitor.step(epoch, step + 1, schedule.train_steps)
        mean = total / schedule.train_steps
        if dist.is_initialized():
            dist.all_reduce(mean)
            mean /= schedule.world_size
        if not math.isfinite(float(mean)):
            raise DivergedError(f"the loss is {float(mean)} in epoch {epoch + 1}; lower --lr and choose another --out")
        return float(mean)

    def validate(self, tickets: Iterator[dict[str, np.ndarray]]) -> float:
        """Return the mean Dice of all validation images, on every rank."""
        if dist.is_initialized():
            # Ranks hold BatchNorm statistics of their own shards; the ones that are saved are rank 0's.
            for buffer in self.net.buffers():
                dist.broadcast(buffer, src=0)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        self.net.eval()
        for _ in range(self.schedule.val_steps):
            batch = next(tickets)
            real = batch["row"] != PADDING
            if real.any():
                with torch.inference_mode(), autocast(self.dtype, self.device):
                    found = self.net(torch.from_numpy(batch["pixels"][real]).to(self.device)) > 0
                total += dice(found.cpu().numpy(), batch["mask"][real] >= 128).sum()
        if dist.is_initialized():
            dist.all_reduce(total)  # every image is on exactly one rank
        return float(total) / self.schedule.num_val

    def advance(self, state: TrainState, record: dict[str, Any]) -> None:
        """Bring the state to the end of an epoch."""
        loss = 1 - record["val_dice"]
        state.model = {name: tensor.detach().cpu().clone() for name, tensor in self.net.state_dict().items()}
        if loss < state.best_loss:
            state.best, state.best_epoch, state.best_loss, state.bad_epochs = state.model, record["epoch"], loss, 0
        else:
            state.bad_epochs += 1
        state.epoch = record["epoch"]
        state.optimizer, state.scheduler = self.optimizer.state_dict(), self.scheduler.state_dict()
        state.scaler = self.scaler.state_dict()
        state.history = [*state.history, record]


def _write(
    config: LungsConfig, run: str, state: TrainState, parts: dict[str, pa.Table], cache_folder: str | None
) -> dict[str, Any]:
    """Write the segmenter of the best epoch, and what it was measured at."""
    network = LungNet(WIDTHS)
    network.load_state_dict(state.best)
    provenance = {
        "images": len(parts["train"]),
        "phantoms": config.phantoms,
        "epoch": state.best_epoch,
        "val_dice": 1 - state.best_loss,
        "options": {name: value for name, value in as_plain(config).items() if name not in _PLACES},
        "torch": torch.__version__,
    }
    path = storage.join(run, "lungs.safetensors")
    save_segmenter(path, network, provenance)
    segmenter = load_segmenter(path)
    mean_mask = load_masks(parts["train"]).mean(axis=0) >= 127.5
    facts: dict[str, Any] = {"hash": segmenter.hash, "provenance": provenance, "splits": {}}
    for split in config.measure:
        rows = parts[split]
        with progress(f"measuring {split}", None) as tick:
            facts["splits"][split] = measure(
                segmenter,
                load_squares(rows, CACHE_SIZE, cache_folder),
                [resize_mask(decode_mask(png), CACHE_SIZE) for png in rows[MASK_COLUMN].to_pylist()],
                rows["image_id"].to_pylist(),
                rows["label"].to_pylist(),
                mean_mask,
                tick,
            )
        for line in measured_lines(split, facts["splits"][split]):
            say(line)
    storage.write_json(facts, storage.join(run, "dice.json"))
    say(f"wrote {path}")
    return facts
