"""Parametric maps of the evidence (PS3.3 A.75): its mean and its standard deviation, as two frames of one object.

The native map holds the values of the scores as they are, in float32; its cells are large pixels, placed where they lie over
the image. The map at image resolution lies pixel on pixel over the image, for viewers that do not scale a map. Its
values are 16-bit words with a slope to logit per cell, each frame over its own range, since few viewers show float pixels.
Both have the orientation of the stored image, which may be mirrored against the view that is scored.
"""

from typing import Any

import numpy as np
from highdicom import PixelMeasuresSequence, PlanePositionSequence, VOILUTTransformation
from highdicom.pm import ParametricMap, RealWorldValueMapping
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from pneumo_ray.images.framing import over_image, window_in_pixels
from pneumo_ray.pacs.codes import LOGIT_PER_CELL, METHOD
from pneumo_ray.pacs.objects import dated, identity
from pneumo_ray.pacs.result import NOTICE, Algorithm, Part, Result
from pneumo_ray.pacs.source import Source
from pneumo_ray.pacs.uids import derived_uid

LABELS = ("mean", "std")
"""LUT labels of the frames, in their order."""
_WORD = 65535
_LARGEST = float(np.finfo(np.float32).max)


def native_map(source: Source, result: Result, algorithm: Algorithm) -> Dataset:
    """Return the object with the maps of the scores, float32 [h, w] each."""
    frames = _as_stored(np.stack([result.cam_mean, result.cam_std]).astype(np.float32), source)
    rows, columns = frames.shape[1:]
    x0, y0, x1, y1 = _stored_window(result, source)
    # Millimetres of a cell, and of the first one's centre from the centre of the image's first pixel.
    down, across = source.spacing
    height, width = (y1 - y0) * source.rows / rows, (x1 - x0) * source.columns / columns
    left, top = (x0 * source.columns + (width - 1) / 2) * across, (y0 * source.rows + (height - 1) / 2) * down
    mappings = [[_mapping(label, 1.0, (-_LARGEST, _LARGEST))] for label in LABELS]
    return _map_object(
        source, algorithm, "map-native", frames, mappings, float(frames.max()) or 1.0,
        pixel_measures=PixelMeasuresSequence((height * down, width * across), 1.0),
        plane_positions=[PlanePositionSequence("PATIENT", (left, top, 0.0))],
    )  # fmt: skip


def image_map(source: Source, result: Result, algorithm: Algorithm) -> Dataset:
    """Return the object with the maps at the resolution of the image, 16 bits; 0 outside of the network's input."""
    shape = source.rows, source.columns
    box = window_in_pixels(result.window, shape)
    frames, mappings = [], []
    for label, values in zip(LABELS, (result.cam_mean, result.cam_std), strict=True):
        slope = (float(values.max()) or 1.0) / _WORD
        fine = np.nan_to_num(over_image((values / np.float32(slope)).astype(np.float32), box, shape), copy=False)
        frames.append(np.clip(fine + np.float32(0.5), 0, _WORD).astype(np.uint16))
        mappings.append([_mapping(label, slope, (0, _WORD))])
    return _map_object(source, algorithm, "map-image", _as_stored(np.stack(frames), source), mappings, float(_WORD))


def _as_stored(maps: NDArray[Any], source: Source) -> NDArray[Any]:
    """Flip maps [2, H, W] of the standard view to the orientation of the stored image."""
    if source.is_mirrored:
        maps = maps[:, :, ::-1]
    if source.is_turned_over:
        maps = maps[:, ::-1]
    return maps


def _stored_window(result: Result, source: Source) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = result.window
    if source.is_mirrored:
        x0, x1 = 1 - x1, 1 - x0
    if source.is_turned_over:
        y0, y1 = 1 - y1, 1 - y0
    return x0, y0, x1, y1


def _mapping(label: str, slope: float, stored: tuple[float, float] | tuple[int, int]) -> RealWorldValueMapping:
    words = {
        "mean": "Mean of the evidence over the passes",
        "std": "Standard deviation of the evidence over the passes",
    }
    return RealWorldValueMapping(
        lut_label=label,
        lut_explanation=words[label],
        unit=LOGIT_PER_CELL,
        value_range=stored,
        slope=slope,
        intercept=0.0,
        quantity_definition=METHOD,
    )


def _map_object(
    source: Source,
    algorithm: Algorithm,
    part: Part,
    frames: NDArray[Any],
    mappings: list[list[RealWorldValueMapping]],
    top: float,
    **geometry: Any,
) -> Dataset:
    made = ParametricMap(
        [source.header],
        np.ascontiguousarray(np.moveaxis(frames, 0, -1)[None]),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=mappings,
        voi_lut_transformations=[VOILUTTransformation(top / 2, top, voi_lut_function="LINEAR_EXACT")],
        content_label="RESEARCH_ONLY",
        content_description=f"{NOTICE}: Grad-CAM",
        image_flavor="STATIC",
        derived_pixel_contrast="QUANTITY",
        **identity(source, algorithm, part),
        **geometry,
    )
    made.Laterality = None  # of type 2 where nobody knows whether the body part has two sides
    _fix_organisation(made)
    _refer_to_frame(made, source)
    return dated(made, algorithm)


def _fix_organisation(made: Dataset) -> None:
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
