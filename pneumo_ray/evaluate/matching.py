"""Scores joined with the manifest of their archive, and the checks before anything is measured."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pneumo_ray.data.manifest import RESERVED_COLUMNS, SCHEMA, SHAPE_FIELDS
from pneumo_ray.data.person import PERSON_FIELDS
from pneumo_ray.errors import ManifestError
from pneumo_ray.evaluate.scores import Scores


def match(scores: Scores, manifest: pa.Table, name: str) -> Scores:
    """Return the scores of the images that did not fail, with what the manifest knows of them.

    Args:
        scores: of an archive.
        manifest: of the same archive.
        name: of the manifest, for the error message.

    Raises:
        ManifestError: if images of the scores are not in the manifest, or a probability is not a number.
    """
    unknown = pc.invert(pc.is_in(scores.table["image_id"], value_set=manifest["image_id"].combine_chunks()))
    if count := pc.sum(unknown).as_py():
        example = scores.table["image_id"].filter(unknown)[0].as_py()
        raise ManifestError(
            f"{count:,} of {len(scores.table):,} scored images are not in {name}, such as {example!r}; give the manifest of the same archive"
        )
    good = scores.ok()
    _check_numbers(good)
    own = {*SCHEMA.names, *RESERVED_COLUMNS, *(field.name for field in SHAPE_FIELDS)}
    extra = [column for column in manifest.column_names if column not in own]
    if "view" in extra and "view" in good.table.column_names:
        # A table of labels may have brought the projection; what scoring found is in lung_quality as well.
        good = replace(good, table=good.table.drop_columns(["view"]))
    # Scores of a manifest have these from it; the manifest's own stand where columns to group by are looked for.
    repeated = [f.name for f in PERSON_FIELDS if f.name in extra and f.name in good.table.column_names]
    good = replace(good, table=good.table.drop_columns(repeated))
    if taken := [column for column in extra if column in good.table.column_names]:
        raise ManifestError(
            f"the column {taken[0]} of {name} has the name of a column of the scores; rename it in the label table and prepare again"
        )
    opinions = [name for name in ("label_soft", "num_readers") if name in manifest.column_names]
    columns = ("label", "split", "subtype", "patient_id", "width", "height", *opinions, *extra)
    return good.joined(manifest, columns)


def _check_numbers(good: Scores) -> None:
    """Refuse scores that are not numbers, which no metric can take.

    Raises:
        ManifestError: naming the column and how many images have no usable number.
    """
    for column in ("prob_mean", "prob_std", "logit", "logit_mean", "logit_std", "mutual_information"):
        value = good.numbers(column)
        usable = np.isfinite(value)
        if column == "prob_mean":
            usable &= (value >= 0) & (value <= 1)
        if count := int((~usable).sum()):
            raise ManifestError(f"{count:,} scored image(s) have an invalid {column}; score the archive again")
    for column in ("cam_mean", "cam_std"):
        if count := int((~np.isfinite(good.maps(column)).all((1, 2))).sum()):
            raise ManifestError(f"{count:,} scored image(s) have an invalid {column}; score the archive again")


def check_coverage(scores: Scores, manifest: pa.Table, split: str | None, name: str) -> None:
    """Refuse scores that lack images of the split: the missing images may be the difficult ones.

    Args:
        scores: all rows, failed ones included.
        manifest: of the archive.
        split: to be measured; None for all.
        name: of the manifest, for the error message.

    Raises:
        ManifestError: with the number of images without a row.
    """
    wanted = manifest.filter(pc.equal(manifest["status"], "ok"))
    if split is not None:
        wanted = wanted.filter(pc.fill_null(pc.equal(wanted["split"], split), False))
    absent = pc.invert(pc.is_in(wanted["image_id"], value_set=scores.table["image_id"].combine_chunks()))
    if count := pc.sum(absent).as_py():
        example = wanted["image_id"].filter(absent)[0].as_py()
        raise ManifestError(
            f"{count:,} of {len(wanted):,} images of {'all splits' if split is None else f'the split {split}'} of {name} have no scores, such as "
            f"{example!r}; score the whole manifest with jobs/explain.py --manifest"
        )
