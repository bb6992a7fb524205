"""What a study is, what its trials are, how they share a cluster, and what their numbers say: no Ray, no training."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components
from scipy.stats import t as student

from pneumo_ray.config import load_config, parse
from pneumo_ray.data.config import BALANCE_MODES
from pneumo_ray.errors import ConfigError, PneumoError
from pneumo_ray.images.augment_config import OPERATIONS, AugmentConfig
from pneumo_ray.model import ModelConfig
from pneumo_ray.train.config import DataConfig, TrainConfig
from pneumo_ray.tune.comparison import best_record, differences
from pneumo_ray.tune.config import StudyConfig
from pneumo_ray.tune.records import Status, TrialRecord, read_record, save_record
from pneumo_ray.tune.results import ablation_markdown, study_rows, write_results
from pneumo_ray.tune.studies import STUDIES
from pneumo_ray.tune.study import Range, Study, Trial, configure, plan, read_study
from pneumo_ray.tune.trial import validation_metrics

BASE = TrainConfig(manifest="/m.parquet", out="/study", model=ModelConfig(weights="none"))


def asked(**changes) -> StudyConfig:
    return replace(StudyConfig(manifest="m.parquet", out="out", study="balance"), **changes)


def test_study_of_maps_has_every_site():
    """Two sites, three with attention, of five trunks, each without and with guidance: (3 * 2 + 2 * 3) * 2."""
    configs = {trial.arm: configure(BASE, trial) for trial in plan(replace(STUDIES["maps"], seeds=1), BASE)}
    assert len(configs) == 24
    assert {arm for arm in configs if arm.split("-")[1] == "keys"} == {
        f"{arch}-keys-{guided}" for arch in ("swin_t", "maxvit_t") for guided in ("plain", "guided")
    }
    for arm, config in configs.items():
        arch, site, guided = arm.split("-")
        assert (config.model.arch, config.model.dropout_site) == (arch, site)
        assert (config.guide.weight > 0) == (guided == "guided")


@pytest.mark.parametrize("name", STUDIES)
def test_built_in_studies_have_valid_configs(name):
    trials = plan(STUDIES[name], BASE)
    configs = [configure(BASE, trial) for trial in trials]
    assert len({trial.name for trial in trials}) == len({config.out for config in configs}) == len(trials)
    assert len({(replace(config, out="")) for config in configs}) == len(trials), "two trials are the same run"


def test_augmentation_varies_each_operation_alone():
    configs = {arm: _augment(settings) for arm, settings in STUDIES["augmentation"].arms.items()}
    assert configs.pop("full") == AugmentConfig()
    assert configs.pop("none") == AugmentConfig.none()
    for operation in OPERATIONS:
        assert configs.pop(f"without-{operation}") == AugmentConfig().without(operation)
        alone = configs.pop(f"only-{operation}")
        assert alone.without(operation) == AugmentConfig.none()
        assert alone != AugmentConfig.none()
    assert not configs


def _augment(settings) -> AugmentConfig:
    return configure(BASE, Trial("x", "x", settings, 0)).augment


def test_all_arms_run_before_the_next_seed():
    trials = plan(STUDIES["balance"], replace(BASE, seed=5))
    assert [trial.seed for trial in trials] == [5] * 5 + [6] * 5 + [7] * 5
    assert [trial.arm for trial in trials[:5]] == list(BALANCE_MODES)


def test_more_draws_only_add_to_a_search():
    study = STUDIES["lr-wd"]
    few, many = plan(replace(study, trials=8), BASE), plan(replace(study, trials=200), BASE)
    assert many[:8] == few
    rates = np.array([trial.settings["optim.lr"] for trial in many])
    assert 1e-5 <= rates.min() < 2e-5
    assert 1.5e-4 < rates.max() <= 3e-4
    # Log-uniform: half of the draws lie below the geometric mean (three standard errors are 0.11).
    assert abs(np.mean(rates < np.sqrt(1e-5 * 3e-4)) - 0.5) < 0.11


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optim.lrr": 1.0}, "no option optim.lrr to vary; did you mean optim.lr"),
        ({"optim": 1.0}, "no option optim to vary"),
        ({"balance": "copiess"}, "balance cannot be 'copiess'; did you mean copies"),
        ({"optim.lr": "fast"}, "optim.lr cannot be 'fast'; it is of type float"),
        ({"optim.lr": -1}, "optim.lr must be positive"),
        ({"batch_size": 1.5}, "batch_size cannot be 1.5"),
        ({"compile": 1}, "compile cannot be 1"),
        ({"model.dropout": 1.0}, "model.dropout must be"),
    ],
)
def test_an_impossible_arm_is_named_first(settings, message):
    with pytest.raises(ConfigError, match=message):
        plan(Study("s", "x", arms={"a": settings}), BASE)


def test_impossible_ranges_and_empty_studies_are_refused():
    for low, high, log in ((1, 1, False), (2, 1, False), (0, 1, True), (1, float("nan"), False)):
        with pytest.raises(ConfigError, match="increasing"):
            Range(low, high, log)
    with pytest.raises(ConfigError, match="either arms or a space"):
        Study("s", "x")
    with pytest.raises(ConfigError, match="no value for balance"):
        Study("s", "x", space={"balance": ()})
    with pytest.raises(ConfigError, match="did you mean full"):
        Study("s", "x", arms={"full": {}}, reference="ful")


def test_a_study_is_read_from_json(tmp_path):
    path = tmp_path / "mine.json"
    space = {"optim.lr": {"low": 1e-5, "high": 1e-3, "log": True}, "balance": ["none", "copies"]}
    path.write_text(json.dumps({"space": space, "trials": 3}))
    study = read_study(str(path))
    expected = {"optim.lr": Range(1e-5, 1e-3, log=True), "balance": ("none", "copies")}
    assert study == Study("mine", "optim.lr, balance", space=expected, trials=3)
    assert len(plan(study, BASE)) == 3
    for text, message in (
        ('{"spaces": {}}', "unknown field spaces; did you mean space"),
        ("[]", "JSON object"),
        ("{", "not a readable"),
        ('{"space": {"optim.lr": {"lo": 1}}}', "wrong type"),
        ('{"space": {"optim.lr": 3}}', "wrong type"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_study(str(path))


def test_unknown_arms_and_options_are_refused():
    assert list(asked(arms=("none", "p*")).chosen().arms) == ["pos-weight", "none", "paper"]
    assert asked(seeds=7).chosen().seeds == 7
    for changes, message in (
        ({"study": "balanced"}, "did you mean balance"),
        ({"arms": ("papers",)}, "no arm 'papers'; did you mean paper"),
        ({"trials": 3}, "remove --trials"),
        ({"study": "lr-wd", "seeds": 2}, "no --seeds"),
        ({"search": "optuna"}, "has no --search"),
        ({"study": None}, "--study NAME"),
    ):
        with pytest.raises(ConfigError, match=message):
            asked(**changes).chosen()
    for changes, message in (
        ({"trials": 0}, "trials must be at least 1"),
        ({"seeds": 0}, "seeds must be"),
    ):
        with pytest.raises(ConfigError, match=message):
            asked(**changes)


def test_a_study_takes_options_of_training():
    words = ["--manifest", "m", "--out", "o", "--study", "balance", "--arms", "none", "paper", "--optim.lr", "0.5"]
    config = parse(StudyConfig, [*words, "--seeds", "2"])
    assert (config.arms, config.seeds, config.optim.lr) == (("none", "paper"), 2, 0.5)
    assert type(config.base()) is TrainConfig


def records(values: dict[str, list[float]], status: Status = "finished") -> list[TrialRecord]:
    return [
        TrialRecord(
            name=f"{arm}-{seed}",
            arm=arm,
            seed=seed,
            settings={"balance": arm},
            status=status,
            epochs=3,
            best_epoch=2,
            checkpoint="c",
            training_seconds=1.0,
            overhead_seconds=0.5,
            metrics={"val_loss": value, "loss_scaled": value},
        )
        for arm, arm_values in values.items()
        for seed, value in enumerate(arm_values)
    ]


def test_a_record_is_read_as_it_was_written(tmp_path):
    """The file is part of the contract: its keys, in their order, are those of earlier versions."""
    (record,) = records({"ref": [0.3]})
    record = replace(record, history=[{"epoch": 1, "val_loss": 0.3}])
    save_record(str(tmp_path), record)
    assert read_record(str(tmp_path)) == record
    written = json.loads((tmp_path / "trial.json").read_text())
    assert list(written) == [
        *("name", "arm", "seed", "settings", "status", "reason", "epochs", "best_epoch", "checkpoint"),
        *("training_seconds", "overhead_seconds", "metrics", "history"),
    ]
    assert read_record(str(tmp_path / "elsewhere")) is None


@pytest.mark.parametrize("content", ["[]", "{}", "not JSON", '{"name": "t"}'])
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / "trial.json").write_text(content)
    with pytest.raises(PneumoError, match=r"trial\.json is damaged"):
        read_record(str(tmp_path))


def test_two_arms_have_a_paired_t_test():
    """With two arms, additive effects of arm and seed are exactly Student's paired test."""
    reference, other = [0.30, 0.32, 0.37, 0.31], [0.28, 0.31, 0.33, 0.30]
    found = differences(records({"ref": reference, "new": other}), "val_loss", "ref")["new"]
    pairs = np.array(other) - np.array(reference)
    half = student.ppf(0.975, 3) * pairs.std(ddof=1) / 2
    assert found.mean == pytest.approx(pairs.mean())
    assert (found.low, found.high) == (pytest.approx(pairs.mean() - half), pytest.approx(pairs.mean() + half))


def test_differences_have_their_nominal_coverage():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        seeds = rng.normal(0, 5, 3)
        values = {arm: list(0.1 * k + seeds + rng.normal(0, 1, 3)) for k, arm in enumerate("abcde")}
        found = differences(records(values), "val_loss", "a")["e"]
        hits += found.low <= 0.4 <= found.high
    assert abs(hits / 400 - 0.95) < 0.033  # three standard errors


def test_one_seed_has_no_interval():
    found = differences(records({"ref": [0.3], "new": [0.2]}), "val_loss", "ref")["new"]
    assert (found.mean, found.low, found.high) == (pytest.approx(-0.1), None, None)
    assert differences(records({"new": [0.2]}), "val_loss", "ref") == {}


@given(
    finished=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), unique=True, max_size=12),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=150)
def test_only_arms_with_common_seeds_are_compared(finished: list[tuple[int, int]], seed: int):
    """Effects of arm and seed can be told apart within a connected part of the graph of arms and seeds, and only there."""
    rng = np.random.default_rng(seed)
    arms, seeds = rng.normal(size=4), rng.normal(size=4)
    found = records({str(arm): [float(arms[arm] + value) for value in seeds] for arm in range(4)})
    found = [
        record if (int(record.arm), record.seed) in finished else replace(record, status="failed", metrics={})
        for record in found
    ]
    edges = np.zeros((8, 8))
    for arm, number in finished:
        edges[arm, 4 + number] = 1
    _, part = connected_components(edges, directed=False)
    joined = {arm for arm, _ in finished if arm != 0 and part[arm] == part[0]}
    compared = differences(found, "val_loss", "0")
    assert set(compared) == {str(arm) for arm in joined}
    for arm, difference in compared.items():
        assert difference.mean == pytest.approx(arms[int(arm)] - arms[0])


def test_an_arm_with_a_divergence_is_not_best():
    study = Study("s", "x", arms={"a": {}, "b": {}})
    found = records({"a": [0.1, 0.1], "b": [0.2, 0.2]})
    assert best_record(study, found).arm == "a"
    found[1] = replace(found[1], status="diverged", metrics={})
    assert best_record(study, found).arm == "b"
    assert best_record(study, records({"a": [0.1]}, status="failed")) is None
    search = Study("s", "x", space={"optim.lr": Range(0, 1)})
    assert best_record(search, records({"a": [0.3], "b": [0.2]})).arm == "b"


def test_the_dropout_study_measures_error_finding():
    arms = {"head-0.5": {"model.dropout": 0.5}, "head-0.2": {"model.dropout": 0.2}}
    study = Study("s", "x", arms=arms, uncertainty=True)
    found = records({"head-0.5": [0.3], "head-0.2": [0.3]})
    found = [
        replace(record, metrics={**record.metrics, "error_auroc_mi": value, "error_auroc_plain": None})
        for record, value in zip(found, (0.7, 0.8), strict=True)
    ]
    text = ablation_markdown(study, BASE, found)
    assert text.count("| error_auroc_mi | error_auroc_plain |") == 2
    assert "| 0.8000 |  |" in text
    assert "| +0.1000 |  |" in text
    found[1] = replace(found[1], status="diverged", metrics={})
    assert "| head-0.2 | 0, 1 diverged |" in ablation_markdown(study, BASE, found)
    assert "error_auroc" not in ablation_markdown(replace(study, uncertainty=False), BASE, found)
    with pytest.raises(ConfigError, match="measures the uncertainty of dropout, and off has none"):
        plan(replace(study, arms={"off": {"model.dropout": 0.0}}), BASE)


def test_rows_have_equal_columns_for_any_status():
    found = records({"a": [0.1], "b": [0.2]})
    settings = {"augment.crop_area": [0.8, 1.0]}
    found[1] = replace(found[1], status="failed", metrics={}, overhead_seconds=None, settings=settings)
    rows = study_rows(found)
    assert rows[0].keys() == rows[1].keys()
    assert rows[1]["augment.crop_area"] == "[0.8, 1.0]"
    assert rows[1]["val_loss"] is None
    assert rows[0]["seconds"] == 1.5


def test_an_overconfident_half_is_what_the_bias_shows():
    labels = np.array([0, 1] * 50)
    metrics = validation_metrics(np.full(100, np.log(3.0)), labels)
    assert metrics["bias"] == pytest.approx(0.25)
    assert metrics["val_loss"] == pytest.approx(-0.5 * (np.log(0.75) + np.log(0.25)))
    assert metrics["ece"] == pytest.approx(0.25)
    assert (metrics["recall"], metrics["specificity"]) == (1.0, 0.0)
    # All logits are equal: calibrated, everybody has the prevalence.
    assert metrics["loss_scaled"] == pytest.approx(np.log(2))
    assert (metrics["temperature"], metrics["intercept"]) == (1.0, pytest.approx(-np.log(3)))


def test_the_best_config_is_one_that_train_takes(tmp_path):
    study = Study("s", "x", arms={"a": {"augment.crop_area": None}, "b": {"augment.crop_area": [0.5, 0.9]}})
    base = replace(BASE, out=str(tmp_path), data=DataConfig(64))
    found = records({"a": [0.3], "b": [0.2]})
    names = ("val_auc", "ece", "recall", "specificity", "bias")
    found = [
        replace(
            record, settings=study.arms[record.arm], metrics={**record.metrics, **dict.fromkeys(names, 0.5)}, history=[]
        )
        for record in found
    ]
    write_results(study, base, str(tmp_path), found)
    best = load_config(TrainConfig, str(tmp_path / "best.json"))
    assert best.augment.crop_area == (0.5, 0.9)
    assert best.data.image_size == 64
    text = (tmp_path / "ablation.md").read_text()
    assert "| b | -0.1000 |" in text
    assert "(figures/differences.png)" in text
    assert (tmp_path / "figures/differences.png").exists()
