import json
from dataclasses import dataclass, field

import pytest

from pneumo_ray.config import as_flat, load_config, parse, save_config
from pneumo_ray.errors import ConfigError
from pneumo_ray.job import run_job
from pneumo_ray.train.config import TrainConfig


@dataclass(frozen=True)
class Inner:
    rate: float = 1.0
    """A rate."""


@dataclass(frozen=True)
class Outer:
    """A job."""

    name: str
    """A name."""
    sizes: tuple[int, ...] = (1, 2)
    """Sizes."""
    inner: Inner = field(default_factory=Inner)


def test_a_config_survives_its_file(tmp_path):
    config = TrainConfig(manifest="m", out="o")
    save_config(config, str(tmp_path / "c.json"))
    assert load_config(TrainConfig, str(tmp_path / "c.json")) == config


def test_options_beside_a_config_file_win(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({"sizes": [7], "inner": {"rate": 2.0}}))
    got = parse(Outer, ["--config", str(tmp_path / "c.json"), "--name", "x", "--inner.rate", "3"])
    assert got == Outer("x", (7,), Inner(3.0))
    assert parse(Outer, [f"--config={tmp_path / 'c.json'}", "--name", "x"]).inner.rate == 2.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"inner": {"rat": 1}}', "unknown option inner.rat; did you mean inner.rate"),
        ("[1]", "JSON object"),
        ("{", "not a readable JSON"),
    ],
)
def test_a_wrong_config_file_is_named(tmp_path, text, message):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(Outer, str(tmp_path / "c.json"))


def test_a_mistake_is_one_sentence_with_code_2(capsys):
    def job(config: Outer) -> None:
        raise ConfigError("no such thing; choose another")

    with pytest.raises(SystemExit) as ended:
        run_job(Outer, job, ["--name", "x"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: no such thing; choose another\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "0"], "epochs must be at least 1"),
        (["--model.arch", "resnet51"], "resnet50"),
        (["--optim.lr", "-1"], "optim.lr must be positive"),
        (["--batch-size", "2", "--scaling.num-workers", "3"], "smaller than the number of workers, 3"),
        (["--scaling.num-workers", "4", "2"], "two increasing numbers"),
    ],
)
def test_impossible_options_are_named(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        run_job(TrainConfig, lambda config: None, ["--manifest", "m", "--out", "o", *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_flat_names_are_those_of_the_command_line():
    assert as_flat(Outer("x")) == {"name": "x", "sizes": [1, 2], "inner.rate": 1.0}
