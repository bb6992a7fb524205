"""Definition of a study: the options that it varies, its trials, and the reference for comparison.

An ablation names its arms and repeats each with several seeds; a search draws from ranges. Both are plain values, so a
study is ten lines of Python or a JSON file, and its trials are known before any of them runs.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from pneumo_ray import storage
from pneumo_ray.config import Config, as_flat, did_you_mean, moved_presets, read_object, require
from pneumo_ray.errors import ConfigError
from pneumo_ray.records import JsonObject
from pneumo_ray.train.config import TrainConfig

Settings = JsonObject
"""Options of jobs/train.py by their dotted names, with underscores: {"optim.lr": 1e-4}."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`."""

    low: float
    high: float
    log: bool = False
    """Every decade is equally likely."""

    def __post_init__(self) -> None:
        """Refuse an empty or invalid range."""
        finite = all(isinstance(v, int | float) and math.isfinite(v) for v in (self.low, self.high))
        kind = "two increasing positive numbers" if self.log else "two increasing numbers"
        require(
            finite and self.low < self.high and not (self.log and self.low <= 0),
            f"a range needs {kind}, got {self.low} and {self.high}",
        )

    def draw(self, rng: np.random.Generator) -> float:
        """Return a number with three significant digits, so that the printed value is the value that ran."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = rng.uniform(low, high)
        return self.rounded(math.exp(value) if self.log else value)

    def rounded(self, value: float) -> float:
        """Return a number of the range with three significant digits."""
        return min(max(float(f"{value:.3g}"), self.low), self.high)


@dataclass(frozen=True)
class Study:
    """Arms that are compared, or a space that is searched."""

    name: str
    varies: str
    """Short description of what it varies."""
    arms: Mapping[str, Settings] = field(default_factory=dict)
    """An ablation: name -> its settings; every arm runs with every seed."""
    space: Mapping[str, Range | tuple[object, ...]] = field(default_factory=dict)
    """A search: option -> a range or a tuple of choices."""
    seeds: int = 1
    """Seeds of every arm."""
    trials: int = 16
    """Draws from the space."""
    reference: str | None = None
    """The arm that the others are compared with; None takes the first."""
    uncertainty: bool = False
    """Also measure how well the uncertainty of Monte Carlo dropout finds errors; every arm needs dropout then."""
    folds: int = 0
    """Above 0, every arm and seed trains once without each of so many folds of the training images, and gives those, which
    it has not seen, their probabilities: of one arm, the study of doubtful labels."""

    def __post_init__(self) -> None:
        """Refuse a study that cannot run."""
        require(bool(self.arms) != bool(self.space), f"study {self.name} needs either arms or a space")
        if self.reference is not None:
            hint = did_you_mean(self.reference, self.arms)
            require(self.reference in self.arms, f"study {self.name} has no arm {self.reference!r}{hint}")
        require(self.seeds >= 1 and self.trials >= 1, f"study {self.name} needs at least one seed and one trial")
        require(self.folds != 1 and self.folds >= 0, f"study {self.name} needs at least 2 folds, got {self.folds}")
        require(
            not self.folds or len(self.arms) == 1,
            f"study {self.name} has folds, so it compares nothing: give it one arm",
        )
        for option, values in self.space.items():
            require(isinstance(values, Range) or bool(values), f"study {self.name} has no value for {option}")

    @property
    def is_search(self) -> bool:
        """Whether its trials are drawn from a space."""
        return bool(self.space)

    @property
    def reference_arm(self) -> str | None:
        """The arm that the others are compared with; None in a search."""
        return None if self.is_search else self.reference or next(iter(self.arms))


@dataclass(frozen=True)
class Trial:
    """One training of a study."""

    name: str
    """Unique in the study; also the name of its folder."""
    arm: str
    settings: Settings
    """Settings that differ from the base config."""
    seed: int
    fold: int | None = None
    """Of the training images, left out."""


def plan(study: Study, base: TrainConfig) -> list[Trial]:
    """Return the trials of a study, in the order in which they are started.

    All arms come with the first seed before any comes with the second, so that a study that runs out of time compares
    all of them. More seeds or more trials only add to the end.

    Raises:
        ConfigError: naming an invalid option or value.
    """
    if study.is_search:
        trials = [_draw(study, base.seed, number) for number in range(study.trials)]
    else:
        trials = [
            Trial(f"{arm}-seed{seed}", arm, settings, seed)
            for seed in range(base.seed, base.seed + study.seeds)
            for arm, settings in study.arms.items()
        ]
    if study.folds:
        trials = [_without(trial, fold, base) for trial in trials for fold in range(study.folds)]
    for trial in trials:
        config = configure(base, trial)
        if study.uncertainty and config.model.dropout == 0:
            raise ConfigError(
                f"study {study.name} measures the uncertainty of dropout, and {trial.arm} has none; "
                "set its model.dropout above 0"
            )
    return trials


def _without(trial: Trial, fold: int, base: TrainConfig) -> Trial:
    settings = {**trial.settings, "manifest": fold_manifest(base.out, fold)}
    return Trial(f"{trial.name}-fold{fold}", trial.arm, settings, trial.seed, fold)


def fold_manifest(out: str, fold: int) -> str:
    """Return where a study keeps the manifest of the trials that leave a fold out."""
    return storage.join(out, "folds", f"fold-{fold}.parquet")


def _draw(study: Study, seed: int, number: int) -> Trial:
    rng = np.random.default_rng([seed, number])
    settings: JsonObject = {}
    for option, values in study.space.items():
        settings[option] = values.draw(rng) if isinstance(values, Range) else values[int(rng.integers(len(values)))]
    return Trial(f"{number:03d}", f"{number:03d}", settings, seed)


def configure(base: TrainConfig, trial: Trial) -> TrainConfig:
    """Return the config of a trial: `base` with the trial's settings and seed, in its own folder.

    Raises:
        ConfigError: naming an unknown option or an invalid value.
    """
    out = storage.join(base.out, "trials", trial.name)
    given = as_flat(base)
    moved = moved_presets(TrainConfig, given, given | dict(trial.settings))
    return _with(base, {**moved, **trial.settings, "seed": trial.seed, "out": out})


def _with(config: Config, settings: Settings, prefix: str = "") -> Config:
    hints = get_type_hints(type(config))
    changes: JsonObject = {}
    nested: dict[str, JsonObject] = {}
    for option, value in settings.items():
        name, _, rest = option.partition(".")
        if name not in hints or dataclasses.is_dataclass(hints[name]) != bool(rest):
            known = [f"{prefix}{known}" for known in _options(config)]
            raise ConfigError(f"there is no option {prefix}{option} to vary{did_you_mean(prefix + option, known)}")
        if rest:
            nested.setdefault(name, {})[rest] = value
        else:
            changes[name] = _checked(hints[name], value, f"{prefix}{option}")
    for name, inner in nested.items():
        changes[name] = _with(getattr(config, name), inner, f"{prefix}{name}.")
    return dataclasses.replace(config, **changes)


def _options(config: Config, prefix: str = "") -> list[str]:
    names: list[str] = []
    for spec in dataclasses.fields(config):
        value = getattr(config, spec.name)
        is_group = dataclasses.is_dataclass(value) and not isinstance(value, type)
        names += _options(value, f"{prefix}{spec.name}.") if is_group else [prefix + spec.name]
    return names


def _checked(hint: Any, value: object, option: str) -> object:
    """Return a value as the option's type, or refuse it; the config checks its range."""
    if get_origin(hint) is Literal and value not in get_args(hint):
        raise ConfigError(
            f"{option} cannot be {value!r}{did_you_mean(str(value), get_args(hint))} (choose from {', '.join(get_args(hint))})"
        )
    if isinstance(value, list):
        return tuple(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and isinstance(value, int) and number:
        return float(value)
    fits = {
        int: isinstance(value, int) and number,
        float: number,
        bool: isinstance(value, bool),
        str: isinstance(value, str),
    }
    if not fits.get(hint, True):
        raise ConfigError(f"{option} cannot be {value!r}; it is of type {hint.__name__}")
    return value


def read_study(uri: str) -> Study:
    """Return the study that a JSON file describes, with the fields of `Study`.

    In `space` a list is a tuple of choices, and an object such as {"low": 1e-5, "high": 1e-3, "log": true} a range.

    Raises:
        ConfigError: naming the invalid part of the file.
    """
    values = read_object("--space", uri, "with arms or a space")
    known = [spec.name for spec in dataclasses.fields(Study)]
    if unknown := [key for key in values if key not in known]:
        raise ConfigError(f"--space {uri} has the unknown field {unknown[0]}{did_you_mean(unknown[0], known)}")
    try:
        values["space"] = {
            option: Range(**value) if isinstance(value, dict) else tuple(value)
            for option, value in values.get("space", {}).items()
        }
        name = storage.base_name(uri).removesuffix(".json")
        fields: JsonObject = {"name": name, "varies": ", ".join(values["space"]) or "its arms"} | values
        return Study(**fields)
    except (TypeError, AttributeError) as error:
        raise ConfigError(f"--space {uri} has a value of the wrong type: {error}") from error
