"""The page of the most doubtful labels: what a study of labels found, with the images, for those who decide what to read again.

It shows the label and the probability of each image. Whoever reads the images again should do so on a reading page, blinded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pneumo_ray import storage
from pneumo_ray.console import log
from pneumo_ray.data.manifest import SPLITS, read_manifest
from pneumo_ray.evaluate.number_text import percent_text
from pneumo_ray.model.config import CLASSES
from pneumo_ray.report.reading_page import read_jpegs
from pneumo_ray.report.shell import made, render
from pneumo_ray.report.wording import Cell, CellValue

SHOWN = 60
"""Images of the page."""
MAX_SIDE = 640
"""Longest side of an image, in pixels."""


@dataclass(frozen=True)
class Card:
    """One image of the page."""

    rank: int
    image_id: str
    given: str
    """Class of its label."""
    prob: float
    """Out-of-fold probability of pneumonia."""
    split: str
    """Empty for an image of none."""
    is_doubtful: bool
    image: str | None
    """JPEG in base64; None where the file can no longer be read."""


def write_doubt_page(out: str) -> None:
    """Write doubtful.html into the folder of a study of labels.

    Args:
        out: folder with doubtful.parquet and confidence.parquet, as `tune.doubt` writes them.

    Raises:
        PneumoError: if a table cannot be read, or the page not written.
    """
    out = storage.absolute(out)
    doubt = storage.read_table(storage.join(out, "doubtful.parquet"))
    first = doubt.slice(0, SHOWN)
    manifest = read_manifest(storage.join(out, "confidence.parquet"))
    place = pc.index_in(first["image_id"].combine_chunks(), value_set=manifest["image_id"].combine_chunks())
    cards = [
        Card(
            row["rank"],
            row["image_id"],
            CLASSES[row["label"]],
            row["prob"],
            row["split"] or "",
            row["doubtful"],
            image,
        )
        for row, image in zip(first.to_pylist(), read_jpegs(manifest.take(place), MAX_SIDE), strict=True)
    ]
    page = storage.join(out, "doubtful.html")
    storage.write_bytes(page, render_doubt(doubt, cards, out).encode("utf-8", "replace"))
    log(f"page {page}")


def render_doubt(doubt: pa.Table, cards: Sequence[Card], out: str) -> str:
    """Return the page.

    Args:
        doubt: table of a `tune.doubt.Doubt`.
        cards: its first images.
        out: folder of the study.
    """
    trained = doubt.filter(pc.is_valid(doubt["fold"]))
    folds = pc.count_distinct(trained["fold"]).as_py()
    count = pc.sum(doubt["doubtful"]).as_py()
    context = {
        "title": "Doubtful labels",
        "subtitle": f"{len(doubt):,} labelled images; study {out}",
        "sections": [("summary", "Summary"), ("images", "Images"), ("method", "Method")],
        "figures": {},
        "numbers_shown": [
            {"name": "labels", "value": f"{len(doubt):,}", "interval": f"{len(trained):,} of training images, {folds} folds"},
            {"name": "doubtful", "value": f"{count:,}", "interval": f"{percent_text(count / len(doubt))} of them"},
            *(_number_of(doubt, label) for label in (0, 1)),
        ],
        "about": [
            "A label is doubtful if a model that has not trained on the image is confident of the other class. Some of these labels "
            "are wrong, and some images are only difficult: read them again before a label is changed."
        ],
        "warnings": [
            "This page shows labels and probabilities. A reader who has seen it is not blinded any more: give readers the page of "
            "jobs/readers.py, from the queue of --by doubtful."
        ],
        "group_rows": _groups(doubt),
        "cards": cards,
        "made": made(),
    }  # fmt: skip
    return render("doubtful.html", context, styles=("doubtful.css",))


def _number_of(doubt: pa.Table, label: int) -> dict[str, str]:
    mine = doubt.filter(pc.equal(doubt["label"], label))
    count = pc.sum(mine["doubtful"]).as_py() or 0
    share = percent_text(count / len(mine)) if len(mine) else "none"
    return {
        "name": f"labelled {CLASSES[label]}",
        "value": f"{count:,}",
        "interval": f"doubtful, {share} of {len(mine):,}",
    }


def _groups(doubt: pa.Table) -> list[list[CellValue]]:
    """Return a row for each split and class: images, doubtful ones, their share, median self-confidence."""
    rows: list[list[CellValue]] = []
    splits = pc.fill_null(doubt["split"], "")
    for split in (*SPLITS, ""):
        for label, name in enumerate(CLASSES):
            mine = doubt.filter(pc.and_(pc.equal(splits, split), pc.equal(doubt["label"], label)))
            if not len(mine):
                continue
            count = pc.sum(mine["doubtful"]).as_py()
            share = count / len(mine)
            middle = pc.quantile(mine["self_confidence"], 0.5)[0].as_py()
            row: list[CellValue] = [f"{split or 'no split'}, {name}", len(mine), count]
            rows.append([*row, Cell(share, percent_text(share)), Cell(middle, f"{middle:.2f}")])
    return rows
