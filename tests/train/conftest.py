"""Images whose lungs are known, because the images are their lungs."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from pneumo_ray.data.manifest import SCHEMA

WIDTH, HEIGHT = 320, 200
ELLIPSES = ((0.32, 0.5), (0.68, 0.55))
RADII = (0.13, 0.28)


def lungs(width: int, height: int, shift: float = 0.0) -> np.ndarray:
    """Two ellipses of an image, bool [height, width]; `shift` moves them to the right by a share of the width."""
    x, y = (np.arange(width) + 0.5) / width, ((np.arange(height) + 0.5) / height)[:, None]
    parts = [((x - cx - shift) / RADII[0]) ** 2 + ((y - cy) / RADII[1]) ** 2 <= 1 for cx, cy in ELLIPSES]
    return parts[0] | parts[1]


def columns_of_lungs(n: int, shifts: list[float] | None = None, doubtful: tuple[int, ...] = ()) -> dict[str, pa.Array]:
    """Return the columns that finding these lungs in n images gives."""
    shifts = shifts or [0.0] * n
    masks = [lungs(128, 128, shift) for shift in shifts]
    pngs = [cv2.imencode(".png", mask.astype(np.uint8) * 255, [cv2.IMWRITE_PNG_BILEVEL, 1])[1] for mask in masks]
    left, right = ELLIPSES[0][0] - RADII[0], ELLIPSES[1][0] + RADII[0]
    top, bottom = ELLIPSES[0][1] - RADII[1], ELLIPSES[1][1] + RADII[1]  # the left lung lies lower
    boxes = [[left + shift, top, right + shift, bottom] for shift in shifts]
    known = [i not in doubtful for i in range(n)]
    return {
        "lung_box": pa.array([b if k else None for b, k in zip(boxes, known, strict=True)], pa.list_(pa.float32(), 4)),
        "lung_quality": pa.array(["plausible" if k else "one_lung" for k in known]),
        "lung_mask": pa.array([p.tobytes() for p in pngs], pa.binary()),
    }


@pytest.fixture(scope="session")
def lung_columns() -> Callable[..., dict[str, pa.Array]]:
    """Return the columns of a manifest of n images that finding lungs gives: (n, shifts=None, doubtful=())."""
    return columns_of_lungs


@pytest.fixture(scope="session")
def lung_rows(tmp_path_factory) -> Callable[..., pa.Table]:
    """Write n images of WIDTH x HEIGHT that are white where the lungs are and grey (40) elsewhere; return manifest rows."""

    def make(n: int, doubtful: tuple[int, ...] = (), background: int = 0) -> pa.Table:
        folder: Path = tmp_path_factory.mktemp("lungs")
        shifts = [0.1 * (i / max(1, n - 1)) - 0.05 for i in range(n)]
        rows = []
        for i, shift in enumerate(shifts):
            grey = np.where(lungs(WIDTH, HEIGHT, shift), 255, background + i).astype(np.uint8)
            cv2.imwrite(str(folder / f"{i}.png"), grey)
            rows.append(
                {
                    "image_id": f"{i}.png",
                    "uri": str(folder / f"{i}.png"),
                    "label": i % 2,
                    "split": "train",
                    "content_sha256": f"{i:064x}",
                    "width": WIDTH,
                    "height": HEIGHT,
                    "status": "ok",
                }
            )
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        for name, column in columns_of_lungs(n, shifts, doubtful).items():
            table = table.append_column(name, column)
        return table

    return make
