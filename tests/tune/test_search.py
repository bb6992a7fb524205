"""Optuna's draws: in the space, learned from what is over, and kept for a trial that continues. No Ray, no training."""

import json
from dataclasses import replace

import numpy as np

from pneumo_ray.tune.records import TrialRecord
from pneumo_ray.tune.search import OptunaSearch
from pneumo_ray.tune.study import Range, Study, Trial

STUDY = Study(
    "s",
    "x",
    space={
        "optim.lr": Range(1e-6, 1e-1, log=True),
        "augment.crop_area": ((0.5, 1.0), (0.8, 1.0)),
        "balance": ("none", "copies"),
    },
)


def left(folder, names) -> dict:
    return {name: (Trial(name, name, {}, 0), str(folder / name)) for name in names}


def loss(settings) -> float:
    """Least at a rate of 1e-3 with the first choice of all."""
    far = abs(np.log10(settings["optim.lr"]) + 3)
    return float(far + (settings["balance"] != "none") + (list(settings["augment.crop_area"]) != [0.5, 1.0]))


def play(search: OptunaSearch, count: int) -> list[dict]:
    drawn = []
    for number in range(count):
        told = search.suggest(str(number))
        search.on_trial_result(str(number), {"loss_scaled": 9.0, "val_loss": 0.0})
        # What counts is the calibrated loss of the best epoch so far, as the last record has it.
        search.on_trial_result(str(number), {"loss_scaled": loss(told["settings"]), "val_loss": 0.0})
        search.on_trial_complete(str(number), {})
        drawn.append(told["settings"])
    return drawn


def test_draws_stay_in_the_space_and_improve(tmp_path):
    search = OptunaSearch(STUDY, left(tmp_path, [f"{n:03d}" for n in range(60)]), [], seed=0)
    drawn = play(search, 60)
    assert search.suggest("61") is None
    assert all(1e-6 <= settings["optim.lr"] <= 1e-1 for settings in drawn)
    early, late = (np.mean([loss(settings) for settings in part]) for part in (drawn[:10], drawn[-20:]))
    assert late < early / 2
    assert json.loads((tmp_path / "000/draw.json").read_text()) == json.loads(json.dumps(drawn[0]))
    assert search.drawn["000"].settings == drawn[0]


def test_earlier_results_and_options_are_kept(tmp_path):
    drawn = play(OptunaSearch(STUDY, left(tmp_path, [f"{n:03d}" for n in range(40)]), [], seed=0), 40)
    past = [
        TrialRecord("t", "t", 0, settings, "finished", metrics={"loss_scaled": loss(settings), "val_loss": 0.0})
        for settings in json.loads(json.dumps(drawn))
    ]
    past.append(replace(past[0], status="diverged", metrics={}))  # diverged at once
    begun = {"optim.lr": 0.05, "augment.crop_area": [0.8, 1.0], "balance": "copies"}
    (tmp_path / "040").mkdir()
    (tmp_path / "040/draw.json").write_text(json.dumps(begun))
    search = OptunaSearch(STUDY, left(tmp_path, [f"{n:03d}" for n in range(40, 60)]), past, seed=0)
    again = play(search, 20)
    assert again[0] == begun
    fresh = play(OptunaSearch(STUDY, left(tmp_path / "fresh", [f"{n:03d}" for n in range(10)]), [], seed=0), 10)
    assert np.mean([loss(s) for s in again[1:11]]) < 0.75 * np.mean([loss(s) for s in fresh])


def test_a_trial_without_a_loss_teaches_nothing(tmp_path):
    search = OptunaSearch(STUDY, left(tmp_path, ["000", "001"]), [], seed=0)
    search.suggest("a")
    search.on_trial_complete("a", None, error=True)
    assert search.suggest("b")["name"] == "001"
