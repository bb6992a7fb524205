"""The same images under every posterior that is compared, as one figure of the page."""

import base64
import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

from pneumo_ray.evaluate.scored import titles
from pneumo_ray.explain.render import draw_side_by_side
from pneumo_ray.report.cases import Seen, outcomes
from pneumo_ray.report.galleries import case_of
from pneumo_ray.report.subject import Subject

ABOUT = (
    "From above: the true positive of median probability, the most confident false positive and the most confident false "
    "negative, of those on this page. The maps of an image are on one scale under all posteriors."
)
_QUALITY = 82


def sheet_of(subject: Subject, seen: Mapping[int, Seen]) -> bytes | None:
    """Return a PNG of up to three images under all compared posteriors; None where nothing is compared or can be drawn.

    Posteriors whose maps explain another class than the first one's are left out.

    Args:
        subject: content of the report.
        seen: images that were read, by their rows of `subject.chosen`.
    """
    sets = [one for one in subject.sets if one.scores.target == subject.chosen.target != "predicted"]
    if len(sets) < 2:
        return None
    places = [{name: place for place, name in enumerate(one.scores.table["image_id"].to_pylist())} for one in sets]
    names = subject.chosen.table["image_id"].to_pylist()
    shared = {row: image for row, image in seen.items() if all(names[row] in own for own in places)}
    images = [
        [case_of(one.scores, own[names[row]], shared[row]) for one, own in zip(sets, places, strict=True)]
        for row in _examples(subject, shared)
    ]
    return draw_side_by_side(images, titles(sets), "The same images under each posterior") if images else None


def _examples(subject: Subject, seen: Mapping[int, Seen]) -> list[int]:
    """Return the rows of `ABOUT`, as far as there are any."""
    rows = np.array(sorted(seen), dtype=np.int64)
    outcome, prob = outcomes(subject.chosen)[rows], subject.chosen.numbers("prob_mean")[rows]
    found = []
    for kind, place in (("true positive", 0.5), ("false positive", 1.0), ("false negative", 0.0)):
        members = rows[outcome == kind]
        if len(members):
            order = members[np.argsort(prob[outcome == kind], kind="stable")]
            found.append(int(order[round(place * (len(order) - 1))]))
    return found


def for_page(png: bytes) -> str:
    """Return a figure as a data address, as WebP."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(buffer, "WEBP", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
