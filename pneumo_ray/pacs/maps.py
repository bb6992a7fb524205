"""Parametric maps of the evidence (PS3.3 A.75): its mean and its standard deviation, as two frames of one object.

The native map holds the values of the scores as they are, in float32; its cells are large pixels, placed where they lie over
the image. The map at image resolution lies pixel on pixel over the image, for viewers that do not scale a map. Its
values are 16-bit words with a slope to logit per cell, each frame over its own range, since few viewers show float pixels.
Both have the orientation of the stored image, which may be mirrored against the view that is scored.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from highdicom import PixelMeasuresSequence, PlanePositionSequence, VOILUTTransformation
from highdicom.pm import ParametricMap, RealWorldValueMapping
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from pneumo_ray.images.framing import upsampling, window_in_pixels
from pneumo_ray.pacs.codes import LOGIT_PER_CELL, METHOD
from pneumo_ray.pacs.objects import dated, identity, refill
from pneumo_ray.pacs.result import NOTICE, Algorithm, Part, Result
from pneumo_ray.pacs.source import Source
from pneumo_ray.pacs.templates import Templates
from pneumo_ray.pacs.uids import derived_uid
from pneumo_ray.storage import Pieces

LABELS = {"mean": "Mean of the evidence over the passes", "std": "Standard deviation of the evidence over the passes"}
"""LUT labels of the frames, in their order, and what they are."""
_WORD = 65535
_ONE_THREAD = 1 << 18
"""Multiplications up to which OpenBLAS multiplies two matrices in one thread."""
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Frames:
    """Mean and standard deviation, as they are stored, and where they lie."""

    values: NDArray[Any]
    """[2, H, W], float32 or uint16."""
    slopes: tuple[float, float]
    """Logit per cell of a stored value, of each frame."""
    top: float
    """Stored value at the upper end of the display window."""
    spacing: tuple[float, float]
    """Millimetres between rows and between columns."""
    corner: tuple[float, float]
    """x and y of the centre of the first pixel, in millimetres from the centre of the image's first pixel."""


def native_frames(source: Source, result: Result) -> Frames:
    """Return the maps of the scores, float32 [2, h, w]."""
    values = np.stack([result.cam_mean, result.cam_std]).astype(np.float32)
    values = values[:, :: -1 if source.is_turned_over else 1, :: -1 if source.is_mirrored else 1]
    rows, columns = values.shape[1:]
    x0, y0, x1, y1 = _stored_window(result, source)
    down, across = source.spacing
    height, width = (y1 - y0) * source.rows / rows, (x1 - x0) * source.columns / columns
    corner = (x0 * source.columns + (width - 1) / 2) * across, (y0 * source.rows + (height - 1) / 2) * down
    return Frames(values, (1.0, 1.0), float(values.max()) or 1.0, (height * down, width * across), corner)


def image_frames(source: Source, result: Result) -> Frames:
    """Return the maps at the resolution of the image, uint16 [2, H, W]; 0 outside of the network's input.

    Bilinear upsampling is a product with a matrix on either side, each of which is flipped where the stored image is.
    """
    x0, y0, x1, y1 = window_in_pixels(result.window, (source.rows, source.columns))
    cells = result.cam_mean.shape
    down, rows = _axis(cells[0], (y0, y1), source.rows, is_flipped=source.is_turned_over)
    across, columns = _axis(cells[1], (x0, x1), source.columns, is_flipped=source.is_mirrored)
    slopes, fine = [], np.zeros((2, source.rows, source.columns), np.uint16)
    for place, values in enumerate((result.cam_mean, result.cam_std)):
        slopes.append((float(values.max()) or 1.0) / _WORD)
        wide = (values / slopes[-1]).astype(np.float32) @ across.T + np.float32(0.5)
        strip = max(1, _ONE_THREAD // max(1, wide.size))  # of rows; it stays in the cache
        target = fine[place, rows, columns]
        for start in range(0, len(down), strip):
            np.copyto(target[start : start + strip], down[start : start + strip] @ wide, casting="unsafe")
    return Frames(fine, (slopes[0], slopes[1]), float(_WORD), source.spacing, (0.0, 0.0))


def _axis(cells: int, window: tuple[int, int], size: int, *, is_flipped: bool) -> tuple[NDArray[np.float32], slice]:
    """Return the matrix [n, cells] of the n pixels of an axis of the stored image that a window covers, and their places."""
    first, last = max(window[0], 0), min(window[1], size)
    matrix = upsampling(cells, window[1] - window[0]).astype(np.float32)
    matrix = matrix[first - window[0] : max(last, first) - window[0]]
    return (matrix[::-1], slice(size - last, size - first)) if is_flipped else (matrix, slice(first, last))


def map_object(source: Source, algorithm: Algorithm, part: Part, frames: Frames) -> Dataset:
    """Return the object with the frames."""
    made = ParametricMap(
        [source.header],
        np.ascontiguousarray(np.moveaxis(frames.values, 0, -1)[None]),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[
            [_mapping(label, slope, frames.values.dtype)] for label, slope in zip(LABELS, frames.slopes, strict=True)
        ],
        voi_lut_transformations=[_window(frames)],
        pixel_measures=_measures(frames),
        plane_positions=[_position(frames)],
        content_label="RESEARCH_ONLY",
        content_description=f"{NOTICE}: Grad-CAM",
        image_flavor="STATIC",
        derived_pixel_contrast="QUANTITY",
        **identity(source, algorithm, part),
    )
    made.Laterality = None  # of type 2 where nobody knows whether the body part has two sides
    _organise(made)
    _refer_to_frame(made, source)
    return dated(made, algorithm)


class Maps:
    """The maps of a job, filled into those that `map_object` made (see `templates`)."""

    def __init__(self, algorithm: Algorithm) -> None:
        """Begin without a map.

        Args:
            algorithm: what found the results.
        """
        self._algorithm = algorithm
        self._templates = Templates(limit=8)

    def file(self, source: Source, result: Result, part: Part) -> Pieces:
        """Return the file of a map, as that of `map_object`."""
        frames = native_frames(source, result) if part == "map-native" else image_frames(source, result)
        structure = part, frames.values.shape, source.frame, source.header.SOPClassUID, source.lossy
        return self._templates.file(
            structure,
            lambda: map_object(source, self._algorithm, part, frames),
            lambda template: self._fill(template, source, part, frames),
            frames.values,
        )

    def _fill(self, template: Dataset, source: Source, part: Part, frames: Frames) -> None:
        refill(template, source, self._algorithm, part)
        template.FrameOfReferenceUID = source.header.FrameOfReferenceUID
        series = template.ReferencedSeriesSequence[0]
        series.SeriesInstanceUID = source.header.SeriesInstanceUID
        series.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID = source.uid
        template.SourceImageSequence[0].ReferencedSOPInstanceUID = source.uid
        _name_organisation(template)
        shared = template.SharedFunctionalGroupsSequence[0]
        shared.PixelMeasuresSequence = _measures(frames)
        shared.FrameVOILUTSequence = [_window(frames)]
        for frame, slope in zip(template.PerFrameFunctionalGroupsSequence, frames.slopes, strict=True):
            frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = source.uid
            frame.PlanePositionSequence = _position(frames)
            frame.RealWorldValueMappingSequence[0].RealWorldValueSlope = slope


def _stored_window(result: Result, source: Source) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = result.window
    if source.is_mirrored:
        x0, x1 = 1 - x1, 1 - x0
    if source.is_turned_over:
        y0, y1 = 1 - y1, 1 - y0
    return x0, y0, x1, y1


def _mapping(label: str, slope: float, stored: np.dtype[Any]) -> RealWorldValueMapping:
    return RealWorldValueMapping(
        lut_label=label,
        lut_explanation=LABELS[label],
        unit=LOGIT_PER_CELL,
        value_range=(-_LARGEST, _LARGEST) if stored == np.float32 else (0, _WORD),
        slope=slope,
        intercept=0.0,
        quantity_definition=METHOD,
    )


def _window(frames: Frames) -> VOILUTTransformation:
    return VOILUTTransformation(frames.top / 2, frames.top, voi_lut_function="LINEAR_EXACT")


def _measures(frames: Frames) -> PixelMeasuresSequence:
    return PixelMeasuresSequence(frames.spacing, slice_thickness=1.0, spacing_between_slices=1.0)


def _position(frames: Frames) -> PlanePositionSequence:
    return PlanePositionSequence("PATIENT", (*frames.corner, 0.0))


def _organise(made: Dataset) -> None:
    """Tell the frames apart by their label, as their position is the same."""
    label = Dataset()
    label.DimensionIndexPointer, label.FunctionalGroupPointer = 0x00409210, 0x00409096
    label.DimensionDescriptionLabel = "LUT Label"
    label.DimensionOrganizationUID = ""
    made.DimensionIndexSequence.append(label)
    for number, frame in enumerate(made.PerFrameFunctionalGroupsSequence, start=1):
        frame.FrameContentSequence[0].DimensionIndexValues = [1, number]
    _name_organisation(made)


def _name_organisation(made: Dataset) -> None:
    """Derive the UID of the frames' organisation, which highdicom draws at random."""
    uid = derived_uid("dimensions", made.SOPInstanceUID)
    for item in [*made.DimensionOrganizationSequence, *made.DimensionIndexSequence]:
        item.DimensionOrganizationUID = uid


def _refer_to_frame(made: Dataset, source: Source) -> None:
    if source.frame is None:
        return
    items = [made.get("SourceImageSequence") or []]
    for frame in [*made.SharedFunctionalGroupsSequence, *made.PerFrameFunctionalGroupsSequence]:
        items += [derived.SourceImageSequence for derived in frame.get("DerivationImageSequence") or []]
    for item in (item for several in items for item in several):
        item.ReferencedFrameNumber = source.frame + 1
