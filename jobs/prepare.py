"""List, audit, label and split an archive of radiographs: `python jobs/prepare.py --archive DIR --out RUN`."""

from pneumo_ray.config import run_job, save_config
from pneumo_ray.data.prepare import PrepareConfig, prepare
from pneumo_ray.ray_cluster import start_ray
from pneumo_ray.storage import absolute, join


def main(config: PrepareConfig) -> None:
    start_ray()
    prepare(config)
    save_config(config, join(absolute(config.out), "prepare.json"))


if __name__ == "__main__":
    run_job(PrepareConfig, main)
