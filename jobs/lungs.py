"""Train the lung segmenter: `python jobs/lungs.py --manifest RUN/manifest.parquet --masks TABLE --out RUN/lungs`."""

from pneumo_ray.cli import run_job
from pneumo_ray.data.pipeline import start_ray
from pneumo_ray.train.lung_config import LungsConfig
from pneumo_ray.train.lungs import fit_lungs


def main(config: LungsConfig) -> None:
    start_ray()
    fit_lungs(config)


if __name__ == "__main__":
    run_job(LungsConfig, main)
