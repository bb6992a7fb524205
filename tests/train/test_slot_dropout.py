"""Dropout in training: a mask belongs to its slot, whatever batch, worker or process draws it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

from pneumo_ray.model import ModelConfig, PneumoniaNet
from pneumo_ray.model.network import ChannelDropout
from pneumo_ray.train.batches import Schedule
from pneumo_ray.train.slot_dropout import slot_dropout, slot_masks


@given(
    slots=st.lists(st.integers(0, 2**40), min_size=1, max_size=8, unique=True),
    num_units=st.integers(1, 9),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None)
def test_a_slot_has_one_mask_in_any_batch(slots: list[int], num_units: int, seed: int) -> None:
    together = slot_masks(seed, 0, np.array(slots, np.uint64), num_units, 0.5)
    assert together.shape == (len(slots), num_units)
    for row, slot in enumerate(slots):
        assert torch.equal(slot_masks(seed, 0, np.array([slot], np.uint64), num_units, 0.5)[0], together[row])


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.75])
def test_masks_are_independent_coins_of_the_rate(rate: float) -> None:
    """2,000 slots by 512 channels; between slots, neighbouring channels and layers nothing is shared."""
    slots = np.arange(2000, dtype=np.uint64)
    masks = slot_masks(3, 0, slots, 512, rate)
    assert masks.unique().tolist() == pytest.approx([0, 1 / (1 - rate)])
    kept = (masks > 0).double() - (1 - rate)
    sigma = rate * (1 - rate) / (2000 * 512) ** 0.5
    assert abs(kept.mean()) < 5 * (rate * (1 - rate) / (2000 * 512)) ** 0.5
    other = (slot_masks(3, 1, slots, 512, rate) > 0).double() - (1 - rate)
    for shifted in (kept.roll(1, 0), kept.roll(1, 1), kept.roll(256, 1), other):
        assert abs((kept * shifted).mean()) < 5 * sigma
    assert not torch.equal(masks, slot_masks(4, 0, slots, 512, rate))


@pytest.mark.parametrize(("batch_size", "world_size"), [(16, 1), (16, 3), (64, 2), (7, 7)])
def test_ranks_share_slots_without_gap_or_overlap(batch_size: int, world_size: int) -> None:
    schedule = Schedule(5 * batch_size, 3, batch_size, world_size)
    for epoch, step in ((0, 0), (3, 4)):
        parts = [schedule.slots(epoch, step, rank) for rank in range(world_size)]
        first = epoch * 5 * batch_size + step * batch_size
        assert np.concatenate(parts).tolist() == list(range(first, first + batch_size))


@pytest.mark.parametrize("arch", ["resnet18", "densenet121", "vgg16", "inception_v3", "efficientnet_b0"])
@pytest.mark.parametrize("site", ["head", "tail"])
def test_a_training_step_draws_nothing_from_the_process(arch: str, site: str) -> None:
    """Else the number of workers would change what a network is trained with."""
    size = 75 if arch == "inception_v3" else 32
    net = PneumoniaNet(ModelConfig(arch, "none", 0.5, site)).train()  # type: ignore[arg-type]
    x = torch.randn(2, 3, size, size)
    before = torch.get_rng_state()
    with slot_dropout(net, 0) as draw, torch.no_grad():
        draw(np.array([4, 5], np.uint64))
        net(x)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(layer.mask is None for layer in net.dropouts())


def test_a_compiled_network_takes_each_steps_masks() -> None:
    """One compilation serves all steps, and none keeps the masks that it was compiled with."""
    layer, counter = ChannelDropout(0.5, 8), CompileCounter()
    compiled, x = torch.compile(layer.train(), backend=counter), torch.randn(4, 8)
    for step in range(4):
        layer.mask = slot_masks(0, 0, np.arange(4, dtype=np.uint64) + np.uint64(4 * step), 8, 0.5)
        torch.testing.assert_close(compiled(x), x * layer.mask)
    assert counter.frame_count == 1


@pytest.mark.parametrize("site", ["head", "tail"])
def test_shares_of_a_batch_keep_its_gradient(site: str) -> None:
    """VGG-16 has no BatchNorm, so only the masks could differ."""
    torch.manual_seed(0)
    net = PneumoniaNet(ModelConfig("vgg16", "none", 0.5, site)).double().train()  # type: ignore[arg-type]
    x, labels = torch.randn(6, 3, 32, 32, dtype=torch.float64), torch.tensor([0.0, 1, 1, 0, 1, 0], dtype=torch.float64)

    def gradient(parts: list[slice]) -> torch.Tensor:
        net.zero_grad()
        with slot_dropout(net, 7) as draw:
            for part in parts:
                draw(np.arange(60, 66, dtype=np.uint64)[part])
                F.binary_cross_entropy_with_logits(net(x[part]), labels[part], reduction="sum").backward()
        assert net.classifier.weight.grad is not None
        first = next(net.prefix.parameters()).grad
        assert first is not None
        return torch.cat([net.classifier.weight.grad.flatten(), first.flatten()])

    whole = gradient([slice(0, 6)])
    assert whole.abs().max() > 0
    torch.testing.assert_close(gradient([slice(0, 3), slice(3, 6)]), whole, rtol=1e-9, atol=1e-12)
