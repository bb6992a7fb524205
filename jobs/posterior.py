"""Fit the Laplace posterior of a finished model: `python jobs/posterior.py --model RUN/model --manifest RUN/manifest.parquet`."""

from pneumo_ray.job import run_job
from pneumo_ray.train.posterior_config import PosteriorConfig


def main(config: PosteriorConfig) -> None:
    from pneumo_ray.ray_cluster import start_ray

    start_ray("torchvision")
    from pneumo_ray.train.posterior import fit_posterior

    fit_posterior(config)


if __name__ == "__main__":
    run_job(PosteriorConfig, main)
