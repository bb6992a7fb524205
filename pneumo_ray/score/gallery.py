"""Pictures of the cases that somebody should look at first, found in the scores: the most uncertain, the most suspicious.

Only these few are read and explained once more; the archive is not passed over again.
"""

import csv
import io

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from scipy.special import expit

from pneumo_ray import storage
from pneumo_ray.data.manifest import read_manifest
from pneumo_ray.explain.render import Case, draw_case, draw_sheet
from pneumo_ray.score.config import ExplainConfig
from pneumo_ray.score.decode import Failure, load_picture
from pneumo_ray.score.explainer import Explainer, ScoringModel
from pneumo_ray.score.source import Source
from pneumo_ray.score.workers import part_name

RANKINGS = {"uncertain": ("mutual_information", "Most uncertain"), "suspicious": ("prob_mean", "Most suspicious")}
"""Name of the pictures: the column that ranks them, and a title."""


def render_top(out: str, source: Source, model: ScoringModel, config: ExplainConfig) -> list[str]:
    """Write four-panel pictures and a contact sheet of the cases that rank highest, and `index.csv`, which names them.

    Args:
        out: folder of the scores; the pictures go to `pictures/` in it.
        source: the list of the job's pictures.
        model: what scored them.
        config: `top` says how many of each.

    Returns:
        The contact sheets.
    """
    labels = _labels(config)
    explainer = Explainer(model, config, torch.device("cpu"))
    index = [("file", "image_id", "prob_mean", "mutual_information")]
    sheets = []
    for name, (column, title) in RANKINGS.items():
        cases = []
        for shard, row, image_id in _highest(out, source, column, config.top):
            picked = source.read(shard).slice(row, 1).to_pylist()[0]
            picture = load_picture(picked["uri"], picked["member"], picked["frame"], model.preprocessing)
            if isinstance(picture, Failure):  # it was readable when it was scored and has gone since
                continue
            case = explained_case(explainer, picture, image_id, labels.get(image_id))
            cases.append(case)
            file = f"{name}-{len(cases):03d}.png"
            storage.write_bytes(storage.join(out, "pictures", file), draw_case(case))
            index.append((file, image_id, f"{case.prob_mean:.4f}", f"{case.mutual_information:.4f}"))
        if cases:
            sheets.append(storage.join(out, "pictures", f"{name}.png"))
            storage.write_bytes(sheets[-1], draw_sheet(cases, f"{title} {len(cases)} of {source.num_pictures:,}"))
    text = io.StringIO()
    csv.writer(text).writerows(index)
    storage.write_bytes(storage.join(out, "pictures", "index.csv"), text.getvalue().encode("utf-8", "replace"))
    return sheets


def explained_case(explainer: Explainer, picture: np.ndarray, title: str, label: int | None = None) -> Case:
    """Explain one picture, uint8 [S, S], and return it ready to be drawn."""
    e = explainer.explain(picture[None])
    facts = explainer.model.facts
    low, high = expit((e.logit_mean + torch.tensor([-1.96, 1.96]) * e.logit_std).numpy() / facts.temperature)
    return Case(
        title=title,
        picture=picture,
        cam=e.cam[0].numpy(),
        cam_mean=e.cam_mean[0].numpy(),
        cam_std=e.cam_std[0].numpy(),
        zone_mean=e.zone_mean[0].numpy(),
        target=int(e.target),
        prob_mean=float(e.prob_mean),
        prob_low=float(low),
        prob_high=float(high),
        mutual_information=float(e.mutual_information),
        threshold=facts.threshold,
        label=label,
    )


def _highest(out: str, source: Source, column: str, count: int) -> list[tuple[int, int, str]]:
    """Return shard, row and name of the pictures with the largest values, largest first."""
    best = pa.table(
        {
            "value": pa.array([], pa.float32()),
            "shard": pa.array([], pa.int64()),
            "row": pa.array([], pa.int64()),
            "image_id": pa.array([], pa.string()),
        }
    )
    for shard in range(source.num_shards):
        fs, path = storage.filesystem(storage.join(out, part_name(shard)))
        with fs.open_input_file(path) as file:
            table = pq.read_table(file, columns=["image_id", column])
        candidates = pa.table(
            {
                "value": table[column],
                "shard": pa.array([shard] * len(table), pa.int64()),
                "row": pa.array(np.arange(len(table))),
                "image_id": table["image_id"],
            }
        ).filter(pc.is_valid(table[column]))
        merged = pa.concat_tables([best, candidates])
        best = merged.take(pc.select_k_unstable(merged, count, [("value", "descending"), ("image_id", "ascending")]))
    return [(row["shard"], row["row"], row["image_id"]) for row in best.to_pylist()]


def _labels(config: ExplainConfig) -> dict[str, int]:
    if config.manifest is None:
        return {}
    table = read_manifest(storage.absolute(config.manifest))
    return dict(zip(table["image_id"].to_pylist(), table["label"].to_pylist(), strict=True))
