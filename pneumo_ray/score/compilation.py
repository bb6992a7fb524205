"""Whether a job compiles its networks: by the rate that one actor measures, where the job may be long enough."""

import math
from collections.abc import Callable
from functools import lru_cache

import ray
import torch
from torch.utils.flop_counter import FlopCounterMode

from pneumo_ray.model import ModelConfig, PneumoniaNet
from pneumo_ray.score.config import ExplainConfig
from pneumo_ray.score.explainer import ModelPayload
from pneumo_ray.score.workers import measure_rate

WORTH_COMPILING_SECONDS = 60.0
"""Seconds per network of an uncompiled job on a CPU from which compiling saves time: it takes 14 s of CPU for a ResNet-50, 4 s where
the cache has the code, and makes the network 1.2 times (two threads that share a core) to twice as fast."""

WORTH_COMPILING_FLOPS = 1e15
"""Floating-point operations per network of a job on GPUs from which compiling should save time. An estimate: no GPU was measured."""

SLOWEST_FLOPS = 1e10
"""Floating-point operations per second that any machine does, about a quarter of one core with AVX2. A job that this rate
finishes in time is not measured."""


def measured_rate(config: ExplainConfig, model: ModelPayload, images: int | None) -> Callable[[int], float | None]:
    """Begin to measure the rate that `worth_compiling` needs; return what waits for it.

    Args:
        config: of the job.
        model: what is measured.
        images: number of images of the job; None where it is not yet known.

    Returns:
        a function of the number of images that gives images per second, or None where `worth_compiling` needs none.
    """
    scale = config.scale
    needless = scale.compile != "auto" or scale.use_gpu or model.takes_images
    if needless or (images is not None and _is_short(model, images)):
        return lambda images: None
    measured = measure_rate(model, config)

    def wait(images: int) -> float | None:
        if _is_short(model, images):
            ray.cancel(measured, force=True)
            return None
        try:
            return float(ray.get(measured))
        except ray.exceptions.RayError:  # the process died, most likely of memory: the job copes, and compiles nothing
            return math.inf

    return wait


def worth_compiling(config: ExplainConfig, model: ModelPayload, images: int, rate: float | None) -> bool:
    """Whether compiling the trunks saves time for this number of images; a set of models compiles each of them.

    Args:
        config: says it, unless `scale.compile` is auto.
        model: what is compiled.
        images: number of images of the job.
        rate: images per second of all actors, uncompiled, from `measured_rate`; None where nobody measured it.
    """
    if config.scale.compile == "off" or model.takes_images:
        return False
    if config.scale.compile == "on":
        return True
    networks = len(model.members)
    if rate is not None:
        return images / rate > networks * WORTH_COMPILING_SECONDS
    return images * _flops(model) > networks * WORTH_COMPILING_FLOPS


def _is_short(model: ModelPayload, images: int) -> bool:
    """Whether any machine scores the images before compiling pays."""
    return images * _flops(model) < len(model.members) * SLOWEST_FLOPS * WORTH_COMPILING_SECONDS


def _flops(model: ModelPayload) -> int:
    """Return the floating-point operations of an image, in the trunks of all members."""
    return sum(_flops_of(member.config, model.preprocessing.image_size) for member in model.members)


@lru_cache(maxsize=8)
def _flops_of(config: ModelConfig, size: int) -> int:
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        PneumoniaNet(config).eval().feature_maps(torch.zeros(1, 3, size, size))
    return int(counter.get_total_flops())
