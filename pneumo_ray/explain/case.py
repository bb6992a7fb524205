"""One explained radiograph with all that a figure of it shows."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pneumo_ray.anatomy.lungs import Lungs
from pneumo_ray.explain.zones import ZONES, Box
from pneumo_ray.images.framing import window_in_pixels
from pneumo_ray.model.calibrated import Calibration
from pneumo_ray.records import Row

Window = tuple[float, float, float, float]
"""x0, y0, x1, y1 as fractions of the image's width and height; may leave the image."""

WHOLE: Window = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Case:
    """One explained radiograph, ready to be drawn."""

    title: str
    image: NDArray[np.uint8]
    """[H, W], all of it."""
    cam: NDArray[np.float32] | None
    """[h, w], Grad-CAM without dropout, in logit units; None if made from the scores, which do not contain it."""
    cam_mean: NDArray[np.float32]
    """[h, w], mean over the passes."""
    cam_std: NDArray[np.float32]
    """[h, w], standard deviation over the passes."""
    zone_mean: NDArray[np.float32]
    """[6], order ZONES; NaN where there are none."""
    target: int
    """The class that the maps explain."""
    prob_mean: float
    prob_low: float
    """Ends of the interval of mean and 1.96 standard deviations of the logit over the passes."""
    prob_high: float
    mutual_information: float
    """Nats."""
    threshold: float
    label: int | None = None
    """The true class, where it is known."""
    window: Window = WHOLE
    """What the maps explain, the network's input, as fractions of the image; may leave it."""
    zone_box: Box | None = None
    """The part of the image, in its pixels, that the zones divide; None for the network's input."""
    lungs: Lungs | None = None
    """Of the image, at any size over all of it; outlined."""
    lung_zones: bool = False
    """The zones are thirds of each of `lungs`."""
    boxes: Sequence[Box] = field(default_factory=tuple)
    """True opacities, in pixels of the image, where they are known."""

    @property
    def input_box(self) -> Box:
        """The window in pixels of the image; may leave it."""
        return window_in_pixels(self.window, (self.image.shape[0], self.image.shape[1]))


def passes_interval(
    logit_mean: float, logit_std: float, temperature: float, intercept: float = 0.0
) -> tuple[float, float]:
    """Return the ends of the interval of a calibrated probability over the passes: 1.96 standard deviations of the logit."""
    low, high = Calibration(temperature, intercept).prob(logit_mean + np.array([-1.96, 1.96]) * logit_std)
    return float(low), float(high)


def scored_case(
    row: Row,
    image: NDArray[np.uint8],
    map_size: tuple[int, int],
    temperature: float,
    threshold: float,
    label: int | None,
    cam: NDArray[np.float32] | None = None,
    zone_box: Box | None = None,
    intercept: float = 0.0,
    window: Window = WHOLE,
    lungs: Lungs | None = None,
    *,
    lung_zones: bool = False,
) -> Case:
    """Return a case with the numbers and maps of the scores.

    Args:
        row: of the scores, of an image that did not fail.
        image: uint8 [H, W], all of it.
        map_size: rows and columns of the maps.
        temperature: of the model.
        threshold: of the decision.
        label: the true class, where it is known.
        cam: the map without dropout, which the scores do not contain.
        zone_box: the part of the image that the zones divide; None for the network's input.
        intercept: of the model.
        window: the network's input, as fractions of the image.
        lungs: of the image, where they are known.
        lung_zones: the zones are thirds of each lung.
    """
    low, high = passes_interval(row["logit_mean"], row["logit_std"], temperature, intercept)
    zones = [row[f"zone_mean_{zone}"] for zone in ZONES]
    return Case(
        title=row["image_id"],
        image=image,
        cam=cam,
        cam_mean=np.array(row["cam_mean"], np.float32).reshape(map_size),
        cam_std=np.array(row["cam_std"], np.float32).reshape(map_size),
        zone_mean=np.array([np.nan if value is None else value for value in zones], np.float32),
        window=window,
        zone_box=zone_box,
        lungs=lungs,
        lung_zones=lung_zones and lungs is not None,
        target=row["target"],
        prob_mean=row["prob_mean"],
        prob_low=low,
        prob_high=high,
        mutual_information=row["mutual_information"],
        threshold=threshold,
        label=label,
    )
