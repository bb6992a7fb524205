"""Train a classifier on a manifest: `python jobs/train.py --manifest RUN/manifest.parquet --out RUN`."""

import ray

from pneumo_ray.cli import run_job
from pneumo_ray.data.pipeline import quiet_ray_data
from pneumo_ray.train.config import TrainConfig
from pneumo_ray.train.launch import fit


def main(config: TrainConfig) -> None:
    ray.init(logging_level="warning", log_to_driver=False)
    quiet_ray_data()
    fit(config)


if __name__ == "__main__":
    run_job(TrainConfig, main)
