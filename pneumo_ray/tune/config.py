"""Command-line options of a study: those of a training and those of the study."""

import dataclasses
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from pneumo_ray.config import did_you_mean, require
from pneumo_ray.errors import ConfigError
from pneumo_ray.train.config import TrainConfig

if TYPE_CHECKING:
    from pneumo_ray.tune.study import Study


@dataclass(frozen=True)
class StudyConfig(TrainConfig):
    """Train a classifier many times and compare; the same command continues an interrupted study.

    Every option of jobs/train.py is one of every trial, except for those that the study varies.
    """

    out: str
    """Folder of the study: trials/, study.parquet, study.csv, ablation.md, best.json, figures."""
    study: str | None = None
    """Built-in study: lr-wd, augmentation, balance, finetune, architecture, dropout, maps, labels."""
    space: str | None = None
    """JSON file that describes a study (its arms, or the space to search), instead of --study."""
    arms: tuple[str, ...] = ()
    """Only these arms of an ablation, as names or patterns: full 'without-*'."""
    trials: int | None = None
    """Draws of a search; None takes the number of the study."""
    seeds: int | None = None
    """Seeds of every arm of an ablation; None takes the number of the study."""
    folds: int | None = None
    """Folds of the study of labels; None takes the number of the study."""
    max_concurrent: int = 0
    """Largest number of concurrent trials; 0 takes as many as CPUs or GPUs and memory allow."""
    time_budget: float = 0.0
    """Seconds after which the study stops; the same command continues. 0 sets no limit."""
    search: Literal["random", "optuna"] = "random"
    """Sampling of a search: at random, or with Optuna if it is installed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("trials", self.trials), ("seeds", self.seeds)):
            require(value is None or value >= 1, f"{name} must be at least 1, got {value}")
        require(self.folds is None or self.folds >= 2, f"folds must be at least 2, got {self.folds}")
        require(
            not self.scaling.is_elastic,
            f"the trials of a study have a fixed number of workers: give --scaling.num-workers {self.scaling.max_workers}",
        )
        require(self.max_concurrent >= 0, f"max-concurrent must not be negative, got {self.max_concurrent}")
        require(self.time_budget >= 0, f"time-budget must not be negative, got {self.time_budget}")

    def base(self) -> TrainConfig:
        """Return the training that the study varies, with absolute locations."""
        from pneumo_ray import storage  # not for --help

        values = {spec.name: getattr(self, spec.name) for spec in dataclasses.fields(TrainConfig)}
        weights = self.model.weights
        model = replace(self.model, weights=weights if weights in ("imagenet", "none") else storage.absolute(weights))
        places = {"manifest": storage.absolute(self.manifest), "out": storage.absolute(self.out)}
        return TrainConfig(**values | places | {"model": model})

    def chosen(self) -> "Study":
        """Return the study with the chosen arms, seeds and number of trials.

        Raises:
            ConfigError: if the study or an arm does not exist, or an option does not apply to it.
        """
        from pneumo_ray.tune.studies import STUDIES, find_study  # not for --help
        from pneumo_ray.tune.study import read_study

        require(
            self.members == 1 and self.posterior == "dropout",
            "a study has neither --members, which are those of jobs/train.py, nor --posterior, which jobs/posterior.py fits "
            "to the models that are to be kept",
        )
        if (self.study is None) == (self.space is None):
            raise ConfigError(f"give either --study NAME (one of {', '.join(STUDIES)}) or --space FILE.json")
        study = find_study(self.study) if self.study is not None else read_study(str(self.space))
        if study.is_search and (self.arms or self.seeds is not None):
            raise ConfigError(f"study {study.name} is a search: it has no arms and no --seeds; choose --trials")
        if not study.is_search and self.trials is not None:
            raise ConfigError(
                f"study {study.name} is an ablation: its trials are its arms times --seeds, so remove --trials"
            )
        require(self.folds is None or study.folds > 0, f"study {study.name} leaves no folds out: remove --folds")
        if self.search != "random" and not study.is_search:
            raise ConfigError(f"study {study.name} is an ablation and has no --search")
        if self.search == "optuna" and find_spec("optuna") is None:
            raise ConfigError(
                "--search optuna needs Optuna, which is not installed; pip install 'pneumo_ray[optuna]', or leave the "
                "option out to draw at random"
            )
        arms = dict(study.arms)
        for pattern in self.arms:
            if not any(fnmatch(arm, pattern) for arm in arms):
                raise ConfigError(
                    f"study {study.name} has no arm {pattern!r}{did_you_mean(pattern, arms)} (arms: {', '.join(arms)})"
                )
        if self.arms:
            arms = {arm: arms[arm] for arm in arms if any(fnmatch(arm, pattern) for pattern in self.arms)}
        reference = study.reference if study.reference in arms else None
        return replace(
            study,
            arms=arms,
            reference=reference,
            seeds=self.seeds or study.seeds,
            trials=self.trials or study.trials,
            folds=self.folds or study.folds,
        )
