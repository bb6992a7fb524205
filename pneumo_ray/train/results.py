"""Results of a run: calibrate on validation, write the bundle, the curves and the history."""

import json
import platform
from dataclasses import dataclass
from importlib.metadata import version

import pyarrow as pa

from pneumo_ray import storage
from pneumo_ray.config import as_plain
from pneumo_ray.console import duration, log
from pneumo_ray.data.lungs import segmenter_of
from pneumo_ray.data.manifest import usable
from pneumo_ray.data.soft_labels import SoftLabels
from pneumo_ray.data.support import support_of
from pneumo_ray.evaluate.calibration import tells_nothing
from pneumo_ray.evaluate.curves import learning_figure
from pneumo_ray.evaluate.drawing import save_figure
from pneumo_ray.evaluate.metrics import classification_metrics
from pneumo_ray.evaluate.operating_point import choose_operating_point
from pneumo_ray.evaluate.soft_scores import soft_brier, soft_log_loss
from pneumo_ray.images.augment import base_size
from pneumo_ray.model import PneumoniaNet, Preprocessing, save_bundle
from pneumo_ray.records import JsonObject, json_of
from pneumo_ray.train.config import TrainConfig
from pneumo_ray.train.records import EpochRecord
from pneumo_ray.train.state import TrainState
from pneumo_ray.train.trackers import write_history
from pneumo_ray.train.validation import Floats, calibrated


@dataclass(frozen=True)
class FitResult:
    """Summary of a finished run."""

    model: str
    """Folder of the bundle."""
    model_hash: str
    history: list[EpochRecord]
    best_epoch: int
    validation: JsonObject
    """Metrics on the validation images at the operating point, calibrated."""


def preprocessing(config: TrainConfig) -> Preprocessing:
    """Return how images become the network's input in this run, whose `data.fit` has been decided."""
    data = config.data
    assert data.fit != "auto", "the manifest decides before anything else is done"
    return Preprocessing(
        image_size=data.image_size, resize_size=base_size(data.image_size), fit=data.fit, margin=data.margin
    )


def write_results(config: TrainConfig, run: str, state: TrainState, manifest: pa.Table) -> None:
    """Calibrate and choose the operating point on validation, then write the bundle, the curves and the history."""
    logits, labels = state.applied_logits, state.labels
    calibration, prob = calibrated(logits, labels, state.soft)
    if tells_nothing(calibration, logits):
        log(
            "warning: on validation the network is no better than chance, so its calibrated probabilities are all near the "
            "share of pneumonia there"
        )
    point = choose_operating_point(prob, labels, config.operating_point)
    metrics = classification_metrics(labels, prob, point.threshold)
    write_history(run, state.history)
    net = PneumoniaNet(config.model)
    net.load_state_dict(state.best)
    save_figure(learning_figure([record.values() for record in state.history]), run, "curves")
    folder = storage.join(run, "model")
    save_bundle(
        folder,
        net,
        preprocessing=preprocessing(config),
        temperature=calibration.temperature,
        intercept=calibration.intercept,
        operating_point=point.to_dict(),
        provenance=_provenance(config, state, manifest, json_of(metrics) | _against_readers(state.soft, prob)),
    )
    log(
        f"wrote {folder}: epoch {state.best_epoch} of {state.epoch}, validation AUC {metrics.auc:.4f}, "
        f"temperature {calibration.temperature:.2f}, intercept {calibration.intercept:+.2f}, threshold {point.threshold:.3f} ({point.rule}), "
        f"{duration(sum(record.seconds for record in state.history))} of training"
    )
    log(f"curves {storage.join(run, 'curves.png')}, history {storage.join(run, 'history.jsonl')}")


def read_result(run: str, state: TrainState) -> FitResult:
    """Return the summary of a finished run from its bundle."""
    description = _described(run)
    assert description is not None
    provenance = description["provenance"]
    return FitResult(
        storage.join(run, "model"), description["hash"], state.history, state.best_epoch, provenance["validation"]
    )


def _described(run: str) -> JsonObject | None:
    """Return model.json of a run, or None if it has no bundle yet."""
    uri = storage.join(run, "model", "model.json")
    if not storage.exists(uri):
        return None
    description: JsonObject = json.loads(storage.read_bytes(uri))
    return description


def is_written(config: TrainConfig, run: str, state: TrainState) -> bool:
    """Whether the bundle is that of this state and this rule for the operating point."""
    provenance = (_described(run) or {}).get("provenance", {})
    rule = provenance.get("config", {}).get("operating_point")
    return provenance.get("epochs") == state.epoch and rule == as_plain(config.operating_point)


def _against_readers(soft: SoftLabels | None, prob: Floats) -> JsonObject:
    """Return the proper scores of validation against soft labels, where they are learned."""
    if soft is None:
        return {}
    return {
        "soft_log_loss": soft_log_loss(prob, soft.target, soft.weight),
        "soft_brier": soft_brier(prob, soft.target, soft.weight),
    }


def _provenance(config: TrainConfig, state: TrainState, manifest: pa.Table, validation: JsonObject) -> JsonObject:
    facts = manifest.schema.metadata or {}
    return {
        "config": as_plain(config),
        "manifest": {
            "fingerprint": state.identity["manifest"],
            "protocol": facts.get(b"protocol", b"").decode() or None,
            "segmenter": segmenter_of(manifest),
        },
        "support": support_of(usable(manifest, "train")).to_plain(),
        "epochs": state.epoch,
        "best_epoch": state.best_epoch,
        "validation": validation,
        "fitted_on": {
            "what": "calibration and threshold, on the mean over the Monte Carlo passes of the validation images",
            "passes": state.applied_logits.shape[1] if state.applied_logits.ndim == 2 else 0,
            "seed": 0,
        },
        "versions": {name: version(name) for name in ("pneumo_ray", "torch", "torchvision", "ray", "numpy")},
        "platform": platform.platform(),
    }
