"""Train many times and compare: `python jobs/tune.py --manifest RUN/manifest.parquet --out STUDY --study balance`."""

from pneumo_ray.cli import run_job
from pneumo_ray.data.pipeline import start_ray
from pneumo_ray.train.study_config import StudyConfig
from pneumo_ray.train.tune import run_study


def main(config: StudyConfig) -> None:
    start_ray()
    run_study(config)


if __name__ == "__main__":
    run_job(StudyConfig, main)
