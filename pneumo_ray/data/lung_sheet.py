"""The contact sheet of a preparation: images with their lungs outlined, the doubtful ones first, for people to look at."""

import numpy as np
import pyarrow as pa

from pneumo_ray.anatomy.lungs import PLAUSIBLE, Lungs, lungs_of
from pneumo_ray.anatomy.masks import decode_mask
from pneumo_ray.anatomy.overlay import Overlay, draw_overlays
from pneumo_ray.data.dataset import CACHE_SIZE, load_squares

NUM_DOUBTFUL, NUM_PLAUSIBLE = 15, 15
"""Images on the sheet at most, drawn at random."""


def draw_lungs(manifest: pa.Table, cache_folder: str | None, seed: int) -> bytes | None:
    """Return the sheet as PNG; None where no image has lungs to show.

    Args:
        manifest: with the columns of the lungs.
        cache_folder: of its images; None where there is none.
        seed: of the choice.

    Raises:
        ManifestError: naming an image that can no longer be read.
    """
    quality = np.array([value or "" for value in manifest["lung_quality"].to_pylist()])
    doubtful = np.flatnonzero((quality != PLAUSIBLE) & (quality != ""))
    random = np.random.default_rng([seed, 0x1049])
    chosen: list[int] = []
    for rows, count in ((doubtful, NUM_DOUBTFUL), (np.flatnonzero(quality == PLAUSIBLE), NUM_PLAUSIBLE)):
        chosen += sorted(random.choice(rows, min(count, len(rows)), replace=False).tolist())
    if not chosen:
        return None
    picked = manifest.take(pa.array(chosen, pa.int64()))
    images = load_squares(picked, CACHE_SIZE, cache_folder)
    overlays = []
    for row, image in zip(picked.select(["image_id", "lung_quality", "lung_mask"]).to_pylist(), images, strict=True):
        found = None if row["lung_mask"] is None else decode_mask(row["lung_mask"])
        known = found is not None and row["lung_quality"] == PLAUSIBLE
        lungs = lungs_of(found) if known and found is not None else Lungs(None, None, row["lung_quality"])
        overlays.append(Overlay(row["image_id"], image, lungs, found))
    looked = np.count_nonzero(quality != "")
    return draw_overlays(overlays, f"lungs of {looked:,} images, {len(doubtful):,} of them doubtful")
