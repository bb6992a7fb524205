"""What a reading page is asked for."""

from dataclasses import dataclass
from typing import Literal, get_args

from pneumo_ray.config import require

Reveal = Literal["never", "after", "start"]
"""When a reader sees what the model says: never, after the answer, or from the start."""


@dataclass(frozen=True)
class PageConfig:
    """Write the reading page of a queue: one HTML file that works offline, on which a reader answers and exports answers."""

    queue: str
    """Table of what to read, in its order, as `readers.py queue` writes it; only its column image_id is used."""
    manifest: str
    """manifest.parquet of the archive; the images are read from where it says."""
    out: str
    """The page, such as page.html."""
    reveal: Reveal = "never"
    """When probability and map are shown: never (blinded: they are not in the file), after the answer, which stays as it was
    given, or from the start. The last two need --scores."""
    scores: str | None = None
    """Folder that jobs/explain.py wrote, for --reveal."""
    reader: str = ""
    """Name of the reader that the page proposes."""
    max_side: int = 2048
    """Longest side of an image on the page, in pixels; larger images are reduced to it."""

    def __post_init__(self) -> None:
        require(
            self.reveal in get_args(Reveal),
            f"reveal must be one of {', '.join(get_args(Reveal))}, got {self.reveal!r}",
        )
        require(
            self.reveal == "never" or self.scores is not None,
            f"--reveal {self.reveal} shows what the model says; give --scores, the folder that jobs/explain.py wrote",
        )
        require(
            self.reveal != "never" or self.scores is None,
            "a blinded page shows no scores; leave --scores out, or give --reveal after or start",
        )
        require(128 <= self.max_side <= 16384, f"max-side must be between 128 and 16384 pixels, got {self.max_side}")
