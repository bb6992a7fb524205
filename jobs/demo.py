"""The whole path on phantom radiographs, without any data: `python jobs/demo.py`."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from pneumo_ray.config import config_from
from pneumo_ray.data.config import PrepareConfig
from pneumo_ray.evaluate.config import EvaluateConfig
from pneumo_ray.job import run_job
from pneumo_ray.phantom.config import PhantomConfig
from pneumo_ray.score.config import ExplainConfig
from pneumo_ray.train.config import TrainConfig


@dataclass(frozen=True)
class DemoConfig:
    """Draw phantom radiographs, prepare them, train a small network, explain its scores and measure them."""

    out: str = "runs/demo"
    """Folder for everything that the demo makes."""
    phantom: PhantomConfig = field(default_factory=lambda: PhantomConfig(difficulty=0.0))
    image_size: int = 160
    """Rows and columns of the network's input, in pixels."""
    epochs: int = 8
    """Epochs of training."""


def main(config: DemoConfig) -> None:
    from pneumo_ray.console import duration, log, progress
    from pneumo_ray.data.prepare import prepare
    from pneumo_ray.phantom.synthetic import write_phantom_archive
    from pneumo_ray.ray_cluster import start_ray
    from pneumo_ray.report.job import write_evaluation
    from pneumo_ray.score.job import explain_archive
    from pneumo_ray.train.launch import fit

    start, out = time.monotonic(), Path(config.out)
    manifest, model, scores = str(out / "manifest.parquet"), str(out / "model"), str(out / "scores")
    training = config_from(
        TrainConfig,
        {
            "recipe": "robust",
            "manifest": manifest,
            "out": str(out),
            "model.arch": "resnet18",
            "model.weights": "none",
            "data.image_size": config.image_size,
            "batch_size": 32,
            "epochs": config.epochs,
        },
    )
    log("These radiographs are synthetic: the results show how the tool works and have no medical meaning.")
    with progress("drawing", config.phantom.num_images) as tick:
        archive = write_phantom_archive(out / "archive", config.phantom, lambda _: tick())
    log(
        f"drew {config.phantom.num_images:,} phantom radiographs in {archive}, with the true boxes of their opacities in boxes.parquet"
    )
    start_ray("torchvision")
    prepare(PrepareConfig(archive=(str(archive),), out=str(out), protocol="official", cache=True))
    fit(training)
    explain_archive(ExplainConfig(model=model, out=scores, manifest=manifest, target="pneumonia", render=True))
    boxes = str(archive / "boxes.parquet")
    write_evaluation(EvaluateConfig(manifest=manifest, scores=scores, out=str(out / "report"), boxes=boxes))
    log(f"done in {duration(time.monotonic() - start)}; everything is in {out}")


if __name__ == "__main__":
    run_job(DemoConfig, main)
