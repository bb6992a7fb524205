"""Measure scores against labels: `python jobs/evaluate.py --scores SCORES --manifest RUN/manifest.parquet --out REPORT`."""

from pneumo_ray.cli import run_job
from pneumo_ray.evaluate.tables import EvaluateConfig, write_evaluation


def main(config: EvaluateConfig) -> None:
    write_evaluation(config)


if __name__ == "__main__":
    run_job(EvaluateConfig, main)
