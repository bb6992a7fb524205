"""Whether a job compiles its networks: by the rate that an actor measures, where the job may be long enough."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from pneumo_ray.model import ModelConfig, PneumoniaNet
from pneumo_ray.score.config import ExplainConfig
from pneumo_ray.score.explainer import ModelPayload

WORTH_COMPILING_SECONDS = 60.0
"""Seconds per network of an uncompiled job from which compiling saves time: it takes 14 s of CPU for a ResNet-50, 4 s where
the cache has the code, and makes the network 1.2 times (two threads that share a core) to twice as fast, 1.5 times on an H200."""

SLOWEST_FLOPS = 1e10
"""Floating-point operations per second that any machine does, about a quarter of one core with AVX2. A job that this rate
finishes in time is not measured."""


def worth_compiling(config: ExplainConfig, model: ModelPayload, images: int, measure: Callable[[], float]) -> bool:
    """Whether compiling the trunks saves time for this number of images; a set of models compiles each of them.

    Args:
        config: says it, unless `scale.compile` is auto.
        model: what is compiled.
        images: number of images of the job.
        measure: returns the images per second of all actors, uncompiled; called only where the answer depends on it.
    """
    if config.scale.compile == "off" or model.takes_images:
        return False
    if config.scale.compile == "on":
        return True
    enough = len(model.members) * WORTH_COMPILING_SECONDS
    if images * _flops(model) < enough * SLOWEST_FLOPS:  # any machine is done before compiling pays
        return False
    return images / measure() > enough


def _flops(model: ModelPayload) -> int:
    """Return the floating-point operations of an image, in the trunks of all members."""
    return sum(_flops_of(member.config, model.preprocessing.image_size) for member in model.members)


@lru_cache(maxsize=8)
def _flops_of(config: ModelConfig, size: int) -> int:
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        PneumoniaNet(config).eval().feature_maps(torch.zeros(1, 3, size, size))
    return int(counter.get_total_flops())
