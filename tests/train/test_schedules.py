"""The learning rate of every step against torch's own schedules, and its resumption."""

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from pneumo_ray.errors import ConfigError
from pneumo_ray.train.config import OptimConfig, TrainConfig
from pneumo_ray.train.schedules import RateSchedule

STEPS, EPOCHS = 10, 4


def sgd(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def rates(optim: OptimConfig, losses: list[float] | None = None, stop_after: int | None = None) -> list[float]:
    """Return the rate of every step; after `stop_after` epochs a new process continues."""
    optimizer = sgd(optim.lr)
    schedule = RateSchedule(optimizer, optim, STEPS, EPOCHS)
    found = []
    for epoch in range(EPOCHS):
        if epoch == stop_after:
            saved, weights = schedule.state(), optimizer.state_dict()
            optimizer = sgd(optim.lr)
            schedule = RateSchedule(optimizer, optim, STEPS, EPOCHS)
            optimizer.load_state_dict(weights)
            schedule.restore(saved)
        for step in range(STEPS):
            schedule.before_step(epoch * STEPS + step)
            found.append(schedule.lr)
        schedule.end_epoch(losses[epoch] if losses else 1.0 - 0.1 * epoch)
    return found


def of_torch(optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler) -> list[float]:
    found = []
    for _ in range(STEPS * EPOCHS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.filterwarnings("ignore:Detected call of")
def test_one_cycle_is_torchs():
    optimizer = sgd(1.0)
    cycle = OneCycleLR(optimizer, max_lr=0.3, total_steps=STEPS * EPOCHS, cycle_momentum=False)
    assert rates(OptimConfig(lr=0.3, schedule="onecycle")) == pytest.approx(of_torch(optimizer, cycle), rel=1e-9)
    optimizer = sgd(1.0)
    cycle = OneCycleLR(optimizer, max_lr=0.3, total_steps=STEPS * EPOCHS, cycle_momentum=False, pct_start=0.25)
    assert rates(OptimConfig(lr=0.3, schedule="onecycle", warmup=1.0)) == pytest.approx(of_torch(optimizer, cycle))


def test_cosine_is_torchs():
    optimizer = sgd(0.3)
    cosine = CosineAnnealingLR(optimizer, T_max=STEPS * EPOCHS)
    assert rates(OptimConfig(lr=0.3, schedule="cosine")) == pytest.approx(of_torch(optimizer, cosine), rel=1e-9)


def test_cosine_rises_in_a_straight_line_first():
    found = rates(OptimConfig(lr=0.3, schedule="cosine", warmup=0.5))
    assert found[:5] == pytest.approx([0.06, 0.12, 0.18, 0.24, 0.3])
    assert found[5] == pytest.approx(0.3)
    assert max(found) == pytest.approx(0.3)
    assert found[5:] == sorted(found[5:], reverse=True)


def test_a_plateau_after_a_warm_up():
    """Losses stand still from the second epoch on: the rate is halved after the third and the fourth."""
    found = rates(OptimConfig(lr=0.8, warmup=1.5, plateau_patience=1), losses=[1.0, 1.0, 1.0, 1.0])
    assert found[:10] == pytest.approx([0.8 * (step + 1) / 15 for step in range(10)])
    assert found[10:15] == pytest.approx([0.8 * (step + 1) / 15 for step in range(10, 15)])
    assert found[15:20] == pytest.approx([0.8] * 5)
    assert found[20:30] == pytest.approx([0.4] * 10)
    assert found[30:] == pytest.approx([0.2] * 10)


@pytest.mark.parametrize("schedule", ["plateau", "cosine", "onecycle"])
@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_run_that_continues_has_the_same_rates(schedule, stop_after):
    optim = OptimConfig(lr=0.8, schedule=schedule, warmup=1.5, plateau_patience=1)
    losses = [1.0, 1.0, 0.5, 0.7]
    assert rates(optim, losses, stop_after) == rates(optim, losses)


def test_the_papers_rate_is_constant_within_epochs():
    assert rates(OptimConfig()) == [1e-4] * STEPS * EPOCHS


@pytest.mark.parametrize("changes", [{"schedule": "step"}, {"warmup": -1.0}, {"ema": 1.0}, {"ema": -0.1}])
def test_schedules_that_cannot_be_are_refused(changes):
    with pytest.raises(ConfigError, match=f"optim.{next(iter(changes))}"):
        OptimConfig(**changes)


def test_a_warm_up_that_leaves_nothing_is_refused():
    with pytest.raises(ConfigError, match="leaves nothing of 3"):
        TrainConfig("m", "o", optim=OptimConfig(schedule="cosine", warmup=3), epochs=3)
