"""Copies of the smaller class as files, as in the paper; training makes the same copies in memory."""

import hashlib

import cv2
import pyarrow as pa

from pneumo_ray import storage
from pneumo_ray.console import progress
from pneumo_ray.data.dataset import CACHE_SIZE
from pneumo_ray.data.find_lungs import find_lungs, lung_values, segmenter_input
from pneumo_ray.data.image_bytes import read_image
from pneumo_ray.data.manifest import SPAN_FIELD, usable
from pneumo_ray.data.sampling import virtual_copies
from pneumo_ray.data.spans import Span
from pneumo_ray.images.augment import materialise_copy, resize_grey
from pneumo_ray.images.augment_config import AugmentConfig
from pneumo_ray.images.decode import decode_image
from pneumo_ray.images.rng import image_key
from pneumo_ray.records import Row


def write_copies(manifest: pa.Table, out: str, seed: int, segmenter: str | None = None) -> pa.Table:
    """Write the copies that balance the training split and return the manifest with their rows.

    They are made after the split, from training images alone, and each belongs to its source's patient. The column
    `copy_of` names the source.

    Args:
        manifest: a manifest with splits.
        out: folder of the run; the files go to `copies/` in it.
        seed: of the transformations; training with this seed and the default augmentation makes the same ones virtually.
        segmenter: that finds their lungs, as for `find_lungs`.

    Raises:
        ConfigError: if a class is missing.
        StorageError: if the files cannot be written.
    """
    train = usable(manifest, "train")
    rows, copies = virtual_copies(train["label"].to_numpy())
    sources = train.to_pylist()
    extra: list[Row] = []
    with progress("copies", int((copies > 0).sum())) as tick:
        for row, copy in zip(rows[copies > 0].tolist(), copies[copies > 0].tolist(), strict=True):
            source = sources[row]
            span = Span.of(source.get(SPAN_FIELD.name))
            image = decode_image(read_image(source["uri"], source["member"], span), frame=source["frame"] or 0)
            key = image_key(source["content_sha256"])
            made = materialise_copy(image, AugmentConfig(), seed, key, copy)
            encoded = cv2.imencode(".png", made)[1].tobytes()
            lungs: Row = {}
            if "lung_quality" in source:  # the copy is turned and flipped
                (found,) = find_lungs([segmenter_input(resize_grey(made, CACHE_SIZE))], segmenter)
                lungs = {name: value for name, value in lung_values(*found).items() if name in source}
            name = f"{source['content_sha256'][:16]}-{row}-{copy}.png"
            uri = storage.join(out, "copies", name)
            storage.write_bytes(uri, encoded)
            extra.append(
                source
                | lungs
                | {
                    "image_id": f"copies/{name}",
                    "uri": uri,
                    "member": None,
                    SPAN_FIELD.name: None,
                    "frame": None,
                    "content_sha256": hashlib.sha256(encoded).hexdigest(),
                    "width": image.shape[1],
                    "height": image.shape[0],
                    "mode": "L",
                    "num_bytes": len(encoded),
                    "cache_file": None,
                    "cache_row": None,
                    "copy_of": source["image_id"],
                }
            )
            tick()
    manifest = manifest.append_column("copy_of", pa.nulls(len(manifest), pa.string()))
    return pa.concat_tables([manifest, pa.Table.from_pylist(extra, schema=manifest.schema)]).combine_chunks()
