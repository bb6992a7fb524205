"""The whole product on synthetic radiographs, for a newcomer without data: `python jobs/demo.py`."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from pneumo_ray.config import run_job
from pneumo_ray.console import duration, log, progress
from pneumo_ray.data.manifest import read_manifest
from pneumo_ray.data.prepare import PrepareConfig, prepare
from pneumo_ray.evaluate.attention import pointing_line
from pneumo_ray.evaluate.job import EvaluateConfig, write_evaluation
from pneumo_ray.evaluate.scores import read_scores
from pneumo_ray.model import ModelConfig, load_bundle
from pneumo_ray.phantom.synthetic import PhantomConfig, write_phantom_archive
from pneumo_ray.ray_cluster import start_ray
from pneumo_ray.score.config import ExplainConfig
from pneumo_ray.score.job import explain_archive
from pneumo_ray.train.config import DataConfig, OptimConfig, TrainConfig
from pneumo_ray.train.launch import fit


@dataclass(frozen=True)
class DemoConfig:
    """Draw phantom radiographs, prepare them, train a small network on them, explain and draw what it sees, measure it."""

    out: str = "runs/demo"
    """Folder for everything that the demo makes."""
    phantom: PhantomConfig = field(default_factory=lambda: PhantomConfig(difficulty=0.0))
    image_size: int = 224
    """Rows and columns of the network's input, in pixels."""
    epochs: int = 8
    """Epochs of training."""


def main(config: DemoConfig) -> None:
    start = time.monotonic()
    out = Path(config.out)
    log("Synthetic radiographs: what follows shows how the tool works, and nothing about medicine.")
    with progress("drawing", config.phantom.num_images) as tick:
        archive = write_phantom_archive(out / "archive", config.phantom, lambda _: tick())
    log(
        f"drew {config.phantom.num_images:,} phantom radiographs in {archive}, with the true boxes of their opacities in boxes.parquet"
    )
    start_ray()
    prepare(PrepareConfig(archive=(str(archive),), out=str(out), protocol="official", cache=True))
    fit(
        TrainConfig(
            manifest=str(out / "manifest.parquet"),
            out=str(out),
            model=ModelConfig(arch="resnet18", weights="none"),
            data=DataConfig(image_size=config.image_size),
            optim=OptimConfig(lr=1e-3),
            batch_size=32,
            epochs=config.epochs,
        )
    )
    model, scores = out / "model", out / "scores"
    explain_archive(
        ExplainConfig(
            model=str(model), out=str(scores), manifest=str(out / "manifest.parquet"), target="pneumonia", render=True
        )
    )
    found = read_scores(str(scores)).ok().joined(read_manifest(str(out / "manifest.parquet"))).of_split("test")
    log(pointing_line(found, pq.read_table(archive / "boxes.parquet"), load_bundle(model).preprocessing))
    write_evaluation(
        EvaluateConfig(manifest=str(out / "manifest.parquet"), scores=str(scores), out=str(out / "report"))
    )
    log(f"done in {duration(time.monotonic() - start)}; everything is in {out}")


if __name__ == "__main__":
    run_job(DemoConfig, main)
