"""Train the lung segmenter: `python jobs/lungs.py --manifest RUN/manifest.parquet --masks TABLE --out RUN/lungs`."""

from pneumo_ray.job import run_job
from pneumo_ray.train.lung_config import LungsConfig


def main(config: LungsConfig) -> None:
    from pneumo_ray.ray_cluster import start_ray

    start_ray("torchvision")
    from pneumo_ray.train.lungs import fit_lungs

    fit_lungs(config)


if __name__ == "__main__":
    run_job(LungsConfig, main)
