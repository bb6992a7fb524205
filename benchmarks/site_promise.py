"""What commissioning promises, and what other patients of the site show: `python -m benchmarks.site_promise SCORES MANIFEST OUT`.

Half of the labelled patients, drawn at random, give the local labels; jobs/commission.py sees the images of the others without
their labels. Then those labels check its page: sensitivity and specificity, the errors of triage among the called, calibration,
and the share of pneumonia. Images without a label take no part, so that the truth is known of all.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.stats import binomtest

from pneumo_ray.data.manifest import SCHEMA, read_manifest, write_manifest
from pneumo_ray.evaluate.metrics import classification_metrics
from pneumo_ray.evaluate.scores import read_scores
from pneumo_ray.report.commissioning import write_commissioning
from pneumo_ray.site.config import CommissionConfig, TriageConfig
from pneumo_ray.site.labels import Labelled, site_images
from pneumo_ray.site.profile import NEGATIVE, POSITIVE, TO_READ, SiteProfile
from pneumo_ray.site.threshold import at_threshold

HEADER = "| | on the page | the other half | kept |\n| --- | --- | --- | --- |"
_SPLIT = "test"
_LEVEL = 0.05


@dataclass(frozen=True)
class Row:
    """A promise beside what the other half shows."""

    name: str
    promised: str
    seen: str
    kept: str = ""


def halves(manifest: pa.Table, seed: int) -> tuple[pa.Table, pa.Table]:
    """Return the manifest with the labels of half of the labelled patients, and with those of the other half.

    All labelled images come into one split, and all others into none. An image without a patient is one of its own.
    """
    known = manifest["label"].is_valid()
    names = pc.coalesce(manifest["patient_id"], manifest["image_id"])
    patients = np.array(sorted(set(names.filter(known).to_pylist())), object)
    drawn = np.random.default_rng(seed).permutation(patients)[: len(patients) // 2].tolist()
    local = pc.is_in(names, value_set=pa.array(drawn, names.type))
    split = pc.if_else(known, pa.scalar(_SPLIT, SCHEMA.field("split").type), None)
    place = manifest.column_names.index("split")
    manifest = manifest.set_column(place, SCHEMA.field("split"), split)
    return _labels_of(manifest, local), _labels_of(manifest, pc.invert(local))


def _labels_of(manifest: pa.Table, rows: pa.ChunkedArray) -> pa.Table:
    for name in ("label", "subtype"):
        kept = pc.if_else(rows, manifest[name], pa.scalar(None, manifest[name].type))
        manifest = manifest.set_column(manifest.column_names.index(name), manifest.schema.field(name), kept)
    return manifest


def checked(page: dict[str, Any], profile: SiteProfile, other: Labelled, seed: int) -> list[Row]:
    """Return every promise of a site.json beside what other patients show.

    Args:
        page: site.json.
        profile: the same, as scoring applies it.
        other: labelled images of patients whose labels took no part.
        seed: of the image that stands for a patient in counts.
    """
    single = other.one_per_patient(seed)
    rows = []
    for name, seen in zip(("sensitivity", "specificity"), at_threshold(single, profile.threshold), strict=True):
        said, own = page["threshold"][name], page["threshold"]["own"]
        broken = _below(seen.found, seen.of, said["at_least"])
        rows.append(Row(
            f"{name} at the threshold for the site", f"{_share(said)}, at least {said['at_least']:.3f}",
            f"{seen.value or 0:.3f} ({seen.found} of {seen.of})", "no" if broken else "yes",
        ))  # fmt: skip
        before = at_threshold(single, own["threshold"])[0 if name == "sensitivity" else 1]
        rows.append(Row(f"{name} at the model's own", _share(own[name]), f"{before.value or 0:.3f} ({before.found} of {before.of})"))  # fmt: skip
    rows += _triage_rows(page["triage"], profile, single)
    probs = {"before": other.prob, "after_cross_fitted": profile.recalibration.prob(other.prob)}
    for measure, words in (("brier", "Brier score"), ("ece", "calibration error"), ("log_loss", "log loss")):
        said = [page["calibration"][when][measure] for when in probs]
        seen_values = [classification_metrics(other.label, prob, 0.5)[measure] for prob in probs.values()]
        rows.append(Row(f"{words}, before and after", " to ".join(map(_measure, said)), " to ".join(f"{value:.3f}" for value in seen_values)))  # fmt: skip
    said, truth = page["prevalence"], float(other.label.mean())
    inside = said["low"] <= truth <= said["high"]
    rows.append(Row("share of pneumonia", f"{_share(said)}, {said['source']}", f"{truth:.3f}", "yes" if inside else "no"))  # fmt: skip
    return rows


def _triage_rows(said: dict[str, Any], profile: SiteProfile, single: Labelled) -> list[Row]:
    if "reason" in said:
        return [Row("triage", f"none: {said['reason']}", "")]
    calls: NDArray[np.object_] = profile.columns(single.prob.astype(np.float32))["triage"]
    rows = [Row("called by triage", f"{said['called_share']:.3f}", f"{np.mean(calls != TO_READ):.3f}")]
    for label, name, mistake in ((1, "pneumonia", NEGATIVE), (0, "normal", POSITIVE)):
        of = single.label == label
        wrong, called = int(np.sum(calls[of] == mistake)), int(np.sum(calls[of] != TO_READ))
        broken = bool(called) and binomtest(wrong, called, said["alpha"], alternative="greater").pvalue < _LEVEL
        rows.append(Row(f"called wrong, {name}", f"at most {said['alpha']:g}", f"{wrong} of {called} called ({int(of.sum())} images)", "no" if broken else "yes"))  # fmt: skip
    return rows


def _below(found: int, of: int, end: float) -> bool:
    """Return whether the other half contradicts a lower end: an exact test at 0.05."""
    return end > 0 and of > 0 and bool(binomtest(found, of, end, alternative="less").pvalue < _LEVEL)


def _share(said: dict[str, Any]) -> str:
    return f"{said.get('expected', said['value']):.3f} ({said['low']:.3f} to {said['high']:.3f})"


def _measure(said: dict[str, Any]) -> str:
    ends = said["interval"]
    return f"{said['value']:.3f}" + (f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else "")


def main() -> None:
    """Commission on one half and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scores")
    parser.add_argument("manifest")
    parser.add_argument("out", type=Path, help="folder for the two manifests and the page")
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--delta", type=float, default=0.05)
    parser.add_argument("--name", default="")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    local, rest = halves(read_manifest(options.manifest), options.seed)
    labelled = str(options.out / "local.parquet")
    write_manifest(local, labelled)
    write_manifest(rest, str(options.out / "other.parquet"))
    triage = TriageConfig(options.alpha, options.delta)
    config = CommissionConfig(options.scores, labelled, str(options.out / "site"), split=_SPLIT, triage=triage, name=options.name)  # fmt: skip
    profile = write_commissioning(config)
    page = json.loads((options.out / "site" / "site.json").read_text())
    other = site_images(read_scores(options.scores).ok().joined(rest)).labelled
    print(HEADER)
    for row in checked(page, profile, other, options.seed):
        print(f"| {row.name} | {row.promised} | {row.seen} | {row.kept} |")


if __name__ == "__main__":
    main()
