"""Records of epochs and the states that hold them, of this version and of earlier ones: no Ray, no training."""

import io
import json
import tracemalloc

import torch

from pneumo_ray.train.records import EpochRecord
from pneumo_ray.train.state import TrainState, load_state, save_state
from pneumo_ray.train.trackers import write_history

LINE = {
    "epoch": 1,
    "train_loss": 0.5,
    "val_loss": 0.4,
    "val_auc": 0.9,
    "val_accuracy": 0.8,
    "lr": 1e-4,
    "images_per_second": 100.0,
    "seconds": 2.5,
    "workers": 2,
    "outside_share": 0.3,
    "best": True,
    "stopped": False,
    "loss_scaled": 0.35,
}
"""A line of history.jsonl as earlier versions wrote it, of a run whose validation images have no lungs."""


def state(history: list) -> TrainState:
    return TrainState(1, {}, {}, {}, {}, {}, 1, 0.4, {}, 0, False, {"manifest": "m"}, history)


def test_a_history_is_written_as_before(tmp_path):
    write_history(str(tmp_path), [EpochRecord.from_values(LINE)])
    assert (tmp_path / "history.jsonl").read_text() == json.dumps(LINE) + "\n"


def test_a_state_is_written_without_a_copy(tmp_path):
    kept = state([])
    kept.model = {"weight": torch.ones(1 << 22)}
    save_state(str(tmp_path / "before"), kept)  # what is imported and cached
    tracemalloc.start()
    try:
        save_state(str(tmp_path / "run"), kept)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 22, "the weights are four times that"
    assert torch.equal(load_state(str(tmp_path / "run")).model["weight"], kept.model["weight"])


def test_a_state_keeps_its_history(tmp_path):
    history = [EpochRecord.from_values(LINE)]
    save_state(str(tmp_path), state(history))
    assert load_state(str(tmp_path)).history == history


def test_states_of_earlier_versions_load(tmp_path):
    """They hold plain dictionaries: newer fields, older gaps, and the epochs of the lung segmenter."""
    older = {name: LINE[name] for name in LINE if name not in ("workers", "val_accuracy", "loss_scaled")}
    lungs = {"epoch": 1, "train_loss": 0.5, "val_dice": 0.9, "lr": 1e-3, "images_per_second": 9.0, "seconds": 1.0}
    for line, expected in ((LINE | {"unknown": 1}, [LINE]), (older, [older]), (lungs, [])):
        buffer = io.BytesIO()
        torch.save(vars(state([line])), buffer)
        (tmp_path / "state").mkdir(exist_ok=True)
        (tmp_path / "state" / "epoch-00001.pt").write_bytes(buffer.getvalue())
        assert [record.values() for record in load_state(str(tmp_path)).history] == expected
