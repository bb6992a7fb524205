"""The scoring of a silent trial: what is new in an archive becomes a batch, and a batch is a scoring job of its own.

The list of batches is written before a batch is scored. A run that was interrupted finishes its batch first.
"""

import json
from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from pneumo_ray import storage
from pneumo_ray.console import log
from pneumo_ray.data.manifest import SCHEMA, read_manifest, write_manifest
from pneumo_ray.dicomweb.images import private_of
from pneumo_ray.errors import ConfigError
from pneumo_ray.evaluate.scores import read_scores
from pneumo_ray.records import JsonObject
from pneumo_ray.run_folder import RunFolder
from pneumo_ray.score.batches import RECORD, manifest_of, scores_of
from pneumo_ray.score.begin import models_of
from pneumo_ray.score.job import JOB, explain_archive
from pneumo_ray.score.listing import list_images
from pneumo_ray.score.silent_config import SilentConfig
from pneumo_ray.site.profile import other_probabilities, read_profile

_TRIED_AGAIN = ("truncated", "empty", "unreadable")
"""Failures of a file that may still be on its way."""


def score_new(config: SilentConfig) -> int:
    """Score the images that no earlier run has scored. Needs a running Ray.

    Returns:
        The number of images in the new batch.

    Raises:
        PneumoError: in one sentence; what is scored is kept, and the same command continues.
    """
    folder = RunFolder(storage.absolute(config.out), RECORD)
    scoring = config.explaining("", folder.out)
    models = models_of(scoring)
    with folder.held():
        record = folder.read(("model", "batches")) or {"model": models.hash, "batches": []}
        folder.refuse_other("the silent trial of another model", record["model"], models.hash)
        maps = _maps(
            config,
            folder,
            record["batches"],
            scoring.resolved(models.site, posterior=models.posterior).method,
            models.hash,
        )

        def explain(name: str) -> None:
            batch = config.explaining(manifest_of(folder.out, name), scores_of(folder.out, name))
            explain_archive(replace(batch, **maps))

        for name in record["batches"]:
            if not storage.exists(storage.join(scores_of(folder.out, name), "_run.json")):
                log(f"finishing batch {name}")
                explain(name)
        listed = storage.join(folder.out, "listed.parquet")
        list_images(config.archive, listed, models.preprocessing.image_size, private_of(config.archive, folder.out))
        found = storage.read_table(listed)
        storage.remove(listed)
        known = _scored(folder.out, record["batches"])
        fresh = found.filter(pc.invert(pc.is_in(found["image_id"], value_set=pa.array(sorted(known), pa.string()))))
        if not len(fresh):
            log(f"nothing is new: all {len(found):,} images are scored")
            return 0
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}"
        write_manifest(_manifest(fresh), manifest_of(folder.out, name))
        folder.write({**record, "batches": [*record["batches"], name]})
        log(f"{len(fresh):,} of {len(found):,} images are new: batch {name}")
        explain(name)
        return len(fresh)


def _maps(config: SilentConfig, folder: RunFolder, batches: list[str], method: JsonObject, model: str) -> JsonObject:
    """Return the options of the maps of all batches: those of the first, before it those of the reference.

    Args:
        config: of the trial.
        folder: of the trial.
        batches: their names.
        method: options of the scores that the config asks for.
        model: hash of the model.

    Raises:
        ConfigError: if the trial or the reference has scores that this run's cannot be compared with.
    """
    reference = None if config.reference is None else read_scores(config.reference).table.schema.metadata
    asked: JsonObject = {}
    if reference is not None:
        compared = json.loads(reference[b"method"])
        asked = _maps_of(compared)
        if reference[b"model_hash"].decode() != model:
            raise ConfigError(f"--reference {config.reference} has the scores of another model; score it with this one")
        if other := other_probabilities(compared, method):
            raise ConfigError(f"--reference {config.reference} has scores with {other}; give the trial the same")
        if asked["zones"] == "box":
            raise ConfigError(
                f"--reference {config.reference} has zones of a box, which a trial does not; score it with others"
            )
    job = RunFolder(scores_of(folder.out, batches[0]), JOB).read(("method",)) if batches else None
    if job is None:
        return asked
    if other := other_probabilities(job["method"], method):
        raise ConfigError(
            f"{folder.out} was begun with {other}; choose another --out, or repeat its command to continue it"
        )
    site = None if config.site is None else read_profile(config.site).hash
    folder.refuse_other("a silent trial with another site.json, or without one", job.get("site"), site)
    maps = _maps_of(job["method"])
    for name, value in asked.items():
        if value != maps[name]:
            raise ConfigError(
                f"--reference {config.reference} has scores with {name} {value}, the trial with {name} {maps[name]}; score the "
                "reference like the trial, or begin a trial with it in another --out"
            )
    return maps


def _maps_of(method: JsonObject) -> JsonObject:
    return {"maps": "last", "zones": "image"} | {
        name: method[name] for name in ("target", "zones", "maps") if name in method
    }


def _scored(out: str, batches: list[str]) -> set[str]:
    """Return the names of the images that need not be scored again."""
    known: set[str] = set()
    for name in batches:
        failed: set[str] = set()
        scores = scores_of(out, name)
        files = [storage.join(scores, file) for file in storage.list_files(scores, lambda n: n.endswith(".parquet"))]
        for table in storage.read_tables(files, ["image_id", "status", "error"]):
            for row in table.filter(pc.equal(table["status"], "failed")).to_pylist():
                if (row["error"] or "").split(":")[0] in _TRIED_AGAIN:
                    failed.add(row["image_id"])
        known |= {*read_manifest(manifest_of(out, name))["image_id"].to_pylist()} - failed
    return known


def _manifest(listed: pa.Table) -> pa.Table:
    """Return listed images as a manifest without labels."""
    columns = {
        field.name: listed[field.name].cast(field.type)
        if field.name in listed.column_names
        else pa.nulls(len(listed), field.type)
        for field in SCHEMA
    }
    columns["status"] = pc.if_else(pc.is_null(listed["error"]), "ok", "failed")
    return pa.table(columns, schema=SCHEMA)
