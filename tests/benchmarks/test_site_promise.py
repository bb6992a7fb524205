"""Halves of a site by patient, and what the other half says of each promise."""

import json

import numpy as np
import pyarrow as pa

from benchmarks.site_promise import checked, halves
from pneumo_ray.data.manifest import SCHEMA
from pneumo_ray.site.labels import Labelled
from pneumo_ray.site.profile import SiteProfile
from pneumo_ray.site.recalibration import Recalibration

SHARE = {"value": 0.9, "expected": 0.89, "low": 0.8, "high": 0.97, "at_least": 0.85}
MEASURE = {"value": 0.1, "interval": [0.05, 0.2]}
PAGE = {
    "threshold": {"sensitivity": SHARE, "specificity": SHARE, "own": {"threshold": 0.5, "sensitivity": SHARE, "specificity": SHARE}},
    "triage": {"alpha": 0.05, "called_share": 0.8},
    "calibration": {when: dict.fromkeys(("brier", "ece", "log_loss"), MEASURE) for when in ("before", "after_cross_fitted")},
    "prevalence": {**SHARE, "value": 0.5, "low": 0.4, "high": 0.6, "source": "unlabelled"},
}  # fmt: skip


def test_halves_part_labelled_patients():
    rows = [
        {"image_id": f"{i}.png", "label": i % 2 if i < 60 else None, "patient_id": f"{i // 3}" if i < 57 else None,
         "split": "train", "status": "ok"}
        for i in range(80)
    ]  # fmt: skip
    local, other = halves(pa.Table.from_pylist(rows, schema=SCHEMA), seed=0)
    assert local.schema == SCHEMA
    sides = [{row["image_id"] for row in half.to_pylist() if row["label"] is not None} for half in (local, other)]
    assert sides[0] | sides[1] == {f"{i}.png" for i in range(60)}
    assert not sides[0] & sides[1]
    patients = [{rows[int(name[:-4])]["patient_id"] or name for name in side} for side in sides]
    assert not patients[0] & patients[1]
    assert sorted(map(len, patients)) == [11, 11]
    assert set(local["split"].to_pylist()[:60]) == {"test"}
    assert set(local["split"].to_pylist()[60:]) == {None}


def _other(found: int, wrong: int) -> Labelled:
    """Of 100 patients with pneumonia, `found` at 0.7; of 100 without, `wrong` at 0.9 and the rest at 0.1."""
    ill = np.where(np.arange(100) < found, 0.7, 0.1)
    well = np.where(np.arange(100) < wrong, 0.9, 0.1)
    return Labelled(np.concatenate([ill, well]), np.repeat([1, 0], 100), np.arange(200))


def test_broken_promises_are_named():
    """Binomial tail sums: P(X <= 78 | 100, 0.85) = 0.04, P(X <= 79) = 0.07, P(X >= 10 | 100, 0.05) = 0.03, P(X >= 9) = 0.06."""
    profile = SiteProfile("m", {}, Recalibration(), 0.6, 0.0, 0.8)
    page = json.loads(json.dumps(PAGE))

    def kept(found: int, wrong: int) -> dict[str, str]:
        return {row.name: row.kept for row in checked(page, profile, _other(found, wrong), 0)}

    assert kept(79, 0)["sensitivity at the threshold for the site"] == "yes"
    assert kept(78, 0)["sensitivity at the threshold for the site"] == "no"
    assert kept(100, 15)["specificity at the threshold for the site"] == "yes"
    assert kept(100, 40)["specificity at the threshold for the site"] == "no"
    assert kept(100, 0)["share of pneumonia"] == "yes"
    profile = SiteProfile("m", {}, Recalibration(), 0.6, 0.2, 0.8)
    assert kept(100, 9)["called wrong, normal"] == "yes"
    assert kept(100, 10)["called wrong, normal"] == "no"
