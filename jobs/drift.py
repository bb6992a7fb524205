"""Compare scores with those of a reference, without labels: `python jobs/drift.py --reference S --scores S2 --out DRIFT`."""

from pneumo_ray.job import run_job
from pneumo_ray.site.config import DriftConfig


def main(config: DriftConfig) -> None:
    from pneumo_ray.report.drift import write_drift

    write_drift(config)


if __name__ == "__main__":
    run_job(DriftConfig, main)
