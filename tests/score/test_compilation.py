"""When a job compiles the network."""

from dataclasses import replace

import pytest
import torch

from pneumo_ray.model import load_bundle
from pneumo_ray.score import workers
from pneumo_ray.score.compilation import (
    SLOWEST_FLOPS,
    WORTH_COMPILING_SECONDS,
    worth_compiling,
)
from pneumo_ray.score.config import ExplainConfig, ScoringScale
from pneumo_ray.score.explainer import Explainer, ModelPayload
from pneumo_ray.score.workers import make_ready


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


def test_a_choice_needs_no_rate(payload):
    assert decided(payload, 1, choice="on")
    assert not decided(payload, 10**9, choice="off")


def test_the_rate_of_a_gpu_decides_too(payload):
    last = int(WORTH_COMPILING_SECONDS * 10_000)
    assert not decided(payload, last, 10_000.0, use_gpu=True)
    assert decided(payload, last + 1, 10_000.0, use_gpu=True)


def test_a_short_job_is_not_measured(payload):
    assert not decided(payload, int(0.9 * SLOWEST_FLOPS * WORTH_COMPILING_SECONDS / EACH))


@pytest.fixture
def explainer(payload, monkeypatch) -> Explainer:
    """A scorer on the CPU whose compiler leaves the network as it is."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    config = ExplainConfig(model="", out="", archive=("x",), amp="off").resolved("head")
    explainer = Explainer(payload, config, torch.device("cpu"))
    explainer.at_once = 2
    return explainer


@pytest.mark.parametrize("before", [True, False])
def test_a_continued_job_repeats_the_decision(explainer, before, monkeypatch):
    monkeypatch.setattr(workers, "worth_compiling", lambda *_: pytest.fail("it was decided again"))
    make_ready(explainer, 10**9, 1, before)
    assert explainer.compiled is before


def test_the_rate_counts_all_actors(explainer, monkeypatch):
    """Three actors of which each explains two blank images in half a second make 12 images a second."""
    seconds = iter([10.0, 10.5])
    monkeypatch.setattr(workers.time, "perf_counter", lambda: next(seconds))
    measured = []
    monkeypatch.setattr(workers, "worth_compiling", lambda config, model, images, measure: measured.append(measure()))
    make_ready(explainer, 100, 3)
    assert measured == [12.0]
    assert not explainer.compiled


def test_a_long_job_compiles_after_measuring(explainer):
    make_ready(explainer, 10**12, 1)
    assert explainer.compiled
