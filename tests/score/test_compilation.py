"""When a job compiles the network."""

from dataclasses import replace

import pytest

from pneumo_ray.model import load_bundle
from pneumo_ray.score.compilation import (
    SLOWEST_FLOPS,
    WORTH_COMPILING_FLOPS,
    WORTH_COMPILING_SECONDS,
    worth_compiling,
)
from pneumo_ray.score.config import ExplainConfig, ScoringScale
from pneumo_ray.score.explainer import ModelPayload


@pytest.fixture(scope="module")
def payload(model) -> ModelPayload:
    config = ExplainConfig(model="", out="", archive=("x",)).resolved("head")
    return ModelPayload.from_bundle(load_bundle(model), config)


def decided(payload: ModelPayload, images: int, rate: float | None = None, choice: str = "auto", **scale: bool) -> bool:
    """Decide at a rate; None where no rate may be needed."""
    config = ExplainConfig(model="", out="", archive=("x",), scale=ScoringScale(compile=choice, **scale))
    measure = (lambda: rate) if rate is not None else lambda: pytest.fail("a rate was measured")
    return worth_compiling(config, payload, images, measure)


EACH = 2 * 1.8e9 * (64 / 224) ** 2
"""A ResNet-18 at 64 pixels makes 1.8e9 multiplications and additions at 224, so (64 / 224) squared of them, times 2."""


def test_a_measured_rate_and_the_images_decide(payload):
    rate = 100.0
    last = int(WORTH_COMPILING_SECONDS * rate)
    assert last > SLOWEST_FLOPS * WORTH_COMPILING_SECONDS / EACH, "so few would not be measured"
    assert not decided(payload, last, rate)
    assert decided(payload, last + 1, rate)
    assert not decided(payload, last + 1, 2 * rate)


def test_every_member_of_a_set_is_compiled(payload):
    """Three networks take three times as long to compile."""
    three = replace(payload, members=payload.members * 3)
    last = 3 * int(WORTH_COMPILING_SECONDS * 100)
    assert not decided(three, last, 100.0)
    assert decided(three, last + 1, 100.0)
    # Operations of three, of which three times as many are needed.
    assert not decided(three, int(0.9 * WORTH_COMPILING_FLOPS / EACH), use_gpu=True)
    assert decided(three, int(1.1 * WORTH_COMPILING_FLOPS / EACH), use_gpu=True)


def test_a_choice_needs_no_rate(payload):
    assert decided(payload, 1, choice="on")
    assert not decided(payload, 10**9, choice="off")


def test_operations_decide_on_a_gpu(payload):
    assert not decided(payload, int(0.9 * WORTH_COMPILING_FLOPS / EACH), use_gpu=True)
    assert decided(payload, int(1.1 * WORTH_COMPILING_FLOPS / EACH), use_gpu=True)


def test_a_short_job_is_not_measured(payload):
    assert not decided(payload, int(0.9 * SLOWEST_FLOPS * WORTH_COMPILING_SECONDS / EACH))
