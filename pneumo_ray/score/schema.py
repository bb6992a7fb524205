"""Schema of the scores, and conversion of explanations to rows."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pneumo_ray.data.support import REASONS, Support
from pneumo_ray.evaluate.scores import CROP
from pneumo_ray.explain import ZONES, Explanation
from pneumo_ray.explain.masks import MAX_GROUPS
from pneumo_ray.model.calibrated import Calibration
from pneumo_ray.records import JsonObject
from pneumo_ray.score.facts import FACT_FIELDS
from pneumo_ray.site.profile import COLUMNS as SITE_COLUMNS
from pneumo_ray.site.profile import SiteProfile

NUMBERS = (
    "prob_mean",
    "prob_std",
    "logit_mean",
    "logit_std",
    "entropy",
    "expected_entropy",
    "mutual_information",
)
ZONE_GROUPS = "zone_groups"
"""Column of the zone means of each independent group of passes, group after group, zones in the order of `ZONES`."""
UNITS = {
    "prob_mean, prob_std": "calibrated probability of pneumonia, over the Monte Carlo passes",
    "logit, logit_mean, logit_std": "logit of pneumonia; logit is without dropout",
    "entropy, expected_entropy, mutual_information": "nats",
    "cam_mean, cam_std, zone_mean_*, zone_std_*": "logit of the explained class (target) per cell of the map, after ReLU",
    "zone_groups": "as zone_mean_*, of each independent group of passes, group after group",
    "*_std": "standard deviation over the passes, or in closed form where passes is exact; over members and passes of an ensemble",
    "*_std_between, *_std_within": "its parts between and within the members of an ensemble (the squares add up); null for one model",
    "outside_share": "share of cam_mean outside the lung box, 0 to 1; null without a box",
    "crop_x0, crop_y0, crop_x1, crop_y1": "what the network's input, and so the map, shows: fractions of the image's width and "
    "height; below 0 and above 1 lies padding",
    "lung_quality": "plausible, or why the lungs that were found cannot be; the input is then the whole image; null where nobody looked",
    "view": "frontal or doubtful",
    "lung_share": "share of cam_mean in the lungs, 0 to 1; null without plausible lungs, or where the map is 0",
    "peak_in_lungs": "whether the centre of the highest cell of cam_mean lies in the lungs; null likewise",
    "age_years": "years, 90 for every age above 89",
    "bytes_per_pixel": "size of the file / (image_width * image_height)",
    "contrast": "standard deviation of the grey levels of the image at 256 x 256, white being 1",
    "lung_area": "share of the image that is lung",
    "outside_support": "why the image is unlike the training images: "
    + ", ".join(REASONS)
    + "; null where it is like them",
    "prob_site, predicted_site, triage, site_hash": "by the site.json of jobs/commission.py; null without --site",
}
PEAK_IN_LUNGS = "peak_in_lungs"
_SITE_FIELDS = tuple(
    zip(SITE_COLUMNS, (pa.float32(), pa.int8(), pa.string(), pa.string()), strict=True),
)
MEMBERS = {
    "logit_std_between": "logit_between",
    "logit_std_within": "logit_within",
    "prob_std_between": "prob_between",
    "prob_std_within": "prob_within",
}
"""Columns of an ensemble, and the fields of `MemberSpread` that they hold."""
NO_MONTE_CARLO = "none: every mean and standard deviation is a closed form"
MONTE_CARLO = (
    "standard error of a mean over the passes: at most std / sqrt(passes); all images share what the passes draw, so that error is "
    "common to them and does not shrink with their number; zone_groups measure it"
)


@dataclass(frozen=True)
class ScoreFacts:
    """Facts shared by all rows of a job."""

    map_size: tuple[int, int]
    """Rows and columns of the maps."""
    model_hash: str
    config_hash: str
    threshold: float
    """On the calibrated probability: pneumonia is predicted where `prob_mean >= threshold`."""
    temperature: float
    method: JsonObject
    num_groups: int = MAX_GROUPS
    """Independent groups of Monte Carlo passes."""
    intercept: float = 0.0
    """Calibrated probability = sigmoid(logit / temperature + intercept)."""
    site: SiteProfile | None = None
    """What a commissioning found; None without --site."""
    support: Support | None = None
    """Of the training images; None where the bundle does not know."""

    @property
    def num_cells(self) -> int:
        """Cells of a map."""
        return self.map_size[0] * self.map_size[1]

    @property
    def calibration(self) -> Calibration:
        """How raw logits became probabilities."""
        return Calibration(self.temperature, self.intercept)

    @property
    def threshold_logit(self) -> float:
        """The operating point as a raw logit."""
        return self.calibration.raw_logit(self.threshold)

    def schema(self, precision: str = "float32") -> pa.Schema:
        """Return the schema of the scores: plain Arrow types, with shape, order and units in its metadata.

        Args:
            precision: in which the network ran.
        """
        cells = self.num_cells
        fields = [
            pa.field("image_id", pa.string(), nullable=False),
            pa.field("status", pa.string(), nullable=False),
            ("error_stage", pa.string()),
            ("error", pa.string()),
            ("logit", pa.float32()),
            *((name, pa.float32()) for name in NUMBERS),
            ("predicted", pa.int8()),
            ("refer", pa.bool_()),
            ("target", pa.int8()),
            ("cam_mean", pa.list_(pa.float32(), cells)),
            ("cam_std", pa.list_(pa.float32(), cells)),
            *((f"zone_mean_{zone}", pa.float32()) for zone in ZONES),
            *((f"zone_std_{zone}", pa.float32()) for zone in ZONES),
            ("outside_share", pa.float32()),
            ("model_hash", pa.string()),
            ("config_hash", pa.string()),
            (ZONE_GROUPS, pa.list_(pa.float32(), self.num_groups * len(ZONES))),
            ("decode_note", pa.string()),
            *((name, pa.float32()) for name in CROP),
            ("lung_quality", pa.string()),
            ("view", pa.string()),
            ("lung_share", pa.float32()),
            (PEAK_IN_LUNGS, pa.bool_()),
            *FACT_FIELDS,
            ("outside_support", pa.string()),
            *_SITE_FIELDS,
            *((name, pa.float32()) for name in MEMBERS),
        ]
        facts = {
            "format": "pneumo_ray.scores 1",
            "map_shape": json.dumps(self.map_size),
            "map_order": "row-major",
            "zones": json.dumps(ZONES),
            "units": json.dumps(UNITS),
            "model_hash": self.model_hash,
            "config_hash": self.config_hash,
            "threshold": repr(self.threshold),
            "temperature": repr(self.temperature),
            "intercept": repr(self.intercept),
            "method": json.dumps(self.method),
            "precision": precision,
            "site_hash": "" if self.site is None else self.site.hash,
            "use": "research use only",
        }
        return pa.schema(fields, metadata=facts)

    def table(
        self,
        image_ids: Sequence[str],
        failures: Sequence[tuple[str, str] | None],
        explained: dict[str, np.ndarray],
        precision: str = "float32",
        notes: Sequence[str | None] | None = None,
    ) -> pa.Table:
        """Return the rows of some images, in order.

        Args:
            image_ids: n names.
            failures: for each, stage and error where it failed, or None.
            explained: what `to_columns` made of those that did not fail, in order, and what is known of their frames; a
                column that it lacks is null.
            precision: in which the network ran.
            notes: for each, what of its file took no part in its pixels; None for nothing at all.
        """
        good = np.array([failure is None for failure in failures])
        place = np.cumsum(good) - 1
        order = pa.array(np.where(good, place, 0), mask=~good)
        constant = {"model_hash": self.model_hash, "config_hash": self.config_hash}
        stages = [None if failure is None else failure[0] for failure in failures]
        errors = [None if failure is None else failure[1] for failure in failures]
        columns: JsonObject = {
            "image_id": list(image_ids),
            "status": ["ok" if failure is None else "failed" for failure in failures],
            "error_stage": stages,
            "error": errors,
            "decode_note": notes or [None] * len(image_ids),
        }
        schema = self.schema(precision)
        arrays = []
        for spec in schema:
            if spec.name in columns:
                arrays.append(pa.array(columns[spec.name], spec.type))
            elif spec.name in constant:
                arrays.append(pa.array([constant[spec.name]] * len(image_ids), spec.type))
            elif not good.any() or spec.name not in explained:
                arrays.append(pa.nulls(len(image_ids), spec.type))
            else:
                arrays.append(_array(explained[spec.name], spec.type).take(order))
        return pa.table(arrays, schema=schema)


def to_columns(
    e: Explanation, facts: ScoreFacts, refer_z: float, outside: Tensor | None, functionals: Tensor | None = None
) -> dict[str, np.ndarray]:
    """Turn an explanation of B images into columns of B values.

    `refer` marks images on whose decision the passes disagree: the threshold is within `refer_z` standard
    deviations of the mean logit.

    Args:
        e: the explanation.
        facts: shared by all rows.
        refer_z: half width of the band, in standard deviations over the passes.
        outside: [B], share of the mean map outside the lung box; NaN where there is none. None for no boxes at all.
        functionals: float32 [B, 3, h * w], the last three rows of `frame.map_functionals`; NaN where there are no lungs.
            None for no lungs at all.
    """
    columns: dict[str, Tensor] = {name: getattr(e, name) for name in ("logit", *NUMBERS)}
    columns["predicted"] = (e.prob_mean.double() >= facts.threshold).to(torch.int8)
    columns["refer"] = (e.logit_mean - facts.threshold_logit).abs() <= refer_z * e.logit_std
    columns["target"] = e.target
    columns["cam_mean"], columns["cam_std"] = e.cam_mean.flatten(1), e.cam_std.flatten(1)
    for number, zone in enumerate(ZONES):
        columns[f"zone_mean_{zone}"] = e.zone_mean[:, number]
        columns[f"zone_std_{zone}"] = e.zone_std[:, number]
    if e.zone_groups is not None:
        columns[ZONE_GROUPS] = e.zone_groups.flatten(1)
    if e.members is not None:
        columns |= {name: getattr(e.members, member) for name, member in MEMBERS.items()}
    columns["outside_share"] = torch.full_like(e.logit, torch.nan) if outside is None else outside
    if functionals is not None:
        maps = columns["cam_mean"]
        inside, whole = ((functionals[:, row] * maps).sum(1) for row in (0, 1))
        columns["lung_share"] = inside / whole  # 0 / 0 is NaN: a blank map has no share
        peaks = functionals[:, 2].gather(1, maps.argmax(1, keepdim=True))[:, 0]
        columns[PEAK_IN_LUNGS] = peaks.masked_fill(maps.amax(1) <= 0, torch.nan)
    return {name: value.cpu().numpy() for name, value in columns.items()}


def _array(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), kind.value_type), kind.list_size)
    if values.dtype == object:  # None where nothing is known
        return pa.array(values.tolist(), kind)
    missing = np.isnan(values) if values.dtype.kind == "f" else None
    if pa.types.is_boolean(kind) and missing is not None:  # 1, 0, or NaN where it is not known
        values = values > 0
    return pa.array(values, kind, mask=missing)
