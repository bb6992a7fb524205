"""Train the lung segmenter on a manifest with masks: the same stream, workers and state as the classifier's training."""

import hashlib
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc
import torch

from pneumo_ray import storage
from pneumo_ray.anatomy.lungs import PLAUSIBLE, lung_quality
from pneumo_ray.anatomy.masks import MASK_COLUMN, decode_mask, resize_mask
from pneumo_ray.anatomy.measure import measure, measured_lines
from pneumo_ray.anatomy.network import WIDTHS, LungNet
from pneumo_ray.anatomy.segmenter import load_segmenter, save_segmenter
from pneumo_ray.config import as_plain
from pneumo_ray.console import duration, log, progress
from pneumo_ray.data.dataset import CACHE_SIZE, load_squares
from pneumo_ray.data.find_lungs import given_mask, read_given
from pneumo_ray.data.lungs import shapes
from pneumo_ray.data.manifest import fingerprint, read_manifest, refuse_leakage
from pneumo_ray.data.prepare import cache_of
from pneumo_ray.errors import ManifestError
from pneumo_ray.records import JsonObject
from pneumo_ray.run_folder import RunFolder
from pneumo_ray.train.lung_config import LungsConfig
from pneumo_ray.train.lung_source import LungSource, draw_phantoms, load_masks
from pneumo_ray.train.lung_worker import LungJob, train_lungs_worker
from pneumo_ray.train.records import LungEpochRecord
from pneumo_ray.train.state import TrainState, load_state
from pneumo_ray.train.workers import Reservation, run_workers, whole_cluster

OPTION = "--masks"

_PLACES = ("manifest", "masks", "out", "scaling")
"""Options that name places, which the shipped file leaves out."""


def fit_lungs(config: LungsConfig) -> JsonObject:
    """Train, or continue, then measure; return what dice.json holds. Needs a running Ray.

    Raises:
        PneumoError: the reason in one sentence, before anything is trained.
    """
    folder = RunFolder(storage.absolute(config.out), "lungs.json")
    manifest = read_manifest(config.manifest)
    refuse_leakage(manifest)
    rows = with_masks(manifest, config.masks)
    parts = {name: rows.filter(pc.equal(rows["split"], name)).combine_chunks() for name in ("train", "val", "test")}
    for name in dict.fromkeys(("train", "val", *config.measure)):
        if not len(parts[name]):
            raise ManifestError(f"no image of split {name} of {config.manifest} has a mask; the segmenter needs some")
    identity = _identity(config, manifest, rows)
    with folder.held():
        state = load_state(folder.out)
        if state is not None:
            folder.refuse_other("a run on other images, masks or options", state.identity, identity)
        if state is None or state.epoch < config.epochs:
            state = _train_from(config, folder, state, identity, parts, cache_of(manifest, config.manifest))
        return _write(config, folder.out, state, parts, cache_of(manifest, config.manifest))


def _train_from(
    config: LungsConfig,
    folder: RunFolder,
    state: TrainState | None,
    identity: JsonObject,
    parts: dict[str, pa.Table],
    cache_folder: str | None,
) -> TrainState:
    """Train from a state, or from the beginning, to the last epoch."""
    log(
        f"training the lung segmenter on {len(parts['train']):,} images and {config.phantoms:,} phantoms, "
        f"validating on {len(parts['val']):,} images of other patients"
    )
    if state is not None:
        log(f"continuing after epoch {state.epoch}")
    reservation: Reservation[LungEpochRecord] = whole_cluster(
        config.scaling, lambda record: log(_line(record, config.epochs))
    )
    folder.write(as_plain(config))
    source = LungSource(
        parts["train"], parts["val"], *draw_phantoms(config.phantoms), config.seed, config.batch_size, cache_folder
    )
    job = LungJob(config, folder.out, source.schedule(config.scaling.min_workers), identity, reservation.monitor)
    run_workers(train_lungs_worker, job, source, config.epochs, config.scaling, folder.out, reservation)
    trained = load_state(folder.out)
    assert trained is not None, "the trainer ended without a saved state"
    return trained


def with_masks(manifest: pa.Table, uri: str) -> pa.Table:
    """Return the readable rows of a manifest that have a mask, with the column `mask_png`.

    Masks that cannot be two lungs are taken as they are, since an image without lungs may have an empty one, and counted
    in the log.

    Raises:
        ManifestError: if the masks cannot be read, or one of them is none or has another shape than its image.
    """
    rows = manifest.filter(pc.equal(manifest["status"], "ok"))
    names, widths, heights = (rows[name].to_pylist() for name in ("image_id", "width", "height"))
    given = read_given(uri, names, OPTION)
    qualities: Counter[str] = Counter()
    for one, shape, image_id, width, height in zip(given, shapes(rows), names, widths, heights, strict=True):
        if one.mask is not None:
            true = one._replace(width=one.width or shape.width, height=one.height or shape.height)
            qualities[lung_quality(given_mask(true, image_id, width, height, OPTION))] += 1
    doubtful = {name: count for name, count in qualities.most_common() if name != PLAUSIBLE}
    if doubtful:
        kinds = ", ".join(f"{count:,} {name}" for name, count in doubtful.items())
        log(
            f"warning: {sum(doubtful.values()):,} of {sum(qualities.values()):,} masks cannot be the two lungs of a frontal chest "
            f"({kinds}); they are taken as they are"
        )
    rows = rows.append_column(MASK_COLUMN, pa.array([one.mask for one in given], pa.binary()))
    return rows.filter(pc.is_valid(rows[MASK_COLUMN]))


def _identity(config: LungsConfig, manifest: pa.Table, rows: pa.Table) -> JsonObject:
    masks = hashlib.sha256()
    for png in rows[MASK_COLUMN].to_pylist():
        masks.update(hashlib.sha256(png).digest())
    options = {
        name: getattr(config, name) for name in ("phantoms", "batch_size", "epochs", "lr", "weight_decay", "seed")
    }
    return {"manifest": fingerprint(manifest), "masks": masks.hexdigest(), **options}


def _line(record: LungEpochRecord, epochs: int) -> str:
    left = (epochs - record.epoch) * record.seconds
    ending = f"{duration(left)} left" if left else "done"
    return (
        f"epoch {record.epoch:>3}/{epochs}  loss {record.train_loss:.4f}  val Dice {record.val_dice:.4f}  "
        f"lr {record.lr:.1e}  {record.images_per_second:.0f} img/s  {ending}"
    )


def _write(
    config: LungsConfig, run: str, state: TrainState, parts: dict[str, pa.Table], cache_folder: str | None
) -> JsonObject:
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
    facts: JsonObject = {"hash": segmenter.hash, "provenance": provenance, "splits": {}}
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
            log(line)
    storage.write_json(facts, storage.join(run, "dice.json"))
    log(f"wrote {path}")
    return facts
