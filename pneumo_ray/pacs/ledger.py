"""The file that says which object is of which image. Only its owner may read it, as it leads from a row to a patient's study."""

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pneumo_ray import storage
from pneumo_ray.pacs.config import PublishConfig

MAP = "published.csv"
"""Its name."""


def map_folder(config: PublishConfig, scores: str) -> str | None:
    """Return the local folder of the map; None where there is none, as only a local file can be kept from others."""
    folder = storage.join(scores, "_publish") if config.out is None else storage.absolute(config.out)
    return folder if storage.is_local(folder) else None


@contextmanager
def map_file(folder: str | None) -> Iterator[Any]:
    """Yield a writer of the map's rows; the file takes its name when the block ends."""
    if folder is None:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            yield csv.writer(nowhere)
        return
    with storage.atomic_file(storage.join(folder, MAP)) as temporary:
        descriptor = os.open(storage.local_path(temporary), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file)
            writer.writerow(("image_id", "source_uid", "object", "object_uid"))
            yield writer
