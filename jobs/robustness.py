"""Score a split under changes of its images: `python jobs/robustness.py --model RUN/model --manifest RUN/manifest.parquet --out REPORT`."""

from pneumo_ray.job import run_job
from pneumo_ray.score.config import RobustnessConfig


def main(config: RobustnessConfig) -> None:
    from pneumo_ray.ray_cluster import start_ray

    start_ray("torchvision", "pneumo_ray.score.explainer")
    from pneumo_ray.score.robustness import measure_robustness

    measure_robustness(config)


if __name__ == "__main__":
    run_job(RobustnessConfig, main)
