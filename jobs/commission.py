"""Commission a model at a site: `python jobs/commission.py --scores SCORES --manifest RUN/manifest.parquet --out SITE`."""

from pneumo_ray.job import run_job
from pneumo_ray.site.config import CommissionConfig


def main(config: CommissionConfig) -> None:
    from pneumo_ray.report.commissioning import write_commissioning

    write_commissioning(config)


if __name__ == "__main__":
    run_job(CommissionConfig, main)
