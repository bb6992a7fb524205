"""Train many times and compare: `python jobs/tune.py --manifest RUN/manifest.parquet --out STUDY --study balance`."""

from pneumo_ray.job import run_job
from pneumo_ray.tune.config import StudyConfig


def main(config: StudyConfig) -> None:
    study = config.chosen()  # one that does not exist is refused before Ray starts
    from pneumo_ray.ray_cluster import start_ray

    start_ray("torchvision")
    from pneumo_ray.tune.job import run_study

    run_study(config)
    if study.folds:
        from pneumo_ray.report.doubt_page import write_doubt_page

        write_doubt_page(config.out)


if __name__ == "__main__":
    run_job(StudyConfig, main)
