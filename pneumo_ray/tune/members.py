"""Members of an ensemble: one study whose trials differ in nothing but their seeds, and share their prepared images."""

import dataclasses

from pneumo_ray.console import log
from pneumo_ray.errors import PneumoError
from pneumo_ray.train.config import TrainConfig
from pneumo_ray.tune.config import StudyConfig
from pneumo_ray.tune.job import run_study
from pneumo_ray.tune.study import Study


def train_members(config: TrainConfig) -> list[str]:
    """Train the members of an ensemble, or continue, or report that they are complete; return the folders of their models.

    A larger `members` adds members to those that are there. Needs a running Ray.

    Raises:
        PneumoError: the reason in one sentence; finished members are kept.
    """
    options = {spec.name: getattr(config, spec.name) for spec in dataclasses.fields(TrainConfig)}
    study = Study("members", "seeds of the members of an ensemble", arms={"member": {}}, seeds=config.members)
    records = run_study(StudyConfig(**options), study)
    models = [record.checkpoint for record in records if record.checkpoint is not None]
    if len(models) < config.members:
        raise PneumoError(
            f"{config.members - len(models)} of {config.members} members did not finish; {config.out}/study.csv has the "
            "reason for each"
        )
    log(f"{len(models)} members; score them as one with --model {config.out}/trials/*/model")
    return models
