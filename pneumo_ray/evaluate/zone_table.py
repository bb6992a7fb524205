"""Mean activation of each lung zone by class and by outcome, with intervals: Table I of arXiv 2507.18647.

Images of one patient are correlated, so the intervals treat patients as clusters (Liang and Zeger 1986, Biometrika 73:13):
in closed form, deterministic and linear in the number of images. All images share the dropout masks, so
their Monte Carlo error is common and does not shrink with their number: its variance, from the spread of independent
groups of passes (random groups, Wolter 2007), is added.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from pneumo_ray.evaluate.metrics import number_groups
from pneumo_ray.evaluate.scores import Scores
from pneumo_ray.explain.zones import ALIASES
from pneumo_ray.model.config import CLASSES
from pneumo_ray.records import named

OUTCOMES = ("true negative", "false positive", "false negative", "true positive")
"""Number 2 label + predicted."""
ZONES_OF = {
    "image": "thirds of the height by halves of the width of what the network sees",
    "box": "thirds of the height by halves of the width of the box of the lungs",
    "lungs": "thirds of the height of each lung",
}
"""What the zones are, by `Scores.zone_mode`."""
CAUTION = "Attention to a zone is no proof of disease there: the heart border, markers and the edge of the image attract it too."
NO_CLASSES = "zones of two classes can be compared only where the maps explain one; score with --target pneumonia"
"""Why there are no records by class if the maps explain the predicted class."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ZoneRecord:
    """The mean activation of a zone over a group of images, in logits of the explained class per cell of the map.

    None where undefined.
    """

    images: str = field(metadata=named("pictures"))
    """Name of the group."""
    explained_class: str
    n: int
    """Images."""
    patients: int
    zone: str
    """By the patient's side."""
    paper_zone: str
    """As the paper calls it."""
    mean: float | None
    std: float | None
    """Over images, ddof 1."""
    low: float | None
    """Bounds `mean` (95 %), like `high`; None with a single patient."""
    high: float | None
    ratio: float | None
    """Of `pneumonia`: its mean over that of `normal` in the same zone. None elsewhere, and where a mean is not positive."""
    ratio_low: float | None
    ratio_high: float | None
    monte_carlo_error: float | None
    """Standard error of `mean` over masks, which the intervals contain; None where the scores do not keep it."""
    zones_of: str
    """What the zones divide: image (what the network sees), box (of the lungs) or lungs."""


def zone_table(scores: Scores) -> list[ZoneRecord]:
    """Return the mean zone activation of labelled images, one record per group of images and zone.

    Groups are the true classes, then the outcomes at the stored threshold. Only records of one `explained_class` can be
    compared: evidence for normality is not the negative of evidence for disease. If maps explain the predicted class
    (`scores.target` is `predicted`) a class mixes both kinds, so there are records by outcome only (see `NO_CLASSES`),
    each of the class that was called; an image so near the threshold that its map explains the other class (it is
    chosen without dropout, the call with it) is left out.

    Args:
        scores: from `matching.match`: no failed rows, joined with `label` and `patient_id`.
    """
    known = scores.labelled()
    label = known.table["label"].to_numpy().astype(np.int64)
    patient_of, _ = number_groups(known.table["patient_id"].to_pylist())
    groups = groups_of(known)
    paper_zone = {zone: name for name, zone in ALIASES.items()}
    columns = {zone: known.numbers(f"zone_mean_{zone}") for zone in known.zones}
    drawn = known.zone_groups()
    records = []
    for name, explained_class, chosen in groups:
        for number, (zone, values) in enumerate(columns.items()):
            rows = chosen & np.isfinite(values)
            of_passes = None if drawn is None else drawn[:, :, number]
            found = _mean(values[rows], patient_of[rows], _group_means(of_passes, rows))
            ratio = ratio_low = ratio_high = None
            if name == "pneumonia":
                normal = (label == 0) & np.isfinite(values)
                ratio, ratio_low, ratio_high = _ratio(
                    values[rows],
                    patient_of[rows],
                    values[normal],
                    patient_of[normal],
                    _group_means(of_passes, rows),
                    _group_means(of_passes, normal),
                )
            records.append(
                ZoneRecord(
                    images=name,
                    explained_class=explained_class,
                    n=int(rows.sum()),
                    patients=int(np.count_nonzero(np.bincount(patient_of[rows]))),
                    zone=zone,
                    paper_zone=paper_zone[zone],
                    mean=found.mean,
                    std=found.std,
                    low=found.low,
                    high=found.high,
                    ratio=ratio,
                    ratio_low=ratio_low,
                    ratio_high=ratio_high,
                    monte_carlo_error=found.monte_carlo_error,
                    zones_of=scores.zone_mode,
                )
            )
    return records


def groups_of(known: Scores) -> list[tuple[str, str, NDArray[np.bool_]]]:
    """Return the groups of images that maps are averaged over: name, the class that their maps explain, and rows, bool [n].

    Args:
        known: labelled images; see `zone_table` for what the groups are.
    """
    label, called, explained = (
        known.table[name].to_numpy().astype(np.int64) for name in ("label", "predicted", "target")
    )
    groups: list[tuple[str, str, NDArray[np.bool_]]] = []
    if known.target != "predicted":
        groups += [(name, known.target, label == number) for number, name in enumerate(CLASSES)]
    for number, name in enumerate(OUTCOMES):
        chosen = (label == number // 2) & (called == number % 2)
        if known.target == "predicted":
            chosen &= explained == called
        groups.append((name, CLASSES[number % 2] if known.target == "predicted" else known.target, chosen))
    return groups


def _group_means(of_passes: Floats | None, rows: NDArray[np.bool_]) -> Floats | None:
    """Return the mean over some images of each group of passes, [G]; None where the groups are not known.

    Args:
        of_passes: [n, G], of one zone.
        rows: [n], which images.
    """
    return None if of_passes is None or not rows.any() else np.asarray(of_passes[rows].mean(0), np.float64)


@dataclass(frozen=True)
class _Mean:
    """As in `ZoneRecord`."""

    mean: float | None = None
    std: float | None = None
    low: float | None = None
    high: float | None = None
    monte_carlo_error: float | None = None


def _mean(values: Floats, patient_of: Ints, drawn: Floats | None) -> _Mean:
    """Return mean, std, the interval of the mean and its Monte Carlo error.

    Args:
        values: [n], finite.
        patient_of: [n], numbers of patients.
        drawn: [G], the mean by group of passes.
    """
    if not len(values):
        return _Mean()
    mean = float(values.mean())
    reach = _reach((values - mean) / len(values), patient_of, drawn)
    return _Mean(
        mean=mean,
        std=float(values.std(ddof=1)) if len(values) > 1 else None,
        low=None if reach is None else mean - reach,
        high=None if reach is None else mean + reach,
        monte_carlo_error=None if drawn is None or len(drawn) < 2 else float(np.sqrt(_common_variance(drawn))),
    )


def _ratio(
    values: Floats,
    patient_of: Ints,
    base: Floats,
    patient_of_base: Ints,
    drawn: Floats | None,
    drawn_base: Floats | None,
) -> tuple[float | None, float | None, float | None]:
    """Return the ratio of two means and the ends of its interval, which is symmetric on the logarithm (delta method).

    A patient with images in both groups is one cluster of both, so what the two means share is taken into account.

    Args:
        values: [n], finite.
        patient_of: [n], numbers of patients.
        base: [m], finite, of the denominator.
        patient_of_base: [m].
        drawn: [G], the mean of `values` by group of passes.
        drawn_base: [G], that of `base`.
    """
    if not len(values) or not len(base):
        return None, None, None
    mean, mean_base = float(values.mean()), float(base.mean())
    if mean <= 0 or mean_base <= 0:
        return None, None, None
    ratio = mean / mean_base
    influence = np.concatenate((values / mean - 1, 1 - base / mean_base))
    influence /= np.repeat([len(values), len(base)], [len(values), len(base)])
    both = None if drawn is None or drawn_base is None else drawn / mean - drawn_base / mean_base
    reach = _reach(influence, np.concatenate((patient_of, patient_of_base)), both)
    if reach is None:
        return ratio, None, None
    return ratio, ratio * float(np.exp(-reach)), ratio * float(np.exp(reach))


def _common_variance(drawn: Floats) -> float:
    """Return the variance over masks of the mean of independent groups of passes [G] of nearly equal size."""
    return float(drawn.var(ddof=1) / len(drawn))


def _reach(influence: Floats, patient_of: Ints, drawn: Floats | None) -> float | None:
    """Return how far a 95 % interval reaches on each side: Student's t times the standard error over patients and masks.

    The variance over patients is P / (P - 1) times the sum over the P patients of their squared summed influence. With
    one image per patient that is the textbook s / sqrt(n), on P - 1 degrees of freedom. That over masks is added, and
    the degrees of freedom are those of Welch and Satterthwaite.

    Args:
        influence: [n], the influence of each image on the estimate; sums to 0.
        patient_of: [n], numbers of patients.
        drawn: [G], the estimate by group of passes, up to a constant; None where it is not known.

    Returns:
        None with fewer than two patients, from whom no variance can be estimated.
    """
    count = int(np.count_nonzero(np.bincount(patient_of)))
    if count < 2:
        return None
    sums = np.bincount(patient_of, weights=influence)  # 0 for the numbers of other patients
    over_patients = float(count / (count - 1) * np.sum(sums**2))
    if drawn is None or len(drawn) < 2 or (over_masks := _common_variance(drawn)) == 0:
        return float(student.ppf(0.975, count - 1) * np.sqrt(over_patients))
    variance = over_patients + over_masks
    freedom = variance**2 / (over_patients**2 / (count - 1) + over_masks**2 / (len(drawn) - 1))
    return float(student.ppf(0.975, freedom) * np.sqrt(variance))
