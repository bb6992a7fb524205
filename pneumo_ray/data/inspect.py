"""Turn entries of an archive into manifest rows: read, hash, decode and cache; a failure becomes a row with its reason."""

import hashlib
import hmac
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pneumo_ray.data.archive import Entry
from pneumo_ray.data.cache import Key, read_cached, write_shard
from pneumo_ray.data.find_lungs import GivenLungs, find_lungs, given_mask, lung_values, segmenter_input
from pneumo_ray.data.image_bytes import read_images
from pneumo_ray.data.kermany import read_path
from pneumo_ray.data.manifest import (
    CACHE_FIELDS,
    CONTRAST_FIELD,
    LUNG_FIELDS,
    NOTE_FIELD,
    SCHEMA,
    SHAPE_FIELDS,
    SPAN_FIELD,
)
from pneumo_ray.data.person import PERSON_FIELDS
from pneumo_ray.errors import DecodeError, StorageError
from pneumo_ray.images.augment import resize_grey
from pneumo_ray.images.decode import decode_with_note, inspect_image
from pneumo_ray.images.grey_levels import rms_contrast
from pneumo_ray.images.isolation import DECODE_SECONDS, Call, guarded
from pneumo_ray.records import Row

INSPECTED_SCHEMA = pa.schema(
    [*SCHEMA, NOTE_FIELD, *CACHE_FIELDS, *SHAPE_FIELDS, *LUNG_FIELDS, *PERSON_FIELDS, CONTRAST_FIELD, SPAN_FIELD]
)


@dataclass(frozen=True)
class InspectConfig:
    """Settings of the inspection of an archive."""

    size: int = 256
    """Rows and columns of the cached images, in pixels; without a cache the smallest size to decode to."""
    cache_folder: str | None = None
    """Where shards are written; None writes none."""
    cached: Mapping[Key, tuple[str, int]] = field(default_factory=dict)
    """Images in the cache; they are read and hashed but not decoded again."""
    salt: bytes | None = None
    """Key of the hash that replaces the patient identifiers of DICOM files; None keeps them."""
    decode_seconds: float = DECODE_SECONDS
    """Time limit for decoding one image, in seconds."""
    lungs: bool = False
    """Find the lungs of every image."""
    segmenter: str | None = None
    """Where the segmenter is that finds them; None takes that of this installation."""


def inspect_entries(
    entries: Sequence[Entry],
    config: InspectConfig,
    given: Sequence[GivenLungs | None] | None = None,
    *,
    careful: bool = False,
) -> pa.Table:
    """Return the manifest rows of some entries, one per frame, in order, with columns `INSPECTED_SCHEMA`.

    Args:
        entries: entries of the listing.
        config: settings.
        given: for each entry, what a table has of its lungs; None to find them.
        careful: an image among them may have ended an earlier process; see `guarded`.

    Raises:
        ManifestError: if a given mask cannot be the image's.
        ModelError: if there is no segmenter.
        StorageError: if the cache cannot be read or written.
    """
    rows: list[Row] = []
    sources: list[GivenLungs | None] = []  # of each row
    decoded: dict[int, np.ndarray] = {}  # by row, as the segmenter takes it
    fresh: list[tuple[Key, np.ndarray]] = []
    homes: list[tuple[int, int]] = []  # (row, position in the new shard)
    positions: dict[Key, int] = {}
    noted: set[Key] = set()
    with guarded(config.decode_seconds, careful=careful) as call:
        contents = read_images([(entry.uri, entry.member, entry.span) for entry in entries if entry.error is None])
        inspected = (_inspect(entry, None if entry.error else next(contents), config, call) for entry in entries)
        numbered = (zip(itertools.repeat(number), frames) for number, frames in enumerate(inspected))
        for number, (row, pixels) in itertools.chain.from_iterable(numbered):
            rows.append(row)
            sources.append(None if given is None else given[number])
            if pixels is None:
                continue
            square = resize_grey(pixels, config.size)
            row["contrast"] = rms_contrast(square)
            if config.lungs:
                decoded[len(rows) - 1] = segmenter_input(square)
            if config.cache_folder is not None:
                key = (row["content_sha256"], row["frame"] or 0)
                if row["decode_note"] is not None:
                    noted.add(key)
                if key not in positions:
                    positions[key] = len(fresh)
                    fresh.append((key, square))
                homes.append((len(rows) - 1, positions[key]))
    if fresh and config.cache_folder is not None:
        shard = write_shard(config.cache_folder, config.size, fresh, noted)
        for row_number, position in homes:
            rows[row_number].update(cache_file=shard, cache_row=position)
    if config.lungs:
        _add_lungs(rows, sources, decoded, config)
    _add_contrast(rows, config)
    return pa.Table.from_pylist(rows, schema=INSPECTED_SCHEMA)


def _add_lungs(
    rows: list[Row],
    sources: Sequence[GivenLungs | None],
    decoded: dict[int, np.ndarray],
    config: InspectConfig,
) -> None:
    """Fill the columns of the lungs: from what is given, else from the image, which may lie in the cache."""
    todo: list[int] = []
    for number, (row, source) in enumerate(zip(rows, sources, strict=True)):
        if row["status"] != "ok":
            continue
        if source is not None:
            row.update(shape_width=source.width, shape_height=source.height)
        if source is not None and source.mask is not None:
            row.update(lung_values(given_mask(source, row["image_id"], row["width"], row["height"])))
        else:
            todo.append(number)
    cached = [number for number in todo if number not in decoded]
    if cached:
        squares = _from_cache([rows[number] for number in cached], config)
        for number, square in zip(cached, squares, strict=True):
            decoded[number] = segmenter_input(square)
    for number, found in zip(todo, find_lungs([decoded[number] for number in todo], config.segmenter), strict=True):
        rows[number].update(lung_values(*found))


def _add_contrast(rows: list[Row], config: InspectConfig) -> None:
    """Fill the contrast of images that an earlier run decoded, from the cache."""
    todo = [row for row in rows if row["status"] == "ok" and "contrast" not in row]
    if todo:
        for row, square in zip(todo, _from_cache(todo, config), strict=True):
            row["contrast"] = rms_contrast(square)


def _from_cache(rows: Sequence[Row], config: InspectConfig) -> np.ndarray:
    """Return cached images, uint8 [n, size, size].

    Raises:
        StorageError: if the cache cannot be read.
    """
    assert config.cache_folder is not None, "what is not decoded lies in the cache"
    files, places = ([row[name] for row in rows] for name in ("cache_file", "cache_row"))
    try:
        return read_cached(config.cache_folder, config.size, files, places)
    except OSError as error:
        raise StorageError(
            f"the cache {config.cache_folder} cannot be read ({error.strerror or error}); remove it and repeat the command"
        ) from error


def _inspect(
    entry: Entry, content: bytes | Exception | None, config: InspectConfig, call: Call
) -> Iterator[tuple[Row, np.ndarray | None]]:
    """Yield a row for each frame of one entry, with its pixels where they had to be decoded."""
    facts = read_path(entry.facts_path)
    base: Row = {
        "image_id": entry.image_id,
        "uri": entry.uri,
        "member": entry.member,
        "frame": None,
        SPAN_FIELD.name: entry.span,
        **facts._asdict(),
        "status": "ok",
    }
    if content is None:
        yield base | {"status": "failed", "error": f"archive: {entry.error}"}, None
        return
    if isinstance(content, Exception):
        yield base | {"status": "failed", "error": describe(content)}, None
        return
    data = content
    base |= {"num_bytes": len(data), "content_sha256": hashlib.sha256(data).hexdigest()}
    try:
        info = call(inspect_image, data)
    except DecodeError as error:
        yield base | {"status": "failed", "error": describe(error)}, None
        return
    base |= {"width": info.width, "height": info.height, "mode": info.mode, **info.person._asdict()}
    if info.patient_key is not None:  # the DICOM header takes precedence over the file name
        base["patient_id"] = pseudonym(info.patient_key, config.salt)
    for frame in range(info.frames):
        row = dict(base)
        if info.frames > 1:
            row |= {"image_id": f"{entry.image_id}#{frame}", "frame": frame}
        pixels = None
        home = config.cached.get((row["content_sha256"], frame))
        if home is not None:
            row |= {"cache_file": home[0], "cache_row": home[1]}
        else:
            try:
                pixels, row["decode_note"] = call(decode_with_note, data, min_size=config.size, frame=frame)
            except DecodeError as error:
                row |= {"status": "failed", "error": describe(error)}
        yield row, pixels


def describe(error: Exception) -> str:
    """Return `kind: reason` for a failed row. Never contains pixels, patients or paths of other files."""
    if isinstance(error, DecodeError):
        return f"{error.kind}: {error}"
    if isinstance(error, OSError):
        return f"unreadable: {error.strerror or error}"
    return f"archive: {error}"


def pseudonym(patient: str, salt: bytes | None) -> str:
    """Return what stands for a patient in the manifest: an HMAC-SHA256 of the key of a DICOM file, 64 bits in hexadecimal.

    Args:
        patient: the key.
        salt: of the archive; None keeps the key itself.
    """
    if salt is None:
        return patient
    return "p" + hmac.new(salt, patient.encode("utf-8", "replace"), hashlib.sha256).hexdigest()[:16]
