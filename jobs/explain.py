"""Score and explain an archive: `python jobs/explain.py --archive DIR --model RUN/model --out SCORES`."""

from pneumo_ray.job import run_job
from pneumo_ray.score.config import ExplainConfig


def main(config: ExplainConfig) -> None:
    from pneumo_ray.ray_cluster import start_ray

    start_ray("torchvision", "pneumo_ray.score.explainer")
    from pneumo_ray.score.job import explain_archive

    explain_archive(config)


if __name__ == "__main__":
    run_job(ExplainConfig, main)
