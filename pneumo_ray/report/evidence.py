"""The tables of where the evidence lies: in the lungs, and in true boxes, each beside chance."""

from typing import Any

from pneumo_ray.anatomy.lungs import PLAUSIBLE
from pneumo_ray.report.wording import percent_text, with_range, words_of

_BOX_GROUPS = {"all": "all", "called": "called pneumonia"}
_BOX_MEASURES = {
    "pointing": "pointing game: the map's maximum lies in a box",
    "energy": "share of the evidence in the boxes",
    "iou": "IoU",
    "dice": "Dice",
    "average_precision": "average precision of the pixels, by image",
    "pixels": "average precision of the pixels of all images together",
}


def lungs_and_boxes(numbers: dict[str, Any]) -> dict[str, Any]:
    """Return the tables of evidence in the lungs and in true boxes; without rows where they were not measured."""
    lungs, boxes = numbers.get("lungs"), numbers.get("localisation")
    lung_rows: list[list[Any]] = []
    lungs_about = boxes_about = ""
    if lungs is not None:
        for group in lungs["groups"]:
            share, peak = group["lung_share"], group["peak_in_lungs"]
            lung_rows.append(
                [
                    f"{group['pictures']} ({share['n']:,})",
                    *_beside_chance(share),
                    with_range(peak["value"], peak["interval"]),
                ]
            )
        lungs_about = _lungs_about(lungs)
    box_rows = []
    if boxes is not None:
        for name, words in _BOX_GROUPS.items():
            for measure, title in _BOX_MEASURES.items():
                found = boxes["groups"][name][measure]
                box_rows.append([title, f"{words} ({found['n']:,})", *_beside_chance(found)])
        origin = (
            "chosen on validation images with boxes" if boxes["threshold_from"] == "validation" else "fixed beforehand"
        )
        boxes_about = (
            f"{boxes['boxes']:,} true boxes in {boxes['images']:,} images; the network's input shows {percent_text(boxes['visible'])} of "
            f"their area. For IoU and Dice a pixel is marked from {boxes['threshold']:g} of the map's maximum on ({origin}). Chance is what "
            "a map has that is the same everywhere, and for the pointing game what a random point has."
        )
    return {"lung_rows": lung_rows, "lungs_about": lungs_about, "box_rows": box_rows, "boxes_about": boxes_about}


def _beside_chance(found: dict[str, Any]) -> list[Any]:
    """Return the cells of a share: the value, what chance gives, and the difference, where they are known."""
    return [
        with_range(found["value"], found["interval"]),
        found["chance"],
        with_range(found.get("above_chance"), found.get("above_chance_interval")),
    ]


def _lungs_about(lungs: dict[str, Any]) -> str:
    quality, views = lungs["quality"], lungs["views"]
    text = (
        f"Lungs were looked for in {sum(quality.values()):,} images; {views['doubtful']:,} of them are doubtful views"
    )
    reasons = [f"{words_of(name)} {count:,}" for name, count in quality.items() if name != PLAUSIBLE]
    text += f" ({', '.join(reasons)})." if reasons else "."
    if all(group["lung_share"]["chance"] is None for group in lungs["groups"]):
        text += " The lungs' share of the area is not known: the manifest has no masks (jobs/prepare.py --lungs found)."
    return text
