"""Search with Optuna's tree-structured Parzen estimator; Ray Tune runs the trials.

A draw is written into the trial's folder before the trial begins. So an interrupted trial continues with its own
options, and the results of earlier commands are given to Optuna again: its own state is never stored.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import optuna
from ray.tune.search import Searcher

from pneumo_ray import storage
from pneumo_ray.records import JsonObject
from pneumo_ray.train.validation import SELECTED_BY
from pneumo_ray.tune.comparison import value_of
from pneumo_ray.tune.records import TrialRecord
from pneumo_ray.tune.study import Range, Settings, Study, Trial

DRAW = "draw.json"
"""Name of the file in a trial's folder that contains its drawn options."""


class OptunaSearch(Searcher):
    """Draws each trial when it starts, based on the results of earlier trials."""

    def __init__(
        self, study: Study, left: Mapping[str, tuple[Trial, str]], past: Sequence[TrialRecord], seed: int
    ) -> None:
        """Start with the results so far.

        Args:
            study: a search.
            left: the trials that are left, without options yet: name -> (trial, its folder).
            past: records of the trials that are over.
            seed: of the draws; a study that continues after n trials draws with `seed + n`.
        """
        super().__init__(metric=SELECTED_BY, mode="min")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = study.space
        self._left = dict(left)
        self._study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed + len(past)))
        self._asked: dict[str, optuna.Trial] = {}
        self._newest: dict[str, float] = {}
        self.drawn: dict[str, Trial] = {}
        """Name -> the trial with its drawn options."""
        for record in past:
            if (loss := value_of(record, SELECTED_BY)) is not None:
                self._study.add_trial(
                    optuna.trial.create_trial(
                        params=self._params(record.settings),
                        distributions=self._distributions(),
                        value=loss,
                    )
                )

    def suggest(self, trial_id: str) -> JsonObject | None:
        """Return the config of the next trial for Ray Tune."""
        if not self._left:
            return None
        name = next(iter(self._left))
        trial, folder = self._left.pop(name)
        kept = storage.join(folder, DRAW)
        settings = json.loads(storage.read_bytes(kept)) if storage.exists(kept) else None
        if settings is not None:
            self._study.enqueue_trial(self._params(settings))
        asked = self._study.ask(self._distributions())
        if settings is None:
            settings = self._settings(asked.params)
            storage.write_json(settings, kept)
        self._asked[trial_id] = asked
        self.drawn[name] = replace(trial, settings=settings)
        return {"name": name, "settings": settings}

    def on_trial_result(self, trial_id: str, result: JsonObject) -> None:
        """Called when an epoch ends; its record holds the loss of the run's best epoch so far."""
        if SELECTED_BY in result:
            self._newest[trial_id] = result[SELECTED_BY]

    def on_trial_complete(self, trial_id: str, result: JsonObject | None = None, error: bool = False) -> None:
        """Called when a trial ends or is stopped; its best epoch counts."""
        asked = self._asked.pop(trial_id)
        if trial_id in self._newest:
            self._study.tell(asked, self._newest[trial_id])
        else:
            self._study.tell(asked, state=optuna.trial.TrialState.FAIL)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the records of the trials are sufficient."""

    def restore(self, checkpoint_path: str) -> None:
        """Save nothing: the records of the trials are sufficient."""

    def _distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        # Choices are passed by index, because Optuna accepts only plain strings and numbers.
        return {
            option: optuna.distributions.FloatDistribution(values.low, values.high, log=values.log)
            if isinstance(values, Range)
            else optuna.distributions.CategoricalDistribution(range(len(values)))
            for option, values in self._space.items()
        }

    def _settings(self, params: JsonObject) -> Settings:
        return {
            option: values.rounded(params[option]) if isinstance(values, Range) else values[params[option]]
            for option, values in self._space.items()
        }

    def _params(self, settings: Settings) -> JsonObject:
        return {
            option: settings[option] if isinstance(values, Range) else _place(values, settings[option])
            for option, values in self._space.items()
        }


def _place(values: Sequence[object], value: object) -> int:
    """Return the index of a value that went through JSON, which has no tuples."""
    plain = [json.loads(json.dumps(one)) for one in values]
    return plain.index(json.loads(json.dumps(value)))
