"""Train a classifier on a manifest: `python jobs/train.py --manifest RUN/manifest.parquet --out RUN`."""

from pneumo_ray.config import run_job
from pneumo_ray.train.config import TrainConfig


def main(config: TrainConfig) -> None:
    from pneumo_ray.ray_cluster import start_ray
    from pneumo_ray.train.launch import fit

    start_ray(importing="torchvision")
    fit(config)


if __name__ == "__main__":
    run_job(TrainConfig, main)
