"""Train many times and compare: `python jobs/tune.py --manifest RUN/manifest.parquet --out STUDY --study balance`."""

import ray

from pneumo_ray.cli import run_job
from pneumo_ray.data.pipeline import quiet_ray_data
from pneumo_ray.train.study_config import StudyConfig
from pneumo_ray.train.tune import run_study


def main(config: StudyConfig) -> None:
    ray.init(logging_level="warning", log_to_driver=False)
    quiet_ray_data()
    run_study(config)


if __name__ == "__main__":
    run_job(StudyConfig, main)
