"""When a job compiles the network."""

from dataclasses import replace

import pytest

from pneumo_ray.model import load_bundle
from pneumo_ray.score import compilation
from pneumo_ray.score.compilation import (
    SLOWEST_FLOPS,
    WORTH_COMPILING_FLOPS,
    WORTH_COMPILING_SECONDS,
    measured_rate,
    worth_compiling,
)
from pneumo_ray.score.config import ExplainConfig, ScoringScale
from pneumo_ray.score.explainer import ModelPayload


@pytest.fixture(scope="module")
def payload(model) -> ModelPayload:
    config = ExplainConfig(model="", out="", archive=("x",)).resolved("head")
    return ModelPayload.from_bundle(load_bundle(model), config)


def decided(payload: ModelPayload, images: int, rate: float | None, choice: str = "auto") -> bool:
    config = ExplainConfig(model="", out="", archive=("x",), scale=ScoringScale(compile=choice))
    return worth_compiling(config, payload, images, rate)


def test_a_measured_rate_and_the_images_decide(payload):
    rate = 100.0
    last = int(WORTH_COMPILING_SECONDS * rate)
    assert not decided(payload, last, rate)
    assert decided(payload, last + 1, rate)
    assert not decided(payload, last + 1, 2 * rate)


def test_every_member_of_a_set_is_compiled(payload):
    """Three networks take three times as long to compile."""
    three = replace(payload, members=payload.members * 3)
    last = 3 * int(WORTH_COMPILING_SECONDS * 100)
    assert not decided(three, last, 100.0)
    assert decided(three, last + 1, 100.0)
    each = 2 * 1.8e9 * (64 / 224) ** 2  # as below: operations of three, of which three times as many are needed
    assert not decided(three, int(0.9 * WORTH_COMPILING_FLOPS / each), None)
    assert decided(three, int(1.1 * WORTH_COMPILING_FLOPS / each), None)


def test_a_choice_needs_no_rate(payload):
    assert decided(payload, 1, None, "on")
    assert not decided(payload, 10**9, 1.0, "off")


def test_operations_decide_where_nothing_was_measured(payload):
    """A ResNet-18 at 64 pixels makes 1.8e9 multiplications and additions at 224, so (64 / 224) squared of them, times 2."""
    each = 2 * 1.8e9 * (64 / 224) ** 2
    assert not decided(payload, int(0.9 * WORTH_COMPILING_FLOPS / each), None)
    assert decided(payload, int(1.1 * WORTH_COMPILING_FLOPS / each), None)


def test_a_short_job_is_not_measured(payload, monkeypatch):
    each = 2 * 1.8e9 * (64 / 224) ** 2
    few = int(0.9 * SLOWEST_FLOPS * WORTH_COMPILING_SECONDS / each)
    config = ExplainConfig(model="", out="", archive=("x",))
    monkeypatch.setattr(compilation, "measure_rate", lambda *_: pytest.fail("a process was started"))
    assert measured_rate(config, payload, few)(few) is None
    assert not decided(payload, few, None)
