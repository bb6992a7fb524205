"""What is published about one image: plain numbers, apart from the file that they come from."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pneumo_ray.images.dicom import MAKER
from pneumo_ray.pacs.uids import VERSION

NOTICE = "RESEARCH USE ONLY, not for diagnosis"


Part = Literal["sr", "map-native", "map-image", "capture"]
"""One object of an image."""


@dataclass(frozen=True)
class Algorithm:
    """What made the results of a scoring job."""

    architecture: str
    version: str
    """Of pneumo_ray, when it scored."""
    model_hash: str
    config_hash: str
    parameters: tuple[str, ...]
    """Further facts, `name = value` each."""
    explanations: tuple[Part, ...]
    """Objects that are published beside a report, to which it refers; see `objects.OF_KIND`."""
    made: datetime
    """When the scores were written; the objects have this date, so that they are the same whenever they are made."""

    @property
    def name(self) -> str:
        """Name of the product and the network."""
        return f"{MAKER} {self.architecture}"

    @property
    def mark(self) -> str:
        """Eight letters that tell its results from those of another model, config or version, for people and searches."""
        return hashlib.sha256(f"{VERSION} {self.model_hash} {self.config_hash}".encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Zone:
    """A part of the image, and the evidence in it, in logit per cell; None where the image has no such part."""

    name: str
    """right_upper, left_middle and so on; the patient's side."""
    mean: float | None
    std: float | None


@dataclass(frozen=True)
class Result:
    """The results of one image; None where there is no such value."""

    prob_mean: float
    prob_std: float
    prob_low: float
    """Lower end of the 95 % interval of the probability over the passes."""
    prob_high: float
    logit_mean: float
    logit_std: float
    entropy: float
    expected_entropy: float
    mutual_information: float
    """Nats, like the two entropies."""
    threshold: float
    """Pneumonia is called where `prob_mean` reaches it."""
    called: bool
    refer: bool
    """The passes do not agree on the call."""
    target_is_pneumonia: bool
    """Which class the maps explain."""
    zones: tuple[Zone, ...]
    zones_of_lungs: bool
    """The zones are thirds of the lungs, else parts of the image."""
    lung_share: float | None
    outside_share: float | None
    peak_in_lungs: bool | None
    doubtful: bool
    """The view is doubtful or the image is unlike those of the training."""
    prob_site: float | None
    called_at_site: bool | None
    triage: str | None
    """negative, positive or read."""
    cam_mean: NDArray[np.float32]
    """[h, w], logit per cell; the patient's right is on the left."""
    cam_std: NDArray[np.float32]
    window: tuple[float, float, float, float]
    """What the maps show: x0, y0, x1, y1 as fractions of the upright image; may leave it."""
