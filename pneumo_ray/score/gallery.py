"""Figures of the most uncertain and the most suspicious cases, chosen by the scores.

Only these images are read and explained again.
"""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pneumo_ray import storage
from pneumo_ray.console import log
from pneumo_ray.data.manifest import read_manifest
from pneumo_ray.explain.case import Case, scored_case
from pneumo_ray.explain.render import draw_case, draw_sheet
from pneumo_ray.explain.zones import Box
from pneumo_ray.images.framing import resized
from pneumo_ray.records import Row
from pneumo_ray.score.config import ExplainConfig
from pneumo_ray.score.decode import Failure, load_images
from pneumo_ray.score.explainer import Explainer, ModelPayload
from pneumo_ray.score.frame import Framed
from pneumo_ray.score.image_list import Source, part_name

DISPLAY_SIZE = 336
"""Longer side of a drawn image, in pixels."""

RANKINGS = {
    "uncertain": (("mutual_information",), "Most uncertain"),
    "suspicious": (("prob_mean", "logit_mean"), "Most suspicious"),
}
"""Name of the figures: the columns that rank the cases, later ones break ties, and a title."""


def render_top(out: str, source: Source, model: ModelPayload, config: ExplainConfig) -> list[str]:
    """Write four-panel figures and a contact sheet of the highest-ranking cases, and `index.csv`, which lists them.

    Args:
        out: folder of the scores; the figures go to `pictures/` in it.
        source: the list of the job's images.
        model: what scored them.
        config: `top` is the number of each kind.

    Returns:
        The contact sheets.
    """
    labels = _labels(config)
    on_cpu = replace(config, amp="off") if config.amp == "fp16" else config  # only a GPU has float16
    explainer = Explainer(model, on_cpu, torch.device("cpu"))
    index = [("file", "image_id", "prob_mean", "mutual_information")]
    sheets, gone = [], 0
    for name, (columns, title) in RANKINGS.items():
        cases = []
        for shard, row, image_id in _highest(out, source, columns, config.top):
            scored = storage.read_table(storage.join(out, part_name(shard))).slice(row, 1).to_pylist()[0]
            picked = source.read(shard).slice(row, 1).to_pylist()[0]
            (image,) = load_images([picked], model.preprocessing, find=config.finds_lungs(model.preprocessing.fit))
            if isinstance(image, Failure):  # it was readable when it was scored
                gone += 1
                continue
            case = _explained_case(explainer, image, scored, picked, labels.get(image_id))
            cases.append(case)
            file = f"{name}-{len(cases):03d}.png"
            storage.write_bytes(storage.join(out, "pictures", file), draw_case(case))
            index.append((file, image_id, f"{case.prob_mean:.4f}", f"{case.mutual_information:.4f}"))
        if cases:
            sheets.append(storage.join(out, "pictures", f"{name}.png"))
            storage.write_bytes(sheets[-1], draw_sheet(cases, f"{title} {len(cases)} of {source.num_images:,}"))
    if gone:
        log(f"{gone} case(s) could not be drawn, because their files are no longer readable")
    storage.write_csv(index, storage.join(out, "pictures", "index.csv"))
    return sheets


def _explained_case(explainer: Explainer, image: Framed, scored: Row, listed: Row, label: int | None) -> Case:
    """Return a case with the values of the scores and the map without dropout, which they do not contain."""
    facts = explainer.model.facts
    e = explainer.explain(image.pixels[None], target="pneumonia" if scored["target"] else "normal")
    whole = _whole(image)
    return scored_case(
        scored,
        whole,
        facts.map_size,
        facts.calibration.temperature,
        facts.threshold,
        label,
        e.cam[0].numpy(),
        _zone_box(listed, image, whole),
        facts.calibration.intercept,
        image.window,
        image.lungs,
        lung_zones=explainer.config.zones == "lungs",
    )


def _whole(image: Framed) -> np.ndarray:
    """Return all of an image in its true shape, uint8 [H, W]."""
    shape = image.decoded.shape
    scale = DISPLAY_SIZE / max(shape.width, shape.height)
    return resized(image.decoded.square, max(1, round(scale * shape.width)), max(1, round(scale * shape.height)))


def _zone_box(listed: Row, image: Framed, whole: np.ndarray) -> Box | None:
    """Return the box that the zones divide, in pixels of the whole image; None where the list has none."""
    box = listed["image_box"]
    if listed["box"] is not None:
        (x0, y0, x1, y1), size = image.window, len(image.pixels)
        left, top, right, bottom = (edge / size for edge in listed["box"])
        box = (x0 + left * (x1 - x0), y0 + top * (y1 - y0), x0 + right * (x1 - x0), y0 + bottom * (y1 - y0))
    if box is None:
        return None
    height, width = whole.shape
    return round(box[0] * width), round(box[1] * height), round(box[2] * width), round(box[3] * height)


def _highest(out: str, source: Source, columns: tuple[str, ...], count: int) -> list[tuple[int, int, str]]:
    """Return shard, row and name of the images with the largest values, largest first; later columns break ties."""
    order = [*((column, "descending") for column in columns), ("image_id", "ascending")]
    best: pa.Table | None = None
    names = (storage.join(out, part_name(shard)) for shard in range(source.num_shards))
    for shard, table in enumerate(storage.read_tables(names, ["image_id", *columns])):
        table = table.replace_schema_metadata(None)
        table = table.append_column("shard", pa.array([shard] * len(table), pa.int64()))
        table = table.append_column("row", pa.array(np.arange(len(table))))
        table = table.filter(pc.is_valid(table[columns[0]]))
        merged = table if best is None else pa.concat_tables([best, table])
        best = merged.take(pc.select_k_unstable(merged, count, order))
    return [] if best is None else [(row["shard"], row["row"], row["image_id"]) for row in best.to_pylist()]


def _labels(config: ExplainConfig) -> dict[str, int]:
    if config.manifest is None:
        return {}
    table = read_manifest(storage.absolute(config.manifest))
    return dict(zip(table["image_id"].to_pylist(), table["label"].to_pylist(), strict=True))
