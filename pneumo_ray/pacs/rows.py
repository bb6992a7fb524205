"""From a row of the scores to what is published of it: its result, and the case that the panels show."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumo_ray.anatomy.lungs import PLAUSIBLE, Lungs, lungs_of
from pneumo_ray.anatomy.masks import MaskError, decode_mask
from pneumo_ray.evaluate.scores import CROP, FORMAT
from pneumo_ray.explain.case import Case, Window, passes_interval, scored_case
from pneumo_ray.explain.panels import panel_image
from pneumo_ray.explain.zones import ZONES, Box
from pneumo_ray.pacs.result import Result, Zone
from pneumo_ray.records import JsonObject, Row


@dataclass(frozen=True)
class Facts:
    """What the rows of a scoring job share."""

    map_size: tuple[int, int]
    threshold: float
    temperature: float
    intercept: float
    zones: str
    """image, box or lungs."""
    model_hash: str
    config_hash: str
    whole: Window
    """What the network saw of an image whose row does not say it."""

    @classmethod
    def of(cls, metadata: Mapping[bytes, bytes] | None, whole: Window) -> "Facts | None":
        """Read them from the metadata of a file of scores; None where it is no such file."""
        found = {} if metadata is None else metadata
        if found.get(b"format", b"").decode() != FORMAT:
            return None
        rows, columns = json.loads(found[b"map_shape"])
        method: JsonObject = json.loads(found[b"method"])
        return cls(
            (rows, columns),
            float(found[b"threshold"]),
            float(found[b"temperature"]),
            float(found.get(b"intercept", b"0")),
            method.get("zones") or "image",
            found[b"model_hash"].decode(),
            found[b"config_hash"].decode(),
            whole,
        )


def is_doubtful(row: Row) -> bool:
    """Whether the view of an image is doubtful, or the image is outside the support of the training images."""
    return row.get("view") == "doubtful" or row.get("outside_support") is not None


def result_of(row: Row, facts: Facts) -> Result:
    """Return what is published of a row that did not fail."""
    low, high = passes_interval(row["logit_mean"], row["logit_std"], facts.temperature, facts.intercept)
    called_at_site = row.get("predicted_site")
    return Result(
        prob_mean=row["prob_mean"],
        prob_std=row["prob_std"],
        # The mean over the passes may lie outside of the interval of a very skewed logit.
        prob_low=min(low, row["prob_mean"]),
        prob_high=max(high, row["prob_mean"]),
        logit_mean=row["logit_mean"],
        logit_std=row["logit_std"],
        entropy=row["entropy"],
        expected_entropy=row["expected_entropy"],
        mutual_information=row["mutual_information"],
        threshold=facts.threshold,
        called=bool(row["predicted"]),
        refer=bool(row["refer"]),
        target_is_pneumonia=bool(row["target"]),
        zones=tuple(Zone(zone, row[f"zone_mean_{zone}"], row[f"zone_std_{zone}"]) for zone in ZONES),
        zones_of_lungs=facts.zones == "lungs",
        lung_share=row.get("lung_share"),
        outside_share=row["outside_share"],
        peak_in_lungs=row.get("peak_in_lungs"),
        doubtful=is_doubtful(row),
        prob_site=row.get("prob_site"),
        called_at_site=None if called_at_site is None else bool(called_at_site),
        triage=row.get("triage"),
        cam_mean=np.array(row["cam_mean"], np.float32).reshape(facts.map_size),
        cam_std=np.array(row["cam_std"], np.float32).reshape(facts.map_size),
        window=_window(row, facts),
    )


def case_of(row: Row, listed: Row, facts: Facts, grey: NDArray[np.uint8]) -> Case:
    """Return what the panels show.

    Args:
        row: of the scores.
        listed: the same image in the list of the job.
        facts: of the job.
        grey: uint8 [H, W], the image.
    """
    height, width = grey.shape
    shape = listed.get("shape_width") or width, listed.get("shape_height") or height
    image = panel_image(grey, *shape)
    return scored_case(
        row | {"image_id": ""},
        image,
        facts.map_size,
        facts.temperature,
        facts.threshold,
        None,
        zone_box=_zone_box(listed, image, _window(row, facts)),
        intercept=facts.intercept,
        window=_window(row, facts),
        lungs=_lungs(listed),
        lung_zones=facts.zones == "lungs",
    )


def verdict(result: Result) -> str:
    """Return the line of words above the panels."""
    called = "pneumonia" if result.called else "normal"
    doubts = [word for word, holds in (("passes disagree", result.refer), ("doubtful image", result.doubtful)) if holds]
    return (
        f"probability of pneumonia {result.prob_mean:.2f} ({result.prob_low:.2f} to {result.prob_high:.2f}, 95 % interval of the "
        f"passes) · called {called} at the threshold {result.threshold:.2f}{''.join(f' · {doubt}' for doubt in doubts)}"
    )


def _window(row: Row, facts: Facts) -> Window:
    corners = [row.get(name) for name in CROP]
    if any(corner is None for corner in corners):
        return facts.whole
    return (float(corners[0]), float(corners[1]), float(corners[2]), float(corners[3]))  # type: ignore[arg-type]


def _lungs(listed: Row) -> Lungs | None:
    if listed.get("lung_quality") != PLAUSIBLE or listed.get("lung_mask") is None:
        return None
    try:
        return lungs_of(decode_mask(listed["lung_mask"]))
    except MaskError:
        return None


def _zone_box(listed: Row, image: NDArray[np.uint8], window: Window) -> Box | None:
    """Return the box that the zones divide, in pixels of the panel; None where it is the network's input."""
    box = listed.get("image_box")
    if box is None:
        return None
    height, width = image.shape
    return round(box[0] * width), round(box[1] * height), round(box[2] * width), round(box[3] * height)
