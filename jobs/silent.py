"""A silent trial, run again and again: `python jobs/silent.py --archive DIR --model RUN/model --out TRIAL`."""

from pneumo_ray.job import run_job
from pneumo_ray.score.silent_config import SilentConfig


def main(config: SilentConfig) -> None:
    from pneumo_ray.ray_cluster import start_ray

    start_ray("torchvision", "pneumo_ray.score.explainer")
    from pneumo_ray.report.silent import write_weeks
    from pneumo_ray.score.silent import score_new

    score_new(config)
    write_weeks(config)


if __name__ == "__main__":
    run_job(SilentConfig, main)
