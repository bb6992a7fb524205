"""The scoring of an archive as a Daft query, for comparison: list, read, decode, resize, model, one Parquet file of probabilities.

Run as `python -m benchmarks.plain_daft FOLDER MODEL OUT`. It makes no maps, no passes, and no row for a broken file.
"""

import sys

import daft
import numpy as np
import torch
from daft import DataType, Series, col
from daft.functions import decode_image, download, resize

from pneumo_ray.model import load_bundle


@daft.cls(max_concurrency=1)
class _Model:
    """Made once, and called with batches, as the documentation of Daft shows for models."""

    def __init__(self, uri: str) -> None:
        self._bundle = load_bundle(uri)
        self._net = self._bundle.model.eval().to(memory_format=torch.channels_last)

    @daft.method.batch(return_dtype=DataType.float32(), batch_size=16)
    def probability(self, images: Series) -> list[float]:
        grey = torch.from_numpy(np.stack(images.to_pylist())[..., 0].copy())
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            x = self._bundle.preprocessing.normalise(grey, channels_last=True)
            return torch.sigmoid(self._net(x).float()).tolist()


def main(folder: str, model: str, out: str, size: int = 224) -> None:
    """Write a probability for every JPEG file below a folder."""
    network = _Model(model)
    files = daft.from_glob_path(f"{folder}/**/*.jp*g").select("path")
    images = files.with_column("image", resize(decode_image(download(col("path")), mode="L"), size, size))
    scores = images.with_column("prob", network.probability(col("image"))).exclude("image")
    scores.write_parquet(out, write_mode="overwrite").collect()


if __name__ == "__main__":
    main(*sys.argv[1:4])
