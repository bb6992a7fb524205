"""The tables of where the evidence lies: in the lungs, and in true boxes, each beside chance."""

from dataclasses import dataclass, field

from pneumo_ray.anatomy.lungs import PLAUSIBLE
from pneumo_ray.evaluate.attention import Localisation
from pneumo_ray.evaluate.lung_evidence import LungEvidence
from pneumo_ray.evaluate.number_text import percent_text
from pneumo_ray.evaluate.shares import MeanShare, Share
from pneumo_ray.report.wording import CellValue, with_range, words_of

_BOX_GROUPS = {"all": "all", "called": "called pneumonia"}
_BOX_MEASURES = {
    "pointing": "pointing game: the map's maximum lies in a box",
    "energy": "share of the evidence in the boxes",
    "iou": "IoU",
    "dice": "Dice",
    "average_precision": "average precision of the pixels, by image",
    "pixels": "average precision of the pixels of all images together",
}


@dataclass(frozen=True)
class EvidenceTable:
    """A table of where the evidence lies, and the sentence above it; without rows where it was not measured."""

    rows: list[list[CellValue]] = field(default_factory=list)
    about: str = ""


def lung_table(lungs: LungEvidence | None) -> EvidenceTable:
    """Return the table of the evidence in the lungs."""
    if lungs is None:
        return EvidenceTable()
    rows: list[list[CellValue]] = []
    for group in lungs.groups:
        share, peak = group.lung_share, group.peak_in_lungs
        rows.append([f"{group.images} ({share.n:,})", *_beside_chance(share), with_range(peak.value, peak.interval)])
    return EvidenceTable(rows, _lungs_about(lungs))


def box_table(boxes: Localisation | None) -> EvidenceTable:
    """Return the table of the evidence in true boxes."""
    if boxes is None:
        return EvidenceTable()
    rows: list[list[CellValue]] = []
    for name, words in _BOX_GROUPS.items():
        for measure, title in _BOX_MEASURES.items():
            found = boxes.groups[name][measure]
            rows.append([title, f"{words} ({found.n:,})", *_beside_chance(found)])
    origin = "chosen on validation images with boxes" if boxes.threshold_from == "validation" else "fixed beforehand"
    about = (
        f"{boxes.boxes:,} true boxes in {boxes.images:,} images; the network's input shows {percent_text(boxes.visible)} of "
        f"their area. For IoU and Dice a pixel is marked from {boxes.threshold:g} of the map's maximum on ({origin}). Chance is what "
        "a map has that is the same everywhere, and for the pointing game what a random point has."
    )
    return EvidenceTable(rows, about)


def _beside_chance(found: Share) -> list[CellValue]:
    """Return the cells of a share: the value, what chance gives, and the difference, where they are known."""
    above = with_range(None, None)
    if isinstance(found, MeanShare):
        above = with_range(found.above_chance, found.above_chance_interval)
    return [with_range(found.value, found.interval), found.chance, above]


def _lungs_about(lungs: LungEvidence) -> str:
    quality = lungs.quality
    text = f"Lungs were looked for in {sum(quality.values()):,} images; {lungs.views.doubtful:,} of them are doubtful views"
    reasons = [f"{words_of(name)} {count:,}" for name, count in quality.items() if name != PLAUSIBLE]
    text += f" ({', '.join(reasons)})." if reasons else "."
    if all(group.lung_share.chance is None for group in lungs.groups):
        text += " The lungs' share of the area is not known: the manifest has no masks (jobs/prepare.py --lungs found)."
    return text
