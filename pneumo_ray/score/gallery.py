"""Figures of the most uncertain and the most suspicious cases, chosen by the scores.

Only these images are read and explained again.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pneumo_ray import storage
from pneumo_ray.console import log
from pneumo_ray.data.manifest import read_manifest
from pneumo_ray.explain.render import Case, draw_case, draw_sheet, scored_case
from pneumo_ray.explain.zones import Box
from pneumo_ray.score.config import ExplainConfig
from pneumo_ray.score.decode import Failure, load_image
from pneumo_ray.score.explainer import Explainer, ModelPayload
from pneumo_ray.score.image_list import Source
from pneumo_ray.score.schema import part_name

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
    explainer = Explainer(model, config, torch.device("cpu"))
    index = [("file", "image_id", "prob_mean", "mutual_information")]
    sheets, gone = [], 0
    for name, (columns, title) in RANKINGS.items():
        cases = []
        for shard, row, image_id in _highest(out, source, columns, config.top):
            scored = storage.read_table(storage.join(out, part_name(shard))).slice(row, 1).to_pylist()[0]
            picked = source.read(shard).slice(row, 1).to_pylist()[0]
            image = load_image(picked["uri"], picked["member"], picked["frame"], model.preprocessing)
            if isinstance(image, Failure):  # it was readable when it was scored
                gone += 1
                continue
            case = _explained_case(explainer, image, scored, picked["box"], labels.get(image_id))
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


def _explained_case(
    explainer: Explainer, image: np.ndarray, scored: dict[str, Any], box: Box | None, label: int | None
) -> Case:
    """Return a case with the values of the scores and the map without dropout, which they do not contain."""
    facts = explainer.model.facts
    e = explainer.explain(image[None], target="pneumonia" if scored["target"] else "normal")
    zone_box = None if box is None else (box[0], box[1], box[2], box[3])
    return scored_case(
        scored,
        image,
        facts.map_size,
        facts.calibration.temperature,
        facts.threshold,
        label,
        e.cam[0].numpy(),
        zone_box,
        facts.calibration.intercept,
    )


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
