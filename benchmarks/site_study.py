"""Before and after commissioning with few labels, by repeated draws: `python benchmarks/site_study.py SCORES MANIFEST`.

Of the labelled images a number is drawn as local labels, by patient and at random; the others check what was promised. The
table has a row for each number of labels: medians over the draws, and the share of draws that were refused, of thresholds
that reach less than their lower end, and of promises of triage that the other images break.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import binomtest

from pneumo_ray.errors import ConfigError
from pneumo_ray.evaluate.config import OperatingPointConfig
from pneumo_ray.evaluate.metrics import classification_metrics
from pneumo_ray.site.commission import read_site
from pneumo_ray.site.config import CommissionConfig
from pneumo_ray.site.labels import Labelled, site_images
from pneumo_ray.site.prevalence import estimate_prevalence
from pneumo_ray.site.recalibration_fit import choose
from pneumo_ray.site.threshold import choose_threshold
from pneumo_ray.site.triage import Triage, find_triage

MEASURES = ("brier", "ece", "log_loss")


@dataclass(frozen=True)
class Draw:
    """One draw of local labels, measured on the other labelled images."""

    before: tuple[float, ...]
    after: tuple[float, ...]
    """`MEASURES` of the probabilities, on the other images."""
    own: tuple[float, float]
    """Sensitivity and specificity of the model's own threshold there."""
    site: tuple[float, float]
    """Of the threshold for the site."""
    promised: tuple[float, float]
    """The one-sided lower ends of both."""
    kept: tuple[bool, bool]
    """Whether the other images agree with them (exact test at 0.05)."""
    called: float | None
    """Share of the other images that triage calls; None without triage."""
    wrong: tuple[int, int, int, int] | None
    """Called wrong and called, of normals and of pneumonias there."""
    prevalence: float
    """Estimated share of pneumonia among the other images less the true one; NaN where it was not estimated."""
    method: str


def draw(data: Labelled, number: int, threshold: float, alpha: float, delta: float, seed: int) -> Draw | None:
    """Draw local labels and measure on the rest; None where commissioning refuses."""
    rng = np.random.default_rng(seed)
    patients = rng.permutation(np.unique(data.patient_of))
    counts = np.cumsum([np.sum(data.patient_of == patient) for patient in patients])
    inside = np.isin(data.patient_of, patients[: np.searchsorted(counts, number) + 1])
    local, other = data.where(inside), data.where(~inside)
    try:
        local.check_enough()
    except ConfigError:
        return None
    single, judged = local.one_per_patient(seed), other.one_per_patient(seed)
    choice = choose(local, seed)
    point = choose_threshold(single, OperatingPointConfig(rule="sensitivity"), seed)
    triage = find_triage(single, data.prob, alpha, delta)
    before, after = (
        classification_metrics(other.label, prob, 0.5) for prob in (other.prob, choice.chosen.prob(other.prob))
    )
    ends = (point.sensitivity.at_least, point.specificity.at_least)
    found = _rates(judged, point.threshold)
    ill, well = judged.label == 1, judged.label == 0
    hits = (int((judged.prob[ill] >= point.threshold).sum()), int((judged.prob[well] < point.threshold).sum()))
    kept = [binomtest(k, n, end, alternative="less").pvalue >= 0.05 if end > 0 else True
            for k, n, end in zip(hits, (int(ill.sum()), int(well.sum())), ends, strict=True)]  # fmt: skip
    called = wrong = None
    if isinstance(triage, Triage):
        low, high = judged.prob < triage.low, judged.prob >= triage.high
        called = float(np.mean(low | high))
        wrong = (int((high & well).sum()), int(((low | high) & well).sum()), int((low & ill).sum()), int(((low | high) & ill).sum()))  # fmt: skip
    estimated = estimate_prevalence(other.prob, other.patient_of, local, choice.chosen, seed)
    return Draw(
        tuple(float(before[name] or 0) for name in MEASURES), tuple(float(after[name] or 0) for name in MEASURES),
        _rates(judged, threshold), found, ends, (bool(kept[0]), bool(kept[1])), called, wrong,
        float("nan") if estimated is None else estimated.value - float(other.label.mean()), choice.chosen.method,
    )  # fmt: skip


def _rates(data: Labelled, threshold: float) -> tuple[float, float]:
    called = data.prob >= threshold
    return float(called[data.label == 1].mean()), float((~called)[data.label == 0].mean())


def row(name: str, number: int, draws: Sequence[Draw | None]) -> str:
    """Return a row of the Markdown table."""
    good = [found for found in draws if found is not None]
    if not good:
        return f"| {name} | {number} | 100 % |" + " |" * 8

    def median(values: Sequence[float]) -> str:
        return f"{np.median(values):.3f} ({np.quantile(values, 0.05):.3f} to {np.quantile(values, 0.95):.3f})"

    def pair(place: int) -> str:
        return f"{median([d.before[place] for d in good])} to {median([d.after[place] for d in good])}"

    triage = [d for d in good if d.wrong is not None]
    broken = [max(binomtest(w[0], w[1], 0.05, alternative="greater").pvalue < 0.05 if w[1] else False,
                  binomtest(w[2], w[3], 0.05, alternative="greater").pvalue < 0.05 if w[3] else False)
              for d in triage if (w := d.wrong) is not None]  # fmt: skip
    cells = [
        f"{100 * (1 - len(good) / len(draws)):.0f} %", pair(0), pair(1), pair(2),
        f"{np.mean([d.own[0] for d in good]):.3f} / {np.mean([d.own[1] for d in good]):.3f}",
        f"{np.mean([d.site[0] for d in good]):.3f} / {np.mean([d.site[1] for d in good]):.3f}",
        f"{100 * np.mean([not k for d in good for k in d.kept]):.1f} %",
        f"{100 * len(triage) / len(good):.0f} %" + (f", calls {100 * np.mean([d.called for d in triage]):.0f} %, broken {100 * np.mean(broken):.1f} %" if triage else ""),
        median([d.prevalence for d in good if np.isfinite(d.prevalence)]) if any(np.isfinite(d.prevalence) for d in good) else "-",
    ]  # fmt: skip
    return f"| {name} | {number} | " + " | ".join(cells) + " |"


HEADER = (
    "| images | labels | refused | Brier | calibration error | log loss | own threshold, sensitivity / specificity | for the site | "
    "lower ends not reached | triage | prevalence, estimate less truth |\n" + "| --- | ---: |" + " --- |" * 9
)


def main() -> None:
    """Print the table, one row for each number of labels and each value of --by."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scores")
    parser.add_argument("manifest")
    parser.add_argument("--labels", type=int, nargs="+", default=[25, 50, 100, 200])
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--split", default="all")
    parser.add_argument(
        "--only", help="COLUMN=VALUE[,VALUE] of the manifest, such as label_tier=expert_rsna,expert_google"
    )
    parser.add_argument("--by", help="column of the manifest whose values are studied apart, such as view")
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--delta", type=float, default=0.05)
    parser.add_argument("--out", type=Path, help="JSON file for all draws")
    options = parser.parse_args()
    scores, _, _ = read_site(CommissionConfig(options.scores, options.manifest, "unused", split=options.split))
    if options.only:
        column, _, values = options.only.partition("=")
        scores = scores.where(pc.is_in(scores.table[column].cast(pa.string()), value_set=pa.array(values.split(","))))
    groups = {"all": scores}
    if options.by:
        texts = scores.table[options.by].cast(pa.string())
        groups |= {f"{options.by} {v}": scores.where(pc.fill_null(pc.equal(texts, v), False)) for v in sorted(texts.drop_null().unique().to_pylist())}  # fmt: skip
    print(HEADER)
    kept: dict[str, list[object]] = {}
    for name, group in groups.items():
        data = site_images(group).labelled
        for number in options.labels:
            if number > 0.8 * len(data):
                continue
            draws = [
                draw(data, number, scores.threshold, options.alpha, options.delta, seed)
                for seed in range(options.draws)
            ]
            print(row(f"{name} ({len(data):,})", number, draws), flush=True)
            kept[f"{name}/{number}"] = [None if found is None else asdict(found) for found in draws]
    if options.out:
        options.out.write_text(json.dumps(kept))


if __name__ == "__main__":
    main()
