"""The figures of a study hold its numbers, also where trials diverged: no Ray, no training."""

import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from pneumo_ray.evaluate.drawing import save_figure
from pneumo_ray.tune.comparison import differences
from pneumo_ray.tune.figures import (
    CURVES,
    FOREST,
    MAP,
    best_loss,
    curves_figure,
    forest_figure,
    map_figure,
    study_figures,
)
from pneumo_ray.tune.records import Status, TrialRecord
from pneumo_ray.tune.study import Range, Study

ARMS = Study("arms", "x", arms={"ref": {}, "new": {}, "old": {}}, seeds=3)
SEARCH = Study("search", "x", space={"optim.lr": Range(1e-5, 1e-3), "optim.weight_decay": Range(1e-6, 1e-2)})


def record(
    arm: str, seed: int, losses: list[float], status: Status = "finished", settings: dict | None = None
) -> TrialRecord:
    history = [{"epoch": epoch, "val_loss": loss} for epoch, loss in enumerate(losses, start=1)]
    best = min(losses, default=math.nan)
    metrics = {"val_loss": best, "val_auc": 1 - best / 2, "loss_scaled": best} if losses else {}
    return TrialRecord(f"{arm}-{seed}", arm, seed, settings or {}, status, metrics=metrics, history=history)


def ablation() -> list[TrialRecord]:
    values = {"ref": (0.30, 0.32, 0.37), "new": (0.28, 0.31, 0.33), "old": (0.40, 0.39, 0.45)}
    return [record(arm, seed, [0.7, value]) for seed in range(3) for arm in values for value in [values[arm][seed]]]


def draw(*, lr: float, decay: float, losses: list[float], status: Status = "finished", number: int = 0) -> TrialRecord:
    return record(f"{number:03d}", 0, losses, status, {"optim.lr": lr, "optim.weight_decay": decay})


def named(figure: Figure, gid: str) -> list:
    return [artist for artist in figure.findobj() if artist.get_gid() == gid]


def test_the_forest_plot_shows_the_table():
    records = ablation()
    figure = forest_figure(ARMS, records)
    for metric in ("val_auc", "loss_scaled"):
        for row, arm in enumerate(("new", "old")):
            expected = differences(records, metric, "ref")[arm]
            (interval,), (mean,) = named(figure, f"{metric}-interval-{row}"), named(figure, f"{metric}-mean-{row}")
            assert list(interval.get_xdata()) == [expected.low, expected.high]
            assert list(mean.get_xdata()) == [expected.mean]
            (dots,) = named(figure, f"{metric}-trials-{row}")
            # In a study where every arm has every seed, the paired dots average to the difference.
            assert len(dots.get_offsets()) == 3
            assert np.mean(dots.get_offsets()[:, 0]) == pytest.approx(expected.mean)


def test_a_diverged_trial_costs_its_own_dot_only():
    records = ablation()
    history = [{"epoch": 1, "val_loss": math.nan}]
    records[1] = replace(records[1], status="diverged", metrics={}, history=history)
    records[4] = replace(records[4], metrics={**records[4].metrics, "val_auc": math.nan})
    figure = forest_figure(ARMS, records)
    assert [len(named(figure, f"{metric}-trials-0")[0].get_offsets()) for metric in ("val_auc", "loss_scaled")] == [
        1,
        2,
    ]
    assert len(named(figure, "val_auc-trials-1")[0].get_offsets()) == 3
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["new (1 diverged)", "old"]
    assert not named(curves_figure(ARMS, records), "curve-new-0")


def test_one_seed_or_arm_has_no_plot():
    figure = forest_figure(ARMS, ablation()[:3])
    assert named(figure, "val_auc-mean-0")
    assert not named(figure, "val_auc-interval-0")
    assert "too few seeds" in figure.get_suptitle()
    assert forest_figure(ARMS, [record("ref", 0, [0.3])]) is None
    assert forest_figure(ARMS, [record("new", 0, [0.3])]) is None, "nothing to compare with"
    assert set(study_figures(ARMS, [record("ref", 0, [0.3])])) == {CURVES}


def test_the_map_marks_the_best_draw():
    records = [
        draw(lr=1e-4, decay=1e-3, losses=[0.5, 0.2, 0.3], number=0),
        draw(lr=1e-5, decay=1e-4, losses=[0.6, 0.4], number=1),
        draw(lr=2e-4, decay=1e-5, losses=[9.0], status="stopped", number=2),
        draw(lr=9e-4, decay=1e-2, losses=[], status="diverged", number=3),
    ]
    axes = map_figure(SEARCH, records).axes[0]
    groups = {group.get_label(): group for group in axes.collections}
    assert {label: len(group.get_offsets()) for label, group in groups.items()} == {
        "finished": 2, "stopped early": 1, "diverged or failed": 1, "best, 000-0": 1,
    }  # fmt: skip
    assert groups["best, 000-0"].get_offsets().tolist() == [[1e-4, 1e-3]]
    assert groups["finished"].get_array().tolist() == [0.2, 0.4]
    assert groups["finished"].norm.vmax == 0.4, "a trial that was stopped far off uses up the colours"
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_a_search_without_both_numbers_has_no_map():
    words = [record("000", 0, [0.3], settings={"optim.lr": 1e-4, "balance": "none"})]
    assert set(study_figures(SEARCH, words)) == {CURVES}
    assert map_figure(SEARCH, [draw(lr=1e-4, decay=0.0, losses=[0.3])]) is None, "no logarithm of zero"
    assert map_figure(ARMS, [draw(lr=1e-4, decay=1e-3, losses=[0.3])]) is None


def test_curves_have_a_point_per_epoch():
    records = [record("ref", 0, [0.7, 0.5, 0.4]), record("new", 0, [0.7, math.nan, 0.6, math.inf], "failed")]
    figure = curves_figure(ARMS, records)
    (whole,), (broken,) = named(figure, "curve-ref-0"), named(figure, "curve-new-0")
    assert (list(whole.get_xdata()), list(whole.get_ydata())) == ([1, 2, 3], [0.7, 0.5, 0.4])
    assert (list(broken.get_xdata()), broken.get_linestyle()) == ([1, 3], ":")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ref", "new", "did not finish"]
    assert best_loss(records[1]) == 0.6
    assert curves_figure(ARMS, [record("ref", 0, [], "diverged")]) is None


@pytest.mark.parametrize("status", ["finished", "diverged"])
def test_every_figure_can_be_saved(tmp_path, status):
    records = [
        draw(lr=1e-4, decay=1e-3, losses=[0.5, 0.2]),
        draw(lr=1e-5, decay=1e-3, losses=[], number=1, status=status),
    ]
    for study, found in ((ARMS, ablation()), (SEARCH, records), (SEARCH, records[1:])):
        for name, figure in study_figures(study, found).items():
            save_figure(figure, str(tmp_path), name)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{n}.{end}" for n in (FOREST, MAP, CURVES) for end in ("svg", "png")
    }
