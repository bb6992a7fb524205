"""Queues and readings to and from other programs: tasks of Label Studio, and sheets to fill in."""

import hashlib
import json
from collections.abc import Mapping, Sequence

import pyarrow as pa

from pneumo_ray import storage
from pneumo_ray.config import read_json
from pneumo_ray.console import log, progress
from pneumo_ray.data.image_bytes import read_image
from pneumo_ray.data.manifest import read_manifest
from pneumo_ray.errors import ManifestError
from pneumo_ray.evaluate.scores import read_scores
from pneumo_ray.images.decode import decode_image
from pneumo_ray.readers.config import ExchangeConfig
from pneumo_ray.readers.label_studio import CONFIG, readings_of, task
from pneumo_ray.readers.queue import read_queue
from pneumo_ray.readers.readings import SCHEMA, Readings, merged_readings, read_readings, write_either, write_readings
from pneumo_ray.records import Row

NAME_LENGTH = 20
"""Hexadecimal digits of a hashed name."""


def exchange(config: ExchangeConfig) -> None:
    """Write tasks or a sheet for a queue, or readings of what came back.

    Raises:
        PneumoError: if a file cannot be used, or names unknown images.
    """
    if config.read:
        readings = read_answers(config.read, config.manifest)
        write_readings(readings, config.out)
        log(
            f"wrote {config.out}: {len(readings):,} answers of {len(readings.readers):,} reader(s) about {len(readings.image_ids):,} images"
        )
    else:
        write_tasks(config)


def hashed_name(image_id: str) -> str:
    """Return a name of an image that tells nothing of it."""
    return hashlib.sha256(image_id.encode("utf-8", "surrogatepass")).hexdigest()[:NAME_LENGTH]


def read_answers(uris: Sequence[str], manifest: str | None) -> Readings:
    """Read exports of Label Studio and tables of readings as one.

    Args:
        uris: of the files.
        manifest: of the images, where they have hashed names; None otherwise.

    Raises:
        ManifestError: if a file cannot be used, or a name is none of the manifest's.
    """
    image_ids = [] if manifest is None else read_manifest(manifest)["image_id"].to_pylist()
    names = {hashed_name(image_id): image_id for image_id in image_ids}
    tables = []
    for uri in uris:
        if uri.lower().endswith(".json"):
            rows = readings_of(_read_tasks(uri), f"--read {uri}", names)
            if not rows:
                raise ManifestError(f"--read {uri} has no annotations in it")
            tables.append(pa.Table.from_pylist(rows, schema=SCHEMA))
        else:
            table = read_readings([uri], "--read").table
            plain = [names.get(name, name) for name in table["image_id"].to_pylist()]
            tables.append(table.set_column(0, SCHEMA.field("image_id"), pa.array(plain, pa.string())))
    readings = merged_readings(tables, "--read")
    return readings.matched(image_ids, "--read") if manifest is not None else readings


def write_tasks(config: ExchangeConfig) -> None:
    """Write the tasks of a queue with the interface that they fit, or a sheet; and the images, where asked for.

    Raises:
        PneumoError: as `exchange`.
    """
    assert config.queue is not None, "checked by the config"
    queue = read_queue(config.queue)
    if config.png is not None and config.manifest is not None:
        write_images(queue.image_ids, config.manifest, config.png)
    shown = {name: hashed_name(name) if config.png is not None else name for name in queue.image_ids}
    ending = ".png" if config.png is not None else ""
    address = {name: f"{config.images}{shown[name]}{ending}" for name in queue.image_ids}
    if config.out.lower().endswith(".csv"):
        columns = [[shown[name] for name in queue.image_ids], [address[name] for name in queue.image_ids]]
        blank = {name: pa.nulls(len(queue.image_ids), pa.string()) for name in SCHEMA.names[1:]}
        write_either(pa.table({"image_id": columns[0], "image": columns[1], **blank}), config.out)
        log(f"wrote {config.out}: a sheet of {len(queue.image_ids):,} rows to fill in; read it with --read")
        return
    prob, model = _predictions(config.scores)
    rows: dict[str, list[Row]] = {}
    if config.readings:
        for row in read_readings(config.readings).table.to_pylist():
            rows.setdefault(row["image_id"], []).append(row)
    tasks = []
    for name in queue.image_ids:
        # The second time that an image stands in a queue, it has no answer yet.
        tasks.append(task(shown[name], address[name], rows.pop(name, []), prob.get(name), model))
    storage.write_bytes(config.out, json.dumps(tasks, indent=1, allow_nan=False).encode())
    interface = config.out[: -len(".json")] + ".xml"
    storage.write_bytes(interface, CONFIG.encode())
    log(f"wrote {config.out}: {len(tasks):,} tasks; labelling interface {interface}")


def write_images(image_ids: Sequence[str], manifest: str, folder: str) -> None:
    """Write images as 8-bit PNG under hashed names, in their window and at full size; those that are there are kept.

    Raises:
        PneumoError: if an image is unknown or cannot be read.
    """
    import cv2

    rows = {
        row["image_id"]: row
        for row in read_manifest(manifest).select(["image_id", "uri", "member", "frame"]).to_pylist()
    }
    if unknown := [name for name in image_ids if name not in rows]:
        raise ManifestError(
            f"--queue names {len(unknown):,} images that the manifest does not have; give that of this archive"
        )
    wanted = list(dict.fromkeys(image_ids))
    with progress("images", len(wanted)) as tick:
        for name in wanted:
            path = storage.join(folder, f"{hashed_name(name)}.png")
            if not storage.exists(path):
                row = rows[name]
                grey = decode_image(read_image(row["uri"], row["member"]), frame=row["frame"] or 0)
                storage.write_bytes(path, cv2.imencode(".png", grey)[1].tobytes(), durable=False)
            tick()


def _predictions(folder: str | None) -> tuple[Mapping[str, float], str]:
    if folder is None:
        return {}, ""
    scores = read_scores(folder).ok()
    names, prob = scores.table["image_id"].to_pylist(), scores.numbers("prob_mean").tolist()
    models = scores.table["model_hash"].to_pylist()
    return dict(zip(names, prob, strict=True)), models[0] if models else ""


def _read_tasks(uri: str) -> list[object]:
    found = read_json("--read", uri)
    if not isinstance(found, list):
        raise ManifestError(f"--read {uri} must hold a list of tasks; export it from Label Studio as JSON")
    return found
