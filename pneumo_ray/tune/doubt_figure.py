"""Figure of the images whose labels are the most doubtful."""

import math

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure

from pneumo_ray.data.dataset import CACHE_SIZE, load_squares
from pneumo_ray.data.lungs import shapes
from pneumo_ray.data.prepare import cache_of
from pneumo_ray.evaluate.drawing import house_style
from pneumo_ray.train.config import TrainConfig

_COLUMNS = 5
_CLASSES = ("normal", "pneumonia")


def doubt_figure(doubtful: pa.Table, manifest: pa.Table, base: TrainConfig) -> Figure:
    """Draw images in the order of their doubt, with label and out-of-fold probability.

    Args:
        doubtful: rows of `Doubt.table`, at least one.
        manifest: with their images.
        base: of the study, whose manifest names the cache.
    """
    place = pc.index_in(doubtful["image_id"].combine_chunks(), value_set=manifest["image_id"].combine_chunks())
    rows = manifest.take(place)
    squares = load_squares(rows, CACHE_SIZE, cache_of(manifest, base.manifest))
    count = math.ceil(len(rows) / _COLUMNS)
    with house_style():
        figure = Figure(figsize=(2.4 * _COLUMNS, 2.75 * count + 0.5), layout="constrained")
        grid = figure.subplots(count, _COLUMNS, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, square, shape, row in zip(grid.flat, squares, shapes(rows), doubtful.to_pylist(), strict=False):
            width = round(CACHE_SIZE * min(1.0, shape.width / shape.height))
            height = round(CACHE_SIZE * min(1.0, shape.height / shape.width))
            axes.imshow(
                cv2.resize(np.asarray(square), (width, height), interpolation=cv2.INTER_AREA),
                cmap="gray",
                vmin=0,
                vmax=255,
            )
            axes.set_title(
                f"{row['rank']}. labelled {_CLASSES[row['label']]}\nprobability of pneumonia {row['prob']:.2f}",
                fontsize=8,
            )
        figure.suptitle(
            "The most doubtful labels, by the probability of models that did not train on the image", fontsize=11
        )
    return figure
