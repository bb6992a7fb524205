"""Two sets of scores compared, held against the 1988 formulas written out pair by pair, scikit-learn and hand numbers."""

import json
import math
from dataclasses import astuple
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score

from pneumo_ray.errors import ManifestError
from pneumo_ray.evaluate.compare import compare, delong, mcnemar
from pneumo_ray.evaluate.differences import difference
from pneumo_ray.evaluate.influence import Predictions
from pneumo_ray.evaluate.intervals import METHODS
from pneumo_ray.evaluate.scores import Scores
from pneumo_ray.explain import ZONES
from pneumo_ray.records import json_of


def scores(prob: Any, label: Any, patients: Any = None, names: Any = None, threshold: float = 0.5) -> Scores:
    n = len(prob)
    table = pa.table(
        {
            "image_id": [f"{i:05d}" for i in range(n)] if names is None else list(names),
            "prob_mean": pa.array(np.asarray(prob, np.float32)),
            "label": pa.array(list(label), pa.int8()),
            "patient_id": [f"p{i}" for i in (range(n) if patients is None else patients)],
        }
    )
    return Scores(table, (1, 1), ZONES, threshold, "pneumonia")


def drawn(size: int, seed: int, decimals: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels with both classes at least twice, and two correlated scores with many ties."""
    rng = np.random.default_rng(seed)
    label = np.concatenate(([0, 0, 1, 1], rng.integers(0, 2, size - 4)))
    shared = rng.normal(size=size)
    a, b = (
        1 / (1 + np.exp(-(shared + rng.normal(size=size) + gain * label))).round(decimals + 1) for gain in (1.5, 0.8)
    )
    return label, a.round(decimals), b.round(decimals)


def delong_1988(label: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, float]:
    """Equations 3 to 6 of the paper over all pairs: both areas and the variance of their difference."""
    kernel = []
    for score in (a, b):
        x, y = score[label == 1][:, None], score[label == 0][None, :]
        kernel.append((y < x) + 0.5 * (y == x))
    psi = np.stack(kernel)
    m, n = psi.shape[1:]
    s10, s01 = np.cov(psi.mean(axis=2)), np.cov(psi.mean(axis=1))
    contrast = np.array([1.0, -1.0])
    return psi.mean(axis=(1, 2)), float(contrast @ (s10 / m + s01 / n) @ contrast)


@settings(deadline=None, max_examples=80)
@given(size=st.integers(4, 70), seed=st.integers(0, 10_000), decimals=st.integers(1, 6))
def test_delong_by_midranks_equals_pairs(size: int, seed: int, decimals: int) -> None:
    label, a, b = drawn(size, seed, decimals)
    areas, variance = delong_1988(label, a, b)
    found = delong(label, a, b)
    assert [found.here, found.baseline] == pytest.approx(areas.tolist(), abs=1e-12)
    assert found.here == pytest.approx(roc_auc_score(label, a), abs=1e-12)
    assert found.difference == pytest.approx(areas[0] - areas[1], abs=1e-12)
    assert found.standard_error == pytest.approx(math.sqrt(max(variance, 0)), abs=1e-7)
    if variance > 1e-9:
        z = (areas[0] - areas[1]) / math.sqrt(variance)
        assert found.p == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), rel=1e-6)
        reach = 1.959964 * math.sqrt(variance)
        assert found.interval == pytest.approx([found.difference - reach, found.difference + reach], abs=1e-6)


def test_delong_by_hand() -> None:
    """Positives 3, 1 against negatives 2, 0, and a baseline that is right throughout: 3/4 against 1.

    Placements 1, 1/2 against 1, 1, and 1/2, 1 against 1, 1: both differences are 0 and -1/2, with variance 1/8, so that
    of the difference of the areas is 1/16 + 1/16.
    """
    found = delong(np.array([1, 1, 0, 0]), np.array([3.0, 1, 2, 0]), np.array([3.0, 2, 1, 0]))
    assert (found.here, found.baseline, found.difference) == (0.75, 1.0, -0.25)
    assert found.standard_error == pytest.approx(math.sqrt(1 / 8))


def test_delongs_p_is_uniform_for_equals() -> None:
    """Of 800 comparisons of exchangeable scores about 5 % fall below 0.05; three binomial sd are 2.3 points."""
    rng = np.random.default_rng(3)
    label = np.repeat([0, 1], 100)
    below = 0
    for _ in range(800):
        truth = label + rng.normal(size=200)
        p = delong(label, truth + rng.normal(size=200), truth + rng.normal(size=200)).p
        below += p is not None and p < 0.05
    assert 0.027 <= below / 800 <= 0.073


def test_equal_scores_have_no_test() -> None:
    label, a, _ = drawn(60, seed=1, decimals=3)
    found = compare(scores(a, label), scores(a, label))
    assert (found.auc.delong.difference, found.auc.delong.standard_error) == (0.0, 0.0)
    assert (found.auc.delong.interval, found.auc.delong.p) == (None, None)
    assert found.auc.interval_by_patient is None
    assert {found.differences[name].difference for name in METHODS} == {0.0}
    assert {found.differences[name].p for name in METHODS} == {None}
    assert (found.errors.mcnemar.only_here_right, found.errors.mcnemar.only_baseline_right) == (0, 0)
    assert found.errors.mcnemar.p == 1.0


@pytest.mark.parametrize("to", [lambda p: p**3, lambda p: 2 * p - 7, lambda p: np.log(p + 1)])
def test_areas_depend_on_order_only(to: Any) -> None:
    label, a, b = drawn(50, seed=2, decimals=3)
    assert delong(label, to(a), b) == delong(label, a, b)
    assert delong(label, to(a), a).standard_error == 0


def test_swapping_sets_changes_only_the_sign() -> None:
    label, a, b = drawn(80, seed=3)
    there, back = delong(label, a, b), delong(label, b, a)
    assert back.difference == pytest.approx(-(there.difference or 0))
    assert (back.standard_error, back.p) == (pytest.approx(there.standard_error), pytest.approx(there.p))


def test_one_class_leaves_areas_undefined() -> None:
    found = compare(scores([0.2, 0.9, 0.8], [1, 1, 1]), scores([0.9, 0.9, 0.1], [1, 1, 1]))
    assert set(astuple(found.auc.delong)) == {None}
    assert (found.errors.share, found.errors.share_baseline) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert (found.errors.mcnemar.only_here_right, found.errors.mcnemar.only_baseline_right) == (1, 1)


def test_single_images_have_an_area_without_error() -> None:
    found = delong(np.array([1, 0, 0]), np.array([0.5, 0.1, 0.7]), np.array([0.9, 0.1, 0.7]))
    assert (found.here, found.baseline, found.difference) == (0.5, 1.0, -0.5)
    assert (found.standard_error, found.interval, found.p) == (None, None, None)


def decisions(b: int, c: int, both_right: int = 5, both_wrong: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Errors here and in the baseline, with b right here alone and c right in the baseline alone."""
    here = np.repeat([False, False, True, True], [both_right, b, c, both_wrong])
    baseline = np.repeat([False, True, False, True], [both_right, b, c, both_wrong])
    return here, baseline


def test_mcnemars_exact_p_by_hand() -> None:
    """One against seven: 2 (1 + 8) / 2^8."""
    found = mcnemar(*decisions(1, 7))
    assert (found.both_right, found.only_here_right, found.only_baseline_right, found.both_wrong) == (5, 1, 7, 3)
    assert (found.test, found.p) == ("exact binomial", pytest.approx(18 / 256))


def test_mcnemars_chi_square_is_that_of_the_textbook() -> None:
    """Approval ratings of Agresti 2002, table 10.1: 150 and 86 changed sides; (64 - 1)^2 / 236 = 16.818."""
    found = mcnemar(*decisions(150, 86))
    assert found.test == "chi-square with continuity correction"
    assert found.p == pytest.approx(math.erfc(math.sqrt(63**2 / 236 / 2)))


@pytest.mark.parametrize(("b", "c"), [(0, 1), (12, 12), (3, 21), (0, 24)])
def test_fewer_than_25_discordant_images_are_tested_exactly(b: int, c: int) -> None:
    found = mcnemar(*decisions(b, c))
    assert (found.test, found.p) == ("exact binomial", pytest.approx(binomtest(b, b + c, 0.5).pvalue))
    assert mcnemar(*decisions(b, 25 - b)).test == "chi-square with continuity correction"


def test_continuity_correction_keeps_equality() -> None:
    assert mcnemar(*decisions(20, 20)).p == 1.0


def test_errors_are_counted_at_each_sets_own_threshold() -> None:
    """0.35 is called pneumonia at 0.3 and normal at 0.5; a probability at the threshold is called."""
    found = compare(
        scores([0.35, 0.1, 0.25], [1, 0, 0], threshold=0.25), scores([0.35, 0.1, 0.25], [1, 0, 0], threshold=0.5)
    )
    errors = found.errors
    assert (errors.threshold, errors.threshold_baseline) == (0.25, 0.5)
    assert (errors.mcnemar.only_here_right, errors.mcnemar.only_baseline_right, errors.mcnemar.both_right) == (1, 1, 1)


def by_patient(name: str, label: np.ndarray, a: np.ndarray, b: np.ndarray, patients: Any) -> dict[str, Any]:
    return difference(name, *(Predictions.of(label, p, 0.5, patients) for p in (a, b)))


def test_patient_intervals_resemble_a_bootstrap() -> None:
    """Build each resample as a list of rows, patient by patient, and let scikit-learn measure it."""
    label, a, b = drawn(600, seed=4, decimals=3)
    patients = np.random.default_rng(0).integers(0, 200, 600)
    rows_of = [np.flatnonzero(patients == patient) for patient in np.unique(patients)]
    rng = np.random.default_rng(9)
    differences = []
    for _ in range(400):
        rows = np.concatenate([rows_of[i] for i in rng.integers(len(rows_of), size=len(rows_of))])
        differences.append(roc_auc_score(label[rows], a[rows]) - roc_auc_score(label[rows], b[rows]))
    low, high = np.quantile(differences, [0.025, 0.975])
    found = by_patient("auc", label, a, b, patients).interval
    assert found == pytest.approx([low, high], abs=0.15 * (high - low))


def test_without_clusters_intervals_resemble_delong() -> None:
    label, a, b = drawn(500, seed=5, decimals=4)
    found = delong(label, a, b)
    assert found.interval is not None
    alone = by_patient("auc", label, a, b, [None] * 500)
    assert alone.interval == pytest.approx(found.interval, abs=0.02 * (found.interval[1] - found.interval[0]))
    assert alone.p == pytest.approx(found.p, abs=0.01)


def test_sets_are_compared_at_own_thresholds() -> None:
    label, a, b = drawn(200, seed=11, decimals=3)
    found = compare(scores(a, label, threshold=0.4), scores(b, label, threshold=0.6))
    assert set(found.differences) == set(METHODS)
    a, b = (np.asarray(p, np.float32).astype(float) for p in (a, b))
    accuracy = found.differences["accuracy"]
    assert accuracy.here == pytest.approx(np.mean((a >= 0.4) == label))
    assert accuracy.baseline == pytest.approx(np.mean((b >= 0.6) == label))
    brier = found.differences["brier"]
    assert brier.difference == pytest.approx(np.mean((a - label) ** 2) - np.mean((b - label) ** 2))
    assert brier.interval[0] < brier.difference < brier.interval[1]


def test_what_assumes_independent_images_is_named() -> None:
    label, a, b = drawn(100, seed=12)
    found = compare(scores(a, label), scores(b, label))
    for path in found.assumes_independent_images:
        part, field = path.split(".")
        assert field in json_of(found)[part]
    assert {"auc.p", "errors.p"} <= set(found.assumes_independent_images)
    assert "patients" in found.difference_method


def test_equal_clustered_models_fool_mcnemar_and_delong_alone() -> None:
    """300 pairs of equal models, 1 to 5 images per patient: 5 % and three binomial sd are 8.8 %."""
    rng = np.random.default_rng(13)
    apart = dict.fromkeys(("mcnemar", "delong", "accuracy by patient", "auc by patient"), 0)
    for _ in range(300):
        of = np.repeat(np.arange(150), rng.integers(1, 6, 150))
        label = (rng.random(150) < 0.6).astype(int)[of]
        a, b = (
            norm.cdf(2.3 * label - 1.15 + 0.8 * rng.normal(size=150)[of] + 0.6 * rng.normal(size=len(of)))
            for _ in range(2)
        )
        apart["mcnemar"] += mcnemar((a >= 0.5) != label, (b >= 0.5) != label).p < 0.05
        apart["delong"] += (delong(label, a, b).p or 1) < 0.05
        apart["accuracy by patient"] += by_patient("accuracy", label, a, b, of).p < 0.05
        apart["auc by patient"] += by_patient("auc", label, a, b, of).p < 0.05
    assert min(apart["mcnemar"], apart["delong"]) / 300 > 0.088
    assert max(apart["accuracy by patient"], apart["auc by patient"]) / 300 <= 0.088


def test_copies_fool_delong_and_not_patient_intervals() -> None:
    """Four copies of every image double DeLong's confidence and say nothing new."""
    label, a, b = drawn(200, seed=6, decimals=4)
    once = compare(scores(a, label), scores(b, label))
    fourfold = [np.repeat(values, 4) for values in (a, b, label, np.arange(200))]
    copied = compare(scores(fourfold[0], fourfold[2], fourfold[3]), scores(fourfold[1], fourfold[2], fourfold[3]))
    assert copied.auc.delong.difference == pytest.approx(once.auc.delong.difference)
    assert copied.auc.interval_by_patient == pytest.approx(once.auc.interval_by_patient)
    for field in ("interval", "p"):
        assert getattr(copied.differences["accuracy"], field) == pytest.approx(
            getattr(once.differences["accuracy"], field)
        )
    assert copied.auc.delong.standard_error == pytest.approx(once.auc.delong.standard_error / 2, rel=0.01)
    assert copied.patients == 200


def test_one_patient_tells_nothing_of_others() -> None:
    label, a, b = drawn(30, seed=7)
    assert by_patient("auc", label, a, b, ["p"] * 30).interval is None


def test_the_order_of_rows_changes_no_digit() -> None:
    label, a, b = drawn(90, seed=8)
    patients = np.arange(90) // 3
    first, second = scores(a, label, patients), scores(b, label, patients)
    order = np.random.default_rng(0).permutation(90)
    shuffled = Scores(second.table.take(order), (1, 1), ZONES, 0.5, "pneumonia")
    turned = Scores(first.table.take(order[::-1]), (1, 1), ZONES, 0.5, "pneumonia")
    assert compare(turned, shuffled) == compare(first, second)


def test_images_of_one_set_are_counted() -> None:
    label, a, b = drawn(40, seed=9)
    names = np.array([f"{i:05d}" for i in range(40)])
    found = compare(
        scores(a[:30], label[:30], np.arange(30), names[:30]), scores(b[3:], label[3:], np.arange(3, 40), names[3:])
    )
    assert (found.images, found.only_here, found.only_baseline) == (27, 3, 10)
    common = slice(3, 30)
    assert found.normal + found.pneumonia == found.patients == 27
    areas, variance = delong_1988(label[common], a[common], b[common])
    assert [found.auc.delong.here, found.auc.delong.baseline] == pytest.approx(areas.tolist())
    assert found.auc.delong.standard_error == pytest.approx(math.sqrt(variance))


def test_images_without_a_label_are_not_compared() -> None:
    found = compare(scores([0.1, 0.9, 0.5], [0, 1, None]), scores([0.3, 0.7, 0.5], [0, 1, None]))
    assert (found.images, found.only_here, found.only_baseline) == (2, 0, 0)


def test_incomparable_scores_are_one_sentence() -> None:
    a = scores([0.1, 0.9], [0, 1])
    with pytest.raises(ManifestError, match=r"no labelled image in common \(2 here, 3 in the baseline\); give"):
        compare(a, scores([0.1] * 3, [0] * 3, names="xyz"))
    with pytest.raises(ManifestError, match="no labelled image"):
        compare(a, scores([0.1, 0.9], [None, None]))
    with pytest.raises(ManifestError, match="1 of 2 images have another label"):
        compare(a, scores([0.1, 0.9], [1, 1]))


def test_the_result_is_json() -> None:
    label, a, b = drawn(40, seed=10)
    found = compare(scores(a, label), scores(b, label))
    plain = json_of(found)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
