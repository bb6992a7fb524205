"""Metadata baseline: a classifier that uses no pixel, only size, aspect ratio, bytes per pixel and mode of the files.

If it separates the classes, a good model may have learned the scanner (Zech et al. 2018, PLoS Medicine 15, e1002683).
Bytes per pixel is not neutral: a hazy lung compresses better than a clear one.

It is logistic regression on logarithms, so that a product or a ratio is a sum. On 160 of Kermany's files at their
original size (153 patients, 4-fold by patient) it reached an AUC of 0.999, and of 0.999 with a quarter of the training
files; gradient boosting reached 0.987 and 0.50, because its leaves are too large for so few.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pneumo_ray.data.manifest import usable
from pneumo_ray.evaluate.intervals import patient_intervals

FACTS = ("width", "height", "num_bytes", "mode")
"""Columns of the manifest that it uses."""
FEATURES = ("width", "height", "aspect", "bytes_per_pixel", "mode")


@dataclass(frozen=True)
class MetadataBaseline:
    """Performance of the metadata baseline."""

    auc: float | None
    """On the measured images; None where undefined; `reason` explains it."""
    interval: tuple[float, float] | None
    """95 %, over patients."""
    fitted_on: int
    """Images of the split train."""
    measured_on: int
    """Labelled images of the measured split."""
    left_out: int
    """Images of either split whose size, bytes or mode are unknown."""
    reason: str | None = None
    features: tuple[str, ...] = FEATURES


def metadata_baseline(manifest: pa.Table, split: str | None) -> MetadataBaseline:
    """Fit on the split train, measure on another.

    Args:
        manifest: the whole of it.
        split: val or test; None for all labelled images that are not in train.
    """
    rows = usable(manifest)
    in_train = pc.fill_null(pc.equal(rows["split"], "train"), False)
    chosen = pc.invert(in_train) if split is None else pc.fill_null(pc.equal(rows["split"], split), False)
    groups = {"train": rows.filter(in_train), "measured": rows.filter(chosen)}
    known = {name: _known(table) for name, table in groups.items()}
    train, measured = known["train"], known["measured"]
    left_out = sum(len(groups[name]) - len(known[name]) for name in groups)
    reason = _reason(groups, known, split)
    if reason is not None:
        return MetadataBaseline(None, None, len(train), len(measured), left_out, reason)
    modes = sorted(set(train["mode"].to_pylist()))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(_features(train, modes), train["label"].to_numpy())
    prob = model.predict_proba(_features(measured, modes))[:, 1]
    label, patients = measured["label"].to_numpy(), measured["patient_id"].to_pylist()
    interval = patient_intervals(label, prob, 0.5, patients, ("auc",))["auc"]
    return MetadataBaseline(float(roc_auc_score(label, prob)), interval, len(train), len(measured), left_out)


def _known(table: pa.Table) -> pa.Table:
    """Return the rows in which all facts are known."""
    columns = [table[name].combine_chunks() for name in FACTS]
    good = np.ones(len(table), dtype=bool)
    for column in columns:
        good &= column.is_valid().to_numpy(zero_copy_only=False)
        if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
            good &= pc.fill_null(column.cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False) > 0
    return table.filter(pa.array(good))


def _reason(groups: dict[str, pa.Table], known: dict[str, pa.Table], split: str | None) -> str | None:
    if split == "train":
        return "the baseline is fitted on the split train, which cannot measure it; choose val or test"
    names = {
        "train": "the split train",
        "measured": f"the split {split}" if split else "what is not in the split train",
    }
    for group, name in names.items():
        if not len(groups[group]):
            return f"the manifest has no labelled images in {name}"
        if not len(known[group]):
            lost = [fact for fact in FACTS if groups[group][fact].null_count]
            return f"the manifest lacks {', '.join(lost) or 'the sizes'} of the images in {name}; run jobs/prepare.py again"
        if pc.count_distinct(known[group]["label"]).as_py() < 2:
            return f"the images in {name} are all of one class"
    return None


def _features(table: pa.Table, modes: list[str]) -> NDArray[np.float64]:
    """Return float64 [n, 4 + modes]: logarithms of width, height, aspect and bytes per pixel, and the mode one-hot."""
    width, height, size = (table[name].to_numpy().astype(np.float64) for name in ("width", "height", "num_bytes"))
    numbers = np.log(np.stack([width, height, width / height, size / (width * height)], axis=1))
    return np.hstack([numbers, np.array(table["mode"].to_pylist())[:, None] == np.array(modes)])
