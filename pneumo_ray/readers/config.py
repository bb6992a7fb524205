"""What the job about readers is asked for, one config per sub-command."""

from dataclasses import dataclass
from typing import Literal, get_args

from pneumo_ray.config import require, require_split

Reason = Literal["random", "uncertain", "suspicious", "doubtful", "change", "disagreement"]
"""Why an image should be read.

* `random`: for agreement and prevalence without a bias.
* `uncertain`: the passes disagree most (mutual information), or its probability is nearest to the threshold.
* `suspicious`: its probability is furthest from its label.
* `doubtful`: its label is least likely by --doubt, a table of out-of-fold probabilities.
* `change`: one more answer is expected to move its soft label furthest.
* `disagreement`: its readers disagree most.
"""
REASONS: tuple[Reason, ...] = get_args(Reason)


@dataclass(frozen=True)
class QueueConfig:
    """Choose the images that readers should read next, and in which order."""

    manifest: str
    """manifest.parquet of the images."""
    out: str
    """Table to write, .parquet or .csv: image_id, reason, position."""
    scores: str | None = None
    """Folder that jobs/explain.py wrote; for the reasons uncertain, suspicious and change."""
    readings: tuple[str, ...] = ()
    """CSV or Parquet files of earlier readings; for the reason disagreement, and to leave out what was read."""
    doubt: str | None = None
    """Table with image_id and prob, probabilities of a model that did not train on the image; for the reason doubtful."""
    by: tuple[Reason, ...] = ("random",)
    """Reasons, which share the queue equally."""
    count: int = 200
    """Images to read, without the repeats."""
    stratify: str | None = None
    """Column of the manifest, such as subtype or label, of whose values each has an equal part of each reason's images."""
    repeats: float = 0.1
    """Share of the images that are read twice, for the agreement of readers with themselves."""
    split: str = "all"
    """Split of the manifest to read from; `all` takes every image."""
    again: bool = False
    """Choose images with a reading too; without it only `change` and `disagreement` do."""
    seed: int = 0
    """Of the draws and of the order."""

    def __post_init__(self) -> None:
        require_split(self.split)
        require(self.count >= 1, f"count must be at least 1, got {self.count}")
        require(0 <= self.repeats <= 1, f"repeats must lie between 0 and 1, got {self.repeats}")
        require(bool(self.by), "--by needs at least one reason")
        require(len(set(self.by)) == len(self.by), f"--by names a reason twice: {' '.join(self.by)}")
        for reason in ("uncertain", "suspicious", "change"):
            require(self.scores is not None or reason not in self.by, f"--by {reason} needs --scores")
        require(bool(self.readings) or "disagreement" not in self.by, "--by disagreement needs --readings")
        require(self.doubt is not None or "doubtful" not in self.by, "--by doubtful needs --doubt")


@dataclass(frozen=True)
class AgreeConfig:
    """Measure how far readers agree: with each other, with themselves, and with a model."""

    readings: tuple[str, ...]
    """CSV or Parquet files of readings."""
    out: str
    """Folder for agreement.json and agreement.html."""
    manifest: str | None = None
    """manifest.parquet of the images, for their patients, classes and subtypes."""
    scores: str | None = None
    """Folder that jobs/explain.py wrote, for the model against the readers."""

    def __post_init__(self) -> None:
        require(bool(self.readings), "--readings needs at least one file")


@dataclass(frozen=True)
class ExchangeConfig:
    """Turn a queue into tasks of Label Studio or a sheet to fill in, or their answers into readings."""

    out: str
    """File to write: with --queue tasks (.json) or a sheet (.csv); with --read readings (.csv or .parquet)."""
    read: tuple[str, ...] = ()
    """Exports of Label Studio (JSON), or tables of readings, to become one table of readings."""
    queue: str | None = None
    """Table of jobs/readers.py queue, or any with a column image_id, to become tasks or a sheet."""
    readings: tuple[str, ...] = ()
    """Readings that the tasks carry along as annotations."""
    scores: str | None = None
    """Folder that jobs/explain.py wrote, for predictions in the tasks; readers who see them are not blinded."""
    manifest: str | None = None
    """manifest.parquet of the images: for --png, and to find images again by their hashed names."""
    png: str | None = None
    """Folder for the images as PNG in their window, under hashed names, because Label Studio reads neither DICOM nor
    archives and a path may name a class; the tasks then hold these names only."""
    images: str = ""
    """What stands in front of an image's name in the tasks, such as /data/local-files/?d=reading/."""

    def __post_init__(self) -> None:
        require(
            bool(self.read) != (self.queue is not None),
            "give --queue to write tasks, or --read to make readings of annotations",
        )
        require(self.png is None or self.manifest is not None, "--png needs --manifest")
        require(self.png is None or self.queue is not None, "--png needs --queue")
        ends = (".json", ".csv") if self.queue is not None else (".csv", ".parquet")
        require(self.out.lower().endswith(ends), f"--out must end in {' or '.join(ends)}, got {self.out!r}")
