"""How far the standard deviations of Monte Carlo passes are from those in closed form, on the same images.

A standard deviation of n independent normal draws has a relative error of about `1 / sqrt(2 (n - 1))`: 16 % for 20.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumo_ray.evaluate.scores import Scores


@dataclass(frozen=True)
class SamplingError:
    """Relative errors of standard deviations, `|sampled - exact| / |exact|` in the 2-norm over all images."""

    logit: float
    cell: float
    """Of the cells of the maps."""
    zone: float
    """Of the zone means."""


def sampling_error(sampled: Scores, exact: Scores) -> SamplingError:
    """Compare two sets of scores of one model and posterior, with passes and in closed form.

    Args:
        sampled: of n images.
        exact: of the same images, in the same order.
    """

    def zones(scores: Scores) -> NDArray[np.float64]:
        return np.stack([scores.numbers(f"zone_std_{zone}") for zone in scores.zones])

    return SamplingError(
        logit=relative_error(sampled.numbers("logit_std"), exact.numbers("logit_std")),
        cell=relative_error(sampled.maps("cam_std"), exact.maps("cam_std")),
        zone=relative_error(zones(sampled), zones(exact)),
    )


def relative_error(values: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
    """Return `|values - truth| / |truth|` in the 2-norm over what is a number in both; 0 where the truth is all 0."""
    known = np.isfinite(values) & np.isfinite(truth)
    size = float(np.linalg.norm(truth[known].astype(np.float64)))
    return float(np.linalg.norm(values[known].astype(np.float64) - truth[known])) / size if size > 0 else 0.0
