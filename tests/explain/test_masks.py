"""Masks: every pass is an ordinary dropout mask, groups are balanced, and their spread is the error of the whole."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumo_ray.explain.masks import draw_masks, group_sizes


@given(passes=st.integers(2, 500))
@settings(deadline=None)
def test_groups_are_of_nearly_equal_size(passes: int) -> None:
    sizes = group_sizes(passes)
    assert sum(sizes) == passes
    assert len(sizes) == min(10, passes)
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("passes", "rate"), [(200, 0.5), (20, 0.5), (20, 0.2), (7, 0.7), (200, 0.33)])
def test_every_pass_drops_each_channel_at_the_rate(passes: int, rate: float) -> None:
    """Over 4,000 channels, each pass is binomial; two channels are independent; five standard errors are allowed."""
    masks = draw_masks(passes, 4000, rate, torch.Generator().manual_seed(1))
    assert masks.unique().tolist() == pytest.approx([0, 1 / (1 - rate)])
    kept = (masks > 0).double()
    assert (kept.mean(1) - (1 - rate)).abs().max() < 5 * (rate * (1 - rate) / 4000) ** 0.5
    pairs = (kept[:, ::2] * kept[:, 1::2]).mean(1) - (1 - rate) ** 2
    assert pairs.abs().max() < 5 * ((1 - rate) ** 2 / 2000) ** 0.5


@pytest.mark.parametrize(("passes", "rate"), [(200, 0.5), (20, 0.5), (200, 0.2), (200, 0.33)])
def test_a_group_keeps_channels_equally_often(passes: int, rate: float) -> None:
    masks = draw_masks(passes, 300, rate, torch.Generator().manual_seed(2))
    for group in masks.split(group_sizes(passes)):
        expected = len(group) * (1 - rate)
        count = (group > 0).sum(0)
        assert count.min() >= np.floor(expected + 1e-9)
        assert count.max() <= np.ceil(expected - 1e-9)


def rectified(masks: torch.Tensor, weight: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Mean over n images of ReLU(sum_k w_k z_tk a_ik), [T]."""
    return ((masks * weight) @ features.T).relu().mean(1)


def test_stratified_masks_have_a_smaller_known_error() -> None:
    """400 seeds: the spread of a class mean between seeds, and what the groups of one seed say of it."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(128, generator=generator) + 0.1
    features = torch.rand(50, 128, generator=generator)
    balanced, independent, said = [], [], []
    for seed in range(400):
        masks = draw_masks(200, 128, 0.5, torch.Generator().manual_seed(seed))
        groups = torch.stack([rectified(g, weight, features).mean() for g in masks.split(group_sizes(200))])
        balanced.append(groups.mean().item())
        said.append(groups.var().item() / 10)
        coins = (torch.rand(200, 128, generator=torch.Generator().manual_seed(seed)) >= 0.5).float() * 2
        independent.append(rectified(coins, weight, features).mean().item())
    truth = np.mean(independent)
    assert np.mean(balanced) == pytest.approx(truth, abs=4 * np.std(independent) / 20)
    assert np.std(balanced) < 0.7 * np.std(independent)
    # The relative error of a variance from 400 values is 7 %.
    assert np.mean(said) == pytest.approx(np.var(balanced), rel=0.25)
