"""From an archive to a manifest: list, inspect on the cluster, label, split, audit, write."""

from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pneumo_ray import storage
from pneumo_ray.anatomy.segmenter_file import read_segmenter_file
from pneumo_ray.console import log, progress
from pneumo_ray.data.archive import Entry, ListingCount, list_archives
from pneumo_ray.data.audit import audit, audit_lines, patient_facts, undividable
from pneumo_ray.data.cache import cache_folder, scan_cache
from pneumo_ray.data.config import PrepareConfig
from pneumo_ray.data.copies import write_copies
from pneumo_ray.data.dataset import CACHE_SIZE, decoding_size
from pneumo_ray.data.find_lungs import GivenLungs, read_given
from pneumo_ray.data.inspect import InspectConfig
from pneumo_ray.data.kermany import read_path
from pneumo_ray.data.lung_sheet import draw_lungs
from pneumo_ray.data.lungs import SEGMENTER
from pneumo_ray.data.manifest import (
    CACHE_FIELDS,
    CONTRAST_FIELD,
    LUNG_FIELDS,
    SHAPE_FIELDS,
    SPAN_FIELD,
    apply_labels,
    read_labels,
    read_manifest,
    usable,
    write_manifest,
)
from pneumo_ray.data.person import PERSON_FIELDS
from pneumo_ray.data.split import assign_splits, check_folders
from pneumo_ray.dicomweb.images import private_of
from pneumo_ray.errors import ArchiveError, ManifestError
from pneumo_ray.run_folder import salt_of

AT_END = (*SHAPE_FIELDS, *LUNG_FIELDS, *PERSON_FIELDS, CONTRAST_FIELD, SPAN_FIELD)
"""Columns that stand behind those of a label table."""

Opinions = Callable[[pa.Table, str], pa.Table]
"""Gives a manifest the labels of its readers, and writes their readings into a folder."""


def prepare(config: PrepareConfig, opinions: Opinions | None = None) -> pa.Table:
    """Write `manifest.parquet`, `audit.json` and, where lungs were looked for, `lungs.png` into the run's folder.

    Needs a running Ray. An interrupted run with a cache continues: what is cached is not decoded again.

    Args:
        config: what is asked for.
        opinions: of `config.readings` (`readers.merge`); None without readings.

    Returns:
        The manifest.

    Raises:
        PneumoError: one sentence about the archive, a table, the protocol or the folder.
    """
    out = storage.absolute(config.out)
    labels = read_labels(config.labels) if config.labels else None
    splits_given = labels is not None and "split" in labels.column_names
    count = ListingCount()
    entries = _listed(config, out, count)
    if not splits_given:
        check_folders({read_path(entry.facts_path).split for entry in entries}, config.protocol)
    given, segmenter = None, _segmenter_of(config)
    if segmenter is None and config.lungs not in ("none", "found"):
        given = read_given(config.lungs, [entry.image_id for entry in entries])
    storage.require_writable(out)
    folder = cache_folder(out, CACHE_SIZE) if config.cache else None
    manifest = _inspected(config, out, folder, entries, given, segmenter)
    unused = _unused(config, manifest, labels)
    manifest = manifest.drop_columns(sorted(unused))
    if labels is not None and config.labels is not None:
        manifest = apply_labels(manifest, labels, config.labels, more_labels=opinions is not None)
    if opinions is not None:
        manifest = opinions(manifest, out)
    manifest = manifest.append_column("folder", manifest["split"])
    manifest = assign_splits(manifest, config.protocol, config.seed, keep_val=splits_given)
    if config.materialize_copies:
        manifest = write_copies(manifest, out, config.seed, segmenter)
    last = [field.name for field in AT_END if field.name not in unused and field.name in manifest.column_names]
    manifest = manifest.select([name for name in manifest.column_names if name not in last] + last)
    metadata = {"protocol": config.protocol, "seed": str(config.seed), "cache": "" if folder is None else folder}
    if config.lungs == "found" or segmenter is not None:
        metadata[SEGMENTER] = read_segmenter_file(segmenter).hash
    manifest = manifest.replace_schema_metadata(metadata)
    path = storage.join(out, "manifest.parquet")
    write_manifest(manifest, path)
    failed = _write_audit(config, out, manifest, count)
    if config.lungs != "none" and (sheet := draw_lungs(manifest, folder, config.seed)):
        storage.write_bytes(storage.join(out, "lungs.png"), sheet)
        log(f"lungs of some images {storage.join(out, 'lungs.png')}")
    see = f", see status and error in {path}" if failed else ""
    log(f"wrote {len(manifest):,} rows to {path}; {failed:,} failed{see}")
    return manifest


def _segmenter_of(config: PrepareConfig) -> str | None:
    """Return where the segmenter is that `--lungs` names; None where it names none.

    Raises:
        ModelError: if it is missing, damaged, or something else.
    """
    if not config.lungs.lower().endswith(".safetensors"):
        return None
    from pneumo_ray.anatomy.segmenter import load_segmenter  # brings torch

    uri = storage.absolute(config.lungs)
    load_segmenter(uri)
    return uri


def _listed(config: PrepareConfig, out: str, count: ListingCount) -> list[Entry]:
    """Return the entries of all archives, and count what is passed over.

    Raises:
        ArchiveError: if there is none.
    """
    private = private_of(config.archive, out, config.uids, keep_identifiers=config.keep_identifiers)
    entries = []
    with progress("listing", None) as tick:
        for entry in list_archives(config.archive, count, private):
            entries.append(entry)
            tick()
    if not entries:
        raise ArchiveError(
            f"--archive {' '.join(config.archive)} has no images in it; {count.passed_over.sentence() or 'it is empty'}"
        )
    log(f"found {len(entries):,} images")
    return entries


def _inspected(
    config: PrepareConfig,
    out: str,
    folder: str | None,
    entries: Sequence[Entry],
    given: Sequence[GivenLungs | None] | None,
    segmenter: str | None,
) -> pa.Table:
    """Return a row for each frame of the entries, with the columns `INSPECTED_SCHEMA`.

    Args:
        config: what is asked for.
        out: folder of the run.
        folder: of the cache; None without.
        entries: of the listing.
        given: for each entry, what a table has of its lungs; None to find them.
        segmenter: that finds them, as for `InspectConfig`.
    """
    from pneumo_ray.data.cluster_tasks import inspect_archive  # needs Ray

    inspect = InspectConfig(
        size=CACHE_SIZE,
        cache_folder=folder,
        cached=scan_cache(folder, CACHE_SIZE) if folder else {},
        salt=None if config.keep_identifiers else salt_of(out),
        decode_seconds=config.decode_seconds,
        lungs=config.lungs != "none",
        segmenter=segmenter,
    )
    tables = []
    with progress("reading", len(entries)) as tick:
        for table in inspect_archive(entries, inspect, given):
            tables.append(table)
            tick(len(table))
    return pa.concat_tables(tables).combine_chunks()


def _unused(config: PrepareConfig, manifest: pa.Table, labels: pa.Table | None) -> set[str]:
    """Return the columns of the inspection that this manifest does not have: not asked for, known of no image, or given."""
    unused = {field.name for field in CACHE_FIELDS if not config.cache}
    unused |= {field.name for field in LUNG_FIELDS if config.lungs == "none"}
    where_known = (*SHAPE_FIELDS, *PERSON_FIELDS, CONTRAST_FIELD, SPAN_FIELD)
    unused |= {field.name for field in where_known if manifest[field.name].null_count == len(manifest)}
    if (
        labels is not None and "view" in labels.column_names
    ):  # such as the projection; lung_quality has the view of the lungs
        unused.add("view")
    return unused


def _write_audit(config: PrepareConfig, out: str, manifest: pa.Table, count: ListingCount) -> int:
    """Write and print the audit; return the number of rows that failed."""
    facts = audit(manifest, count.ignored, count.passed_over) | {
        "protocol": config.protocol,
        "seed": config.seed,
        "archive": list(config.archive),
    }
    storage.write_json(facts, storage.join(out, "audit.json"))
    for line in audit_lines(facts):
        log("  " + line)
    return int(facts["failed"])


def cache_of(manifest: pa.Table, uri: str) -> str | None:
    """Return the cache folder of a manifest if it exists (also after the run was moved)."""
    named = (manifest.schema.metadata or {}).get(b"cache", b"").decode()
    beside = cache_folder(storage.parent(storage.absolute(uri)), CACHE_SIZE)
    return next((folder for folder in (beside, named) if named and folder and storage.exists(folder)), None)


def cached_manifest(uri: str, manifest: pa.Table, image_size: int, out: str) -> str:
    """Return a manifest whose images are all cached: `uri` itself if they are, else a copy in `out` beside its new cache.

    An interrupted copy is continued. Above 224 pixels, for which there is no cache, `uri` is returned.

    Args:
        uri: where the manifest is.
        manifest: its rows; those that are readable and labelled are decoded.
        image_size: side of the network's input, in pixels.
        out: folder that may be written to.

    Raises:
        ManifestError: naming a file that can no longer be read.
        StorageError: if `out` cannot be written.
    """
    if cache_of(manifest, uri) is not None or decoding_size(image_size) != CACHE_SIZE:
        return uri
    from pneumo_ray.data.cluster_tasks import cache_images  # needs Ray

    folder = cache_folder(out, CACHE_SIZE)
    found = scan_cache(folder, CACHE_SIZE)
    keys = [
        (sha, frame or 0)
        for sha, frame in zip(*(manifest[c].to_pylist() for c in ("content_sha256", "frame")), strict=True)
    ]
    wanted = set(usable(manifest)["image_id"].to_pylist())
    todo = [
        row for row, name in enumerate(manifest["image_id"].to_pylist()) if name in wanted and keys[row] not in found
    ]
    with progress("decoding once for all trials", len(todo)) as tick:
        for places in cache_images(manifest.take(pa.array(todo, pa.int64())), folder):
            found |= places
            tick(len(places))
    if todo:
        log(f"decoded {len(todo):,} images once for all trials; prepare with --cache to avoid this")
    homes = [found.get(key, (None, None)) for key in keys]
    for position, spec in enumerate(CACHE_FIELDS):
        column = pa.array([home[position] for home in homes], spec.type)
        if spec.name in manifest.column_names:
            manifest = manifest.drop_columns([spec.name])
        manifest = manifest.append_column(spec, column)
    manifest = manifest.replace_schema_metadata({**(manifest.schema.metadata or {}), b"cache": folder.encode()})
    path = storage.join(out, "manifest.parquet")
    write_manifest(manifest, path)
    return path


def load_training_rows(uri: str) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Return a manifest, its training rows and its validation rows, after checking that training is possible.

    The rows are contiguous: to take a batch from a chunked table, Arrow copies the whole table first.

    Raises:
        ManifestError: if there are no labels, one class only, or an empty split.
    """
    manifest = read_manifest(uri)
    if not len(usable(manifest)):
        raise ManifestError(
            f"manifest {uri} has no labelled image to train on; give labels with jobs/prepare.py --labels TABLE"
        )
    reason = undividable(patient_facts(usable(manifest)))
    parts = []
    for split in ("train", "val"):
        rows = usable(manifest, split).combine_chunks()
        classes = set(pc.unique(rows["label"]).to_pylist())
        if classes != {0, 1}:
            what = "no images" if not classes else "only one class"
            raise ManifestError(
                f"manifest {uri} has {what} in its split {split}; training needs both classes in train and val"
                f"{f'; {reason}' if reason else ''}"
            )
        parts.append(rows)
    return manifest, parts[0], parts[1]
