"""Recipes are defaults: the paper's are today's, and whatever is given wins over them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pneumo_ray.config import as_flat, load_config, parse, save_config
from pneumo_ray.errors import ConfigError
from pneumo_ray.train.config import TrainConfig
from pneumo_ray.train.recipes import RECIPES, recipe_settings
from pneumo_ray.tune.config import StudyConfig
from pneumo_ray.tune.study import Trial, configure

NEEDED = ["--manifest", "m", "--out", "o"]

PAPER = {
    "model.arch": "resnet50", "model.weights": "imagenet", "model.dropout": 0.5, "model.dropout_site": "head",
    "model.freeze": "none", "data.image_size": 224, "augment.flip_probability": 0.5, "augment.rotation_degrees": 10.0,
    "augment.crop_area": [0.8, 1.0], "augment.crop_aspect": [0.9, 1.1], "augment.brightness": 0.2,
    "augment.contrast": 0.2, "augment.noise_probability": 0.3, "augment.noise_sigma": 0.02,
    "augment.affine_shear_degrees": 0.0, "augment.affine_translate": 0.0, "augment.elastic_alpha": 0.0,
    "augment.elastic_sigma": 10.0, "optim.lr": 1e-4, "optim.weight_decay": 1e-4, "optim.clip_norm": 0.0,
    "optim.plateau_factor": 0.5, "optim.plateau_patience": 3, "optim.stop_patience": 5, "balance": "copies",
    "batch_size": 64, "epochs": 30, "amp": "auto", "compile": False, "seed": 0,
}  # fmt: skip
"""The defaults before there were recipes."""

OFF = {
    "model.output_stride": 32, "model.stages": 4, "data.fit": "squash", "augment.gamma": 0.0, "augment.histogram": 0.0,
    "augment.outside": "none", "optim.schedule": "plateau", "optim.warmup": 0.0, "optim.ema": 0.0,
    "loss.smoothing": 0.0, "guide.weight": 0.0,
}  # fmt: skip
"""What came with them, in the state that changes nothing."""


def parsed(*words: str) -> TrainConfig:
    return parse(TrainConfig, [*NEEDED, *words])


@pytest.mark.parametrize("words", [("--recipe", "paper"), ("--recipe=paper",)])
def test_the_paper_is_what_it_was(words):
    config = parsed(*words)
    assert config == TrainConfig("m", "o")
    flat = as_flat(config)
    assert {name: flat[name] for name in PAPER | OFF} == PAPER | OFF


def test_a_command_line_without_a_recipe_is_robust():
    assert parsed() == parsed("--recipe", "robust")
    assert parsed("--epochs", "3") == replace(parsed("--recipe", "robust"), epochs=3)
    assert TrainConfig("m", "o").recipe == "paper"


def test_robust_sets_what_it_says_and_nothing_else():
    flat, paper = as_flat(parsed("--recipe", "robust")), as_flat(TrainConfig("m", "o"))
    settings = recipe_settings("robust", "resnet50")
    assert {name for name in flat if flat[name] != paper[name]} == set(settings) | {"recipe"}
    assert {name: flat[name] for name in settings} == settings
    assert recipe_settings("paper", "resnet50") == {name: paper[name] for name in settings}


def test_options_given_win_wherever_they_stand():
    for words in (("--guide.weight", "3", "--recipe", "robust"), ("--recipe", "robust", "--guide.weight=3")):
        assert parsed(*words) == replace(
            parsed("--recipe", "robust"), guide=replace(parsed("--recipe", "robust").guide, weight=3.0)
        )


def test_a_trunk_without_strides_keeps_its_own():
    for arch, stride, stages in (("vgg16", 32, 4), ("resnet34", 16, 3)):
        model = parsed("--recipe", "robust", "--model.arch", arch).model
        assert (model.output_stride, model.stages) == (stride, stages)


def test_a_config_file_is_a_run_again(tmp_path):
    run = parsed("--recipe", "robust", "--optim.lr", "0.002", "--epochs", "7")
    save_config(run, str(tmp_path / "c.json"))
    assert parse(TrainConfig, ["--config", str(tmp_path / "c.json")]) == run
    assert load_config(TrainConfig, str(tmp_path / "c.json")) == run
    assert parse(TrainConfig, ["--config", str(tmp_path / "c.json"), "--recipe", "robust"]) == run


def test_a_given_recipe_wins_over_the_file(tmp_path):
    save_config(parsed("--recipe", "robust", "--seed", "4"), str(tmp_path / "c.json"))
    back = parse(TrainConfig, ["--config", str(tmp_path / "c.json"), "--recipe", "paper"])
    assert back == replace(TrainConfig("m", "o"), seed=4)


def test_a_partial_file_is_completed_by_recipe(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({"recipe": "robust", "guide": {"weight": 2}, "epochs": 3}))
    config = parse(TrainConfig, [*NEEDED, "--config", str(tmp_path / "c.json")])
    expected = as_flat(parsed("--recipe", "robust")) | {"guide.weight": 2, "epochs": 3}
    assert as_flat(config) == expected


def test_files_without_recipe_keep_their_meaning(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({"manifest": "m", "out": "o", "optim": {"lr": 0.01}}))
    then = as_flat(TrainConfig("m", "o")) | {"optim.lr": 0.01}
    assert as_flat(load_config(TrainConfig, str(tmp_path / "c.json"))) == then
    assert as_flat(parse(TrainConfig, ["--config", str(tmp_path / "c.json")])) == then


def test_a_group_that_is_a_number_is_refused(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({"manifest": "m", "out": "o", "model": 3}))
    with pytest.raises(ConfigError, match="wrong type"):
        load_config(TrainConfig, str(tmp_path / "c.json"))


def test_other_recipes_are_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        parsed("--recipe", "best")
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert all(name in message for name in RECIPES)


def test_a_study_has_the_recipes_too():
    study = parse(StudyConfig, [*NEEDED, "--study", "balance", "--recipe", "robust"])
    assert study.base().guide.weight == recipe_settings("robust", "resnet50")["guide.weight"]


def test_a_trial_takes_its_own_presets():
    robust, paper = parsed("--recipe", "robust"), parsed("--recipe", "paper")
    assert configure(robust, Trial("a", "a", {"model.arch": "vgg16"}, 0)).model.output_stride == 32
    assert configure(robust, Trial("a", "a", {"model.arch": "resnet18"}, 0)).model.output_stride == 16
    moved = configure(paper, Trial("a", "a", {"recipe": "robust", "guide.weight": 2.0}, 0))
    assert (moved.guide.weight, moved.optim.schedule) == (2.0, "onecycle")


def test_a_recipe_is_its_options(tmp_path: Path):
    settings = recipe_settings("robust", "resnet50")
    words = [w for name, value in settings.items() for w in (f"--{name.replace('_', '-')}", str(value))]
    assert replace(parsed("--recipe", "paper", *words), recipe="robust") == parsed("--recipe", "robust")
