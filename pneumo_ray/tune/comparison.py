"""Comparison of the arms or trials of a study, from the records of its trials."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from pneumo_ray.train.validation import SELECTED_BY
from pneumo_ray.tune.records import TrialRecord
from pneumo_ray.tune.study import Study


@dataclass(frozen=True)
class Difference:
    """Difference of an arm to the reference."""

    mean: float
    low: float | None
    """Lower end of the 95 % interval; None with too few trials."""
    high: float | None


def by_arm(records: Sequence[TrialRecord], metric: str) -> dict[str, list[float]]:
    """Return the values of a metric by arm, of the trials that finished."""
    found: dict[str, list[float]] = {}
    for record in finished(records):
        if (value := value_of(record, metric)) is not None:
            found.setdefault(record.arm, []).append(value)
    return found


def differences(records: Sequence[TrialRecord], metric: str, reference: str) -> dict[str, Difference]:
    """Return the difference of each arm to the reference.

    The model is value = arm + seed + noise, by least squares: trials with one seed share their first weights and much
    of their order, so they are compared with each other. The noise is taken to be the same in all arms, which makes
    its estimate usable with few seeds. The intervals cover other seeds, not other patients.

    A difference that the trials that finished do not determine is left out: failures can leave an arm and the reference
    without a chain of shared seeds between them, and then the difference of arms cannot be separated from that of seeds.

    Args:
        records: of all trials; those that did not finish are left out.
        metric: its name in the records.
        reference: the arm to compare with.
    """
    found = [r for r in finished(records) if value_of(r, metric) is not None]
    arms = list(dict.fromkeys(r.arm for r in found))
    seeds = sorted({r.seed for r in found})
    if reference not in arms:
        return {}
    others = [arm for arm in arms if arm != reference]
    design = np.array(
        [[1.0, *(r.arm == arm for arm in others), *(r.seed == seed for seed in seeds[1:])] for r in found], float
    )
    values = np.array([r.metrics[metric] for r in found])
    inverse = np.linalg.pinv(design.T @ design)
    effects = inverse @ design.T @ values
    free = len(values) - np.linalg.matrix_rank(design)
    # A contrast is estimable if it lies in the row space of the design (Scheffe 1959): this is the projection onto it.
    row_space = inverse @ (design.T @ design)
    out = {}
    for position, arm in enumerate(others, start=1):
        if not np.allclose(row_space[position], np.eye(len(effects))[position], atol=1e-8):
            continue
        mean, half = float(effects[position]), None
        if free > 0:
            noise = float(np.sum((values - design @ effects) ** 2)) / free
            half = float(student.ppf(0.975, free)) * float(np.sqrt(noise * inverse[position, position]))
        out[arm] = Difference(mean, None if half is None else mean - half, None if half is None else mean + half)
    return out


def best_record(study: Study, records: Sequence[TrialRecord]) -> TrialRecord | None:
    """Return the best trial of a search, or a trial of the best arm of an ablation, by `SELECTED_BY`; None if none finished."""
    over = [(loss, record) for record in finished(records) if (loss := value_of(record, SELECTED_BY)) is not None]
    if not over:
        return None
    if study.is_search:
        return min(over, key=lambda pair: pair[0])[1]
    means = {arm: float(np.mean(values)) for arm, values in by_arm(records, SELECTED_BY).items()}
    # An arm with a diverged trial is never the best.
    whole = {r.arm for r in records} - {r.arm for r in records if r.status != "finished"}
    arm = min(whole or means, key=lambda name: means[name])
    return next(record for _, record in over if record.arm == arm)


def value_of(record: TrialRecord, metric: str) -> float | None:
    """Return a metric of a trial, or None if it is missing or not finite."""
    value = record.metrics.get(metric)
    return float(value) if value is not None and math.isfinite(value) else None


def finished(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the finished trials."""
    return [record for record in records if record.status == "finished"]
