"""Train a classifier on a manifest: `python jobs/train.py --manifest RUN/manifest.parquet --out RUN`."""

from pneumo_ray.job import run_job
from pneumo_ray.train.config import TrainConfig


def main(config: TrainConfig) -> None:
    from pneumo_ray.ray_cluster import start_ray

    start_ray("torchvision")
    from pneumo_ray.train.launch import fit
    from pneumo_ray.train.posterior import fit_posterior, posterior_of

    if config.members > 1:
        from pneumo_ray.tune.members import train_members

        models = train_members(config)
    else:
        models = [fit(config).model]
    if config.posterior != "dropout":
        for model in models:
            fit_posterior(posterior_of(config, model))


if __name__ == "__main__":
    run_job(TrainConfig, main)
