"""Before and after commissioning with few labels, by repeated draws: `python -m benchmarks.site_study SCORES MANIFEST`.

Of the labelled images a number is drawn as local labels, by patient and at random; the others check what was promised. The
first table has a row for each number of labels: medians over the draws, and the share of draws that were refused (or that
leave one class to check on), of thresholds that reach less than their lower end, and of promises of triage that the other
images break. With --by, draws of all images are also measured on the others of each group apart, in a second table.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.stats import binomtest

from pneumo_ray.errors import ConfigError
from pneumo_ray.evaluate.config import OperatingPointConfig
from pneumo_ray.evaluate.metrics import classification_metrics
from pneumo_ray.site.commission import read_site
from pneumo_ray.site.config import CommissionConfig
from pneumo_ray.site.labels import Floats, Labelled, site_images
from pneumo_ray.site.prevalence import mixture_share
from pneumo_ray.site.recalibration_fit import choose
from pneumo_ray.site.threshold import choose_threshold
from pneumo_ray.site.triage import Triage, find_triage

MEASURES = ("brier", "ece", "log_loss")
Words = NDArray[np.object_]


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
    """Estimated share of pneumonia among the other images less the true one."""
    method: str
    groups: dict[str, "Group"]
    """Of each group among the other images, by its name."""


@dataclass(frozen=True)
class Group:
    """The images of a group that are no local labels; pairs are before and after commissioning."""

    images: tuple[int, int]
    """Normals and pneumonias."""
    cleared: tuple[int, int]
    """Normals that are not called."""
    found: tuple[int, int]
    """Pneumonias that are called."""
    brier: tuple[float, float]


def draw(
    data: Labelled, number: int, threshold: float, alpha: float, delta: float, seed: int, group_of: Words
) -> Draw | None:
    """Draw local labels and measure on the rest; None where commissioning refuses or the rest has one class."""
    rng = np.random.default_rng(seed)
    patients = rng.permutation(np.unique(data.patient_of))
    counts = np.cumsum([np.sum(data.patient_of == patient) for patient in patients])
    inside = np.isin(data.patient_of, patients[: np.searchsorted(counts, number) + 1])
    local, other = data.where(inside), data.where(~inside)
    try:
        local.check_enough()
    except ConfigError:
        return None
    if len(np.unique(other.label)) < 2:
        return None
    single, judged = local.one_per_patient(seed), other.one_per_patient(seed)
    choice = choose(local, seed)
    point = choose_threshold(single, OperatingPointConfig(rule="sensitivity"), seed)
    triage = find_triage(single, data.prob, alpha, delta)
    probs = (other.prob, choice.chosen.prob(other.prob))
    before, after = (classification_metrics(other.label, prob, 0.5) for prob in probs)
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
    share = mixture_share(probs[1], float(local.label.mean()))
    return Draw(
        tuple(float(before[name] or 0) for name in MEASURES), tuple(float(after[name] or 0) for name in MEASURES),
        _rates(judged, threshold), found, ends, (bool(kept[0]), bool(kept[1])), called, wrong,
        share - float(other.label.mean()), choice.chosen.method,
        {name: _group(other, probs, (threshold, point.threshold), group_of[~inside] == name) for name in sorted(set(group_of) - {None})},
    )  # fmt: skip


def _group(
    other: Labelled, probs: tuple[Floats, Floats], thresholds: tuple[float, float], rows: NDArray[np.bool_]
) -> Group:
    well, ill = rows & (other.label == 0), rows & (other.label == 1)
    called = [other.prob >= threshold for threshold in thresholds]
    errors = [float(np.mean((prob[rows] - other.label[rows]) ** 2)) if rows.any() else float("nan") for prob in probs]
    return Group(
        (int(well.sum()), int(ill.sum())), (int((~called[0] & well).sum()), int((~called[1] & well).sum())),
        (int((called[0] & ill).sum()), int((called[1] & ill).sum())), (errors[0], errors[1]),
    )  # fmt: skip


def _rates(data: Labelled, threshold: float) -> tuple[float, float]:
    called = data.prob >= threshold
    return float(called[data.label == 1].mean()), float((~called)[data.label == 0].mean())


def row(name: str, number: int, draws: Sequence[Draw | None], alpha: float) -> str:
    """Return a row of the Markdown table; alpha as in triage."""
    good = [found for found in draws if found is not None]
    if not good:
        return f"| {name} | {number} | 100 % |" + " |" * 8

    def median(values: Sequence[float]) -> str:
        return f"{np.median(values):.3f} ({np.quantile(values, 0.05):.3f} to {np.quantile(values, 0.95):.3f})"

    def pair(place: int) -> str:
        return f"{median([d.before[place] for d in good])} to {median([d.after[place] for d in good])}"

    triage = [d for d in good if d.wrong is not None]
    broken = [max(binomtest(w[0], w[1], alpha, alternative="greater").pvalue < 0.05 if w[1] else False,
                  binomtest(w[2], w[3], alpha, alternative="greater").pvalue < 0.05 if w[3] else False)
              for d in triage if (w := d.wrong) is not None]  # fmt: skip
    cells = [
        f"{100 * (1 - len(good) / len(draws)):.0f} %", pair(0), pair(1), pair(2),
        f"{np.mean([d.own[0] for d in good]):.3f} / {np.mean([d.own[1] for d in good]):.3f}",
        f"{np.mean([d.site[0] for d in good]):.3f} / {np.mean([d.site[1] for d in good]):.3f}",
        f"{100 * np.mean([not k for d in good for k in d.kept]):.1f} %",
        f"{100 * len(triage) / len(good):.0f} %" + (f", calls {100 * np.mean([d.called for d in triage]):.0f} %, broken {100 * np.mean(broken):.1f} %" if triage else ""),
        median([d.prevalence for d in good]),
    ]  # fmt: skip
    return f"| {name} | {number} | " + " | ".join(cells) + " |"


def group_row(name: str, number: int, draws: Sequence[Draw]) -> str:
    """Return a row of the second table: shares of all images of a group over all draws, and means of the Brier score."""
    parts = [found.groups[name] for found in draws if sum(found.groups[name].images)]
    well, ill = (sum(part.images[label] for part in parts) for label in (0, 1))
    cells = [f"{well / len(draws):.1f}, {ill / len(draws):.1f}"]
    for when in (0, 1):
        shares = (sum(p.found[when] for p in parts), ill), (sum(p.cleared[when] for p in parts), well)
        cells.append(" / ".join(f"{count / total:.3f}" if total else "-" for count, total in shares))
    cells.append(
        " to ".join(f"{np.mean([part.brier[when] for part in parts]):.3f}" for when in (0, 1)) if parts else "-"
    )
    return f"| {name} | {number} | " + " | ".join(cells) + " |"


GROUP_HEADER = (
    "| group | labels | other images, without and with pneumonia | own threshold, sensitivity / specificity | for the site | Brier |\n"
    "| --- | ---: | --- | --- | --- | --- |"
)
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
    groups, group_of = {"all": scores}, np.full(len(scores.table), None, object)
    if options.by:
        texts = scores.table[options.by].cast(pa.string())
        groups |= {f"{options.by} {v}": scores.where(pc.fill_null(pc.equal(texts, v), False)) for v in sorted(texts.drop_null().unique().to_pylist())}  # fmt: skip
        group_of = np.array(texts.to_pylist(), object)
    labelled = scores.table["label"].is_valid().to_numpy()
    print(HEADER)
    kept: dict[str, list[object]] = {}
    apart: list[str] = []
    for name, group in groups.items():
        data = site_images(group).labelled
        for number in options.labels:
            if number > 0.8 * len(data):
                continue
            of = group_of[labelled] if name == "all" else np.full(len(data), None, object)
            draws = [
                draw(data, number, scores.threshold, options.alpha, options.delta, seed, of)
                for seed in range(options.draws)
            ]
            print(row(f"{name} ({len(data):,})", number, draws, options.alpha), flush=True)
            good = [found for found in draws if found is not None]
            apart += [group_row(group, number, good) for group in sorted(set(of) - {None}) if good]
            kept[f"{name}/{number}"] = [None if found is None else asdict(found) for found in draws]
    if apart:
        print("", GROUP_HEADER, *apart, sep="\n")
    if options.out:
        options.out.write_text(json.dumps(kept))


if __name__ == "__main__":
    main()
