"""Measure scores against labels: `python jobs/evaluate.py --scores SCORES --manifest RUN/manifest.parquet --out REPORT`."""

from dataclasses import dataclass, field

from pneumo_ray.evaluate.config import EvaluateConfig
from pneumo_ray.job import run_job
from pneumo_ray.score.config import RobustnessConfig, ScoringScale


@dataclass(frozen=True)
class EvaluateJob(EvaluateConfig):
    """Measure scores against the labels of a manifest and write a report. Only --robustness needs a model and Ray."""

    scale: ScoringScale = field(default_factory=ScoringScale)
    """Resources of --robustness."""


def main(config: EvaluateJob) -> None:
    from pneumo_ray.report.job import check_same_model, write_evaluation

    if config.robustness:  # the same as jobs/robustness.py before this job
        asked = RobustnessConfig(
            str(config.model),
            manifest=config.manifest,
            out=config.out,
            split=config.split,
            passes=config.passes,
            seed=config.seed,
            scale=config.scale,
        )
        if config.scores is not None:
            check_same_model(config.scores, str(config.model))
        from pneumo_ray.ray_cluster import start_ray
        from pneumo_ray.score.robustness import measure_robustness

        start_ray()
        measure_robustness(asked)
    if config.scores is not None:
        write_evaluation(config)


if __name__ == "__main__":
    run_job(EvaluateJob, main)
