"""Patience means one thing in the schedule and in early stopping: n epochs in a row that are not better, then it acts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumo_ray.errors import ConfigError
from pneumo_ray.train.config import OptimConfig
from pneumo_ray.train.schedules import plateau_schedule

LOSSES = st.lists(st.sampled_from([0.3, 0.29999, 0.5, 0.4, 0.2, 0.1]), min_size=1, max_size=25)


@given(losses=LOSSES, patience=st.integers(1, 5))
@settings(deadline=None, max_examples=200)
def test_the_rate_falls_every_n_bad_epochs(losses: list[float], patience: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = plateau_schedule(optimizer, OptimConfig(plateau_patience=patience, plateau_factor=0.5))
    best, in_a_row, expected = float("inf"), 0, 1.0
    for loss in losses:
        schedule.step(loss)
        in_a_row = 0 if loss < best else in_a_row + 1
        best = min(best, loss)
        if in_a_row and in_a_row % patience == 0:
            expected /= 2
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)


def test_a_patience_of_no_epochs_is_refused() -> None:
    for name in ("plateau_patience", "stop_patience"):
        with pytest.raises(ConfigError, match="must be at least 1"):
            OptimConfig(**{name: 0})
