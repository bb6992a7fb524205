"""List, audit, label and split an archive of radiographs: `python jobs/prepare.py --archive DIR --out RUN`."""

from pneumo_ray.config import run_job, save_config
from pneumo_ray.data.config import PrepareConfig


def main(config: PrepareConfig) -> None:
    from pneumo_ray import storage
    from pneumo_ray.data.pipeline import start_ray
    from pneumo_ray.data.prepare import prepare

    start_ray()
    prepare(config)
    save_config(config, storage.join(storage.absolute(config.out), "prepare.json"))


if __name__ == "__main__":
    run_job(PrepareConfig, main)
