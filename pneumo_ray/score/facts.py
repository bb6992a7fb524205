"""What a row of the scores says of its image beside what the network makes of it: who is on it, and how the file was made."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pneumo_ray.data.person import PERSON_FIELDS
from pneumo_ray.images.augment import resize_grey
from pneumo_ray.images.dicom_person import Person
from pneumo_ray.images.grey_levels import rms_contrast
from pneumo_ray.records import Row

FACT_FIELDS = (
    *PERSON_FIELDS,
    pa.field("image_width", pa.int32()),
    pa.field("image_height", pa.int32()),
    pa.field("image_mode", pa.string()),
    pa.field("bytes_per_pixel", pa.float32()),
    pa.field("contrast", pa.float32()),
    pa.field("lung_area", pa.float32()),
)
"""Columns of the scores, in their order."""
_SIDE = 256
"""The contrast is that of the image at `_SIDE * _SIDE` pixels, as in the manifest."""


@dataclass(frozen=True)
class ImageFacts:
    """Facts of one file or frame; None where unknown."""

    person: Person
    width: int
    height: int
    mode: str
    num_bytes: int
    contrast: float

    @classmethod
    def of(cls, info: Any, num_bytes: int, square: np.ndarray) -> "ImageFacts":
        """Collect what is known when an image has been decoded.

        Args:
            info: `decode.ImageInfo`.
            num_bytes: of the file.
            square: uint8 [C, C], the decoded image.
        """
        small = square if len(square) == _SIDE else resize_grey(square, _SIDE)
        return cls(info.person, info.width, info.height, info.mode, num_bytes, rms_contrast(small))

    def row(self, listed: Row, lung_area: float | None) -> Row:
        """Return the values of `FACT_FIELDS`; what the list of images knows of a person wins over the header.

        Args:
            listed: row of the list.
            lung_area: share of the image that is lung.
        """
        person = {
            name: value if listed.get(name) is None else listed[name] for name, value in self.person._asdict().items()
        }
        return person | {
            "image_width": self.width,
            "image_height": self.height,
            "image_mode": self.mode,
            "bytes_per_pixel": self.num_bytes / (self.width * self.height),
            "contrast": self.contrast,
            "lung_area": lung_area,
        }
