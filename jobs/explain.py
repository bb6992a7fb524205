"""Score and explain an archive: `python jobs/explain.py --archive DIR --model RUN/model --out SCORES`."""

from pneumo_ray.job import run_job
from pneumo_ray.score.config import ExplainConfig


def main(config: ExplainConfig) -> None:
    from pneumo_ray.ray_cluster import start_ray
    from pneumo_ray.score.job import explain_archive

    start_ray(importing="torchvision")
    explain_archive(config)


if __name__ == "__main__":
    run_job(ExplainConfig, main)
