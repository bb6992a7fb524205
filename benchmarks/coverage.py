"""How often do 95 % intervals over patients hold the truth? Simulated studies, their truth known from formulas.

A study draws patients with one to five images each. The labels of a patient are the same, half of the variance of a score
is shared by the images of a patient, and the two classes are normal distributions, so that the AUC is analytic and the
other measures are integrals. Every candidate method measures the same studies:

    python -m benchmarks.coverage --studies 500 --seed 0

prints three tables as Markdown: the coverage of candidates and of what `evaluate.intervals` chose, how often two equal
models are told apart, and how often calibrated models are found to be miscalibrated.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.special import expit, logit
from scipy.stats import norm
from scipy.stats import t as student

from pneumo_ray.evaluate.calibration_error import calibration_test
from pneumo_ray.evaluate.compare import delong, mcnemar
from pneumo_ray.evaluate.differences import difference
from pneumo_ray.evaluate.influence import OF_CELLS, Predictions, influence
from pneumo_ray.evaluate.intervals import METHODS, patient_intervals
from pneumo_ray.evaluate.metrics import rates

Floats = NDArray[np.float64]
Interval = tuple[float, float]

ILL = 0.74
"""Share of patients with pneumonia, as in the training folder of Kermany et al. 2018."""
SHARED = 0.5
"""Share of the variance of a score that the images of a patient share."""
NUM_RESAMPLES = 500
Z = float(norm.ppf(0.975))
BEFORE = "percentile bootstrap"
CHOSEN = "chosen"
COLUMNS = (
    BEFORE,
    "BCa bootstrap",
    "jackknife, normal",
    "jackknife, own scale, t(G - 1)",
    "Wilson, effective size",
    CHOSEN,
)


@dataclass(frozen=True)
class Scenario:
    """A population: how many patients a study has, and how good the model is. Its threshold finds 97.8 % of the ill."""

    patients: int
    auc: float

    @property
    def shift(self) -> float:
        """Distance of the two classes, each of variance 1."""
        return float(np.sqrt(2) * norm.ppf(self.auc))

    def logit_of(self, score: Floats | float) -> Floats | float:
        """Return the calibrated logit of pneumonia."""
        return np.log(ILL / (1 - ILL)) + self.shift * score - self.shift**2 / 2

    @property
    def cut(self) -> float:
        """Score of the threshold."""
        return self.shift - float(norm.ppf(0.978))

    @property
    def threshold(self) -> float:
        """Probability of the threshold."""
        return float(expit(self.logit_of(self.cut)))

    def truth(self) -> dict[str, float]:
        """Return every measure of infinitely many images."""
        found, spared = float(norm.sf(self.cut - self.shift)), float(norm.cdf(self.cut))
        cells = (1 - ILL) * spared, (1 - ILL) * (1 - spared), ILL * (1 - found), ILL * found
        truth = {name: float(value) for name, value in rates(*(np.asarray(cell) for cell in cells)).items()}
        ends = -9.0, 9.0 + self.shift

        def mean(of_ill, of_normal) -> float:
            density = lambda s: ILL * norm.pdf(s - self.shift) * of_ill(s) + (1 - ILL) * norm.pdf(s) * of_normal(s)  # noqa: E731
            return float(quad(density, *ends, limit=400)[0])

        def precision(s: float) -> float:
            called = ILL * norm.sf(s - self.shift) + (1 - ILL) * norm.sf(s)
            return float(ILL * norm.sf(s - self.shift) / called) if called else 1.0

        prob = lambda s: expit(self.logit_of(s))  # noqa: E731
        truth |= {
            "auc": self.auc,
            "average_precision": mean(precision, lambda s: 0.0) / ILL,
            "brier": mean(lambda s: (1 - prob(s)) ** 2, lambda s: prob(s) ** 2),
            "log_loss": mean(lambda s: np.logaddexp(0, -self.logit_of(s)), lambda s: np.logaddexp(0, self.logit_of(s))),
            "ece": 0.0,
        }
        return truth

    def draw(self, rng: np.random.Generator, models: int = 1) -> list[Predictions]:
        """Draw a study; `models` are equally good, and share nothing but the labels."""
        of = np.repeat(np.arange(self.patients), rng.integers(1, 6, self.patients))
        label = (rng.random(self.patients) < ILL).astype(np.int64)[of]
        drawn = []
        for _ in range(models):
            noise = np.sqrt(SHARED) * rng.normal(size=self.patients)[of] + np.sqrt(1 - SHARED) * rng.normal(
                size=len(of)
            )
            prob = expit(self.logit_of(self.shift * label + noise))
            drawn.append(Predictions(label, prob, self.threshold, of, self.patients))
        return drawn


SCENARIOS = (Scenario(50, 0.976), Scenario(100, 0.976), Scenario(300, 0.995), Scenario(60, 0.9))


def resampled(seen: Predictions, rng: np.random.Generator) -> dict[str, Floats]:
    """Return every smooth measure of resamples of whole patients, each [NUM_RESAMPLES]; NaN where undefined."""
    times = rng.multinomial(seen.num_patients, np.full(seen.num_patients, 1 / seen.num_patients), NUM_RESAMPLES)
    counts = (times @ seen.confusion()).astype(np.float64)
    out = dict(rates(*counts.T))
    of_label = np.where(seen.truth == 1, seen.prob, 1 - seen.prob)
    for name, loss in (("brier", (seen.prob - seen.truth) ** 2), ("log_loss", -np.log(of_label))):
        out[name] = times @ seen.summed(loss) / counts.sum(1)
    falling = np.argsort(-seen.prob)  # no ties in these scores
    weight, ill = times[:, seen.patient_of[falling]], seen.truth[falling] == 1
    found, called = np.cumsum(weight * ill, 1), np.cumsum(weight, 1)
    with np.errstate(invalid="ignore"):
        positives, negatives = found[:, -1], called[:, -1] - found[:, -1]
        out["auc"] = (found * (weight * ~ill)).sum(1) / (positives * negatives)
        out["average_precision"] = np.nansum((weight * ill) * found / called, 1) / positives
    return out


def candidates(name: str, seen: Predictions, drawn: Floats) -> Iterator[tuple[str, Interval]]:
    """Yield the interval of every method that does not depend on the product's choice.

    Args:
        name: of the measure.
        seen: the study.
        drawn: of `resampled`.
    """
    found, drawn = influence(name, seen), drawn[~np.isnan(drawn)]
    if found is None or not (squares := float(np.sum(found.of_patient**2))) or not len(drawn):
        return
    yield BEFORE, tuple(np.quantile(drawn, [0.025, 0.975]))
    below = np.clip((np.mean(drawn < found.value) + np.mean(drawn <= found.value)) / 2, 1e-3, 1 - 1e-3)
    start, skew = norm.ppf(below), float(np.sum(found.of_patient**3)) / (6 * squares**1.5)
    moved = [norm.cdf(start + (start + z) / (1 - skew * (start + z))) for z in (-Z, Z)]
    yield "BCa bootstrap", tuple(np.quantile(drawn, moved))
    value, error = found.value, np.sqrt(squares)
    yield "jackknife, normal", (value - Z * error, value + Z * error)
    count = seen.num_patients
    reach = float(student.ppf(0.975, count - 1) * error * np.sqrt(count / (count - 1)))
    if name in ("brier", "log_loss"):
        scaled = value * np.exp(-reach / value), value * np.exp(reach / value)
    elif name in ("kappa", "mcc"):
        if abs(value) == 1:
            return
        scaled = tuple(np.tanh(np.arctanh(value) + sign * reach / (1 - value**2)) for sign in (-1, 1))
    else:
        if not 0 < value < 1:
            return
        scaled = tuple(expit(logit(value) + sign * reach / (value * (1 - value))) for sign in (-1, 1))
    yield "jackknife, own scale, t(G - 1)", scaled
    if name in OF_CELLS and name != "f1":
        size = value * (1 - value) / (squares * count / (count - 1))
        middle = (value + Z**2 / (2 * size)) / (1 + Z**2 / size)
        half = Z / (1 + Z**2 / size) * np.sqrt(value * (1 - value) / size + Z**2 / (4 * size**2))
        yield "Wilson, effective size", (middle - half, middle + half)


def coverage(scenario: Scenario, studies: int, seed: int) -> dict[str, dict[str, tuple[float, float, int]]]:
    """Return for each measure and method the share of intervals that hold the truth, their mean width, and their number.

    A method is measured on the studies in which it has an interval.
    """
    rng, truth = np.random.default_rng(seed), scenario.truth()
    held: dict[tuple[str, str], list[tuple[bool, float]]] = defaultdict(list)
    for study in range(studies):
        (seen,) = scenario.draw(rng)
        drawn = resampled(seen, rng)
        chosen = patient_intervals(seen.truth, seen.prob, seen.threshold, seen.patient_of, seed=study)
        for name, interval in chosen.items():
            every = dict(candidates(name, seen, drawn[name])) if name in drawn else {}
            if interval is not None:
                every[CHOSEN] = interval
            for method, (low, high) in every.items():
                held[name, method].append((bool(low <= truth[name] <= high), float(high - low)))
    out: dict[str, dict[str, tuple[float, float, int]]] = {name: {} for name in METHODS}
    for (name, method), found in held.items():
        out[name][method] = (*np.mean(found, axis=0).tolist(), len(found))
    return out


def told_apart(scenario: Scenario, studies: int, seed: int) -> dict[str, float]:
    """Return how often each test finds a difference (p below 0.05) between two equal models."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[bool]] = defaultdict(list)
    for _ in range(studies):
        here, there = scenario.draw(rng, models=2)
        wrong = [(side.prob >= side.threshold) != (side.truth == 1) for side in (here, there)]
        found["McNemar, errors"].append(mcnemar(*wrong).p < 0.05)
        found["DeLong, AUC"].append((delong(here.truth, here.prob, there.prob).p or 1.0) < 0.05)
        for name in METHODS:
            p = difference(name, here, there).p
            found[f"by patient, {name}"].append(p is not None and p < 0.05)
    return {name: float(np.mean(values)) for name, values in found.items()}


def found_out(scenario: Scenario, studies: int, seed: int) -> tuple[float, float, float]:
    """Return of calibrated models: share with an error above 0.05, share with p below 0.05, and share with both."""
    rng = np.random.default_rng(seed)
    tests = [calibration_test(scenario.draw(rng)[0], study) for study in range(studies)]
    large, small_p = (np.array(v) for v in zip(*((t.error > 0.05, t.p < 0.05) for t in tests if t), strict=True))
    return float(large.mean()), float(small_p.mean()), float((large & small_p).mean())


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=500, help="simulated studies of each scenario")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"| AUC, patients | measure | truth | {' | '.join(COLUMNS)} | width before | width chosen |")
    print("| --- " * (len(COLUMNS) + 5) + "|")
    for scenario in SCENARIOS:
        truth = scenario.truth()
        for name, methods in coverage(scenario, options.studies, options.seed).items():
            cells = [f"{methods[column][0]:.3f}" if column in methods else "" for column in COLUMNS]
            cells += [f"{methods[column][1]:.4f}" if column in methods else "" for column in (BEFORE, CHOSEN)]
            print(
                f"| {scenario.auc}, {scenario.patients} | {name} | {truth[name]:.4f} | {' | '.join(cells)} |",
                flush=True,
            )
    print("\n| AUC, patients | test of two equal models | told apart |\n| --- | --- | --- |")
    for scenario in SCENARIOS:
        for name, share in told_apart(scenario, options.studies, options.seed).items():
            print(f"| {scenario.auc}, {scenario.patients} | {name} | {share:.3f} |", flush=True)
    print(
        "\n| AUC, patients | calibrated models with an error above 0.05 | with p below 0.05 | with both (warned of) |"
    )
    print("| --- | --- | --- | --- |")
    for scenario in SCENARIOS:
        shares = " | ".join(f"{share:.3f}" for share in found_out(scenario, options.studies, options.seed))
        print(f"| {scenario.auc}, {scenario.patients} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
