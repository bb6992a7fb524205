"""List, audit, label and split an archive of radiographs: `python jobs/prepare.py --archive DIR --out RUN`."""

from pneumo_ray.config import save_config
from pneumo_ray.data.config import PrepareConfig
from pneumo_ray.job import run_job


def main(config: PrepareConfig) -> None:
    from pneumo_ray import storage
    from pneumo_ray.data.prepare import prepare
    from pneumo_ray.ray_cluster import start_ray
    from pneumo_ray.readers.merge import read_opinions

    opinions = read_opinions(config.readings, config.consensus) if config.readings else None
    start_ray()
    prepare(config, opinions)
    save_config(config, storage.join(storage.absolute(config.out), "prepare.json"))


if __name__ == "__main__":
    run_job(PrepareConfig, main)
