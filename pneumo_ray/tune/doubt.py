"""Doubtful labels: out-of-fold probabilities of the trials of a study, a ranking, and manifests to train again with.

The trials of the study of labels train without one fold of the training images each. An image of that fold takes its
probability from the trials that left it out; any other labelled image, which trained none of them, from the mean of all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pneumo_ray import storage
from pneumo_ray.console import log
from pneumo_ray.data.folds import assign_folds, without_fold
from pneumo_ray.data.manifest import usable, write_manifest
from pneumo_ray.errors import PneumoError
from pneumo_ray.evaluate.label_quality import Floats, adjusted_margin, confidently_other, self_confidence
from pneumo_ray.train.config import TrainConfig
from pneumo_ray.tune.held_out import HELD_OUT
from pneumo_ray.tune.records import TrialRecord
from pneumo_ray.tune.study import Settings, Study, Trial, fold_manifest

SOFTENED = 0.5
"""Weight of the given label in a softened one, beside the out-of-fold probability (Reed et al. 2014, arXiv 1412.6596)."""


@dataclass(frozen=True)
class Doubt:
    """Labelled images of a manifest, the most doubtful first."""

    table: pa.Table
    """image_id, label, split, fold (null for what trained no trial), prob, self_confidence, adjusted_margin, doubtful (a
    likely error), rank from 1."""

    @property
    def doubtful(self) -> pa.Table:
        """The labels that are likely errors."""
        return self.table.filter(self.table["doubtful"])


def write_folds(study: Study, base: TrainConfig, manifest: pa.Table) -> None:
    """Write the manifest of each fold where it is not yet, all over the same cached images.

    Raises:
        ConfigError: if there are too few patients for so many folds.
    """
    fold = assign_folds(manifest, study.folds, base.seed)
    for number in range(study.folds):
        uri = fold_manifest(base.out, number)
        if not storage.exists(uri):
            write_manifest(without_fold(manifest, fold, number), uri)


def write_doubt(
    study: Study, base: TrainConfig, manifest: pa.Table, done: Sequence[tuple[Trial, TrialRecord]]
) -> Doubt:
    """Write doubtful.parquet, and the manifests `without` and `softened` with a study that compares them.

    Args:
        study: with folds.
        base: its training.
        manifest: with the images of the study, cached.
        done: its trials and their records.

    Raises:
        PneumoError: if a trial did not finish, so that its fold has no probabilities.
    """
    if unfinished := [trial.name for trial, record in done if record.status != "finished"]:
        raise PneumoError(
            f"trial {unfinished[0]} of {base.out} did not finish, so its fold has no probabilities; study.csv says why, and "
            "without its folder it runs again"
        )
    labelled = usable(manifest)
    fold = assign_folds(manifest, study.folds, base.seed)[_usable_rows(manifest)]
    doubt = rank_labels(labelled, fold, out_of_fold(base.out, labelled, fold, [trial for trial, _ in done]))
    storage.write_table(doubt.table, storage.join(base.out, "doubtful.parquet"))
    written = ["doubtful.parquet", *_write_retraining(base, manifest, doubt)]
    count, share = len(doubt.doubtful), len(doubt.doubtful) / len(doubt.table)
    log(
        f"{count:,} of {len(doubt.table):,} labels are doubtful ({share:.1%}): a model that has not seen them is confident of the other class"
    )
    log(f"wrote {', '.join(written)} to {base.out}")
    return doubt


def out_of_fold(out: str, labelled: pa.Table, fold: NDArray[np.int64], trials: Sequence[Trial]) -> Floats:
    """Return the mean probability of each labelled image over the trials that did not train on it, [n].

    Args:
        out: folder of the study.
        labelled: n rows of the manifest.
        fold: [n], of each, -1 for what trained no trial.
        trials: all that finished.
    """
    total, count = np.zeros(len(labelled)), np.zeros(len(labelled))
    for trial in trials:
        found = storage.read_table(storage.join(out, "trials", trial.name, HELD_OUT))
        place = pc.index_in(labelled["image_id"].combine_chunks(), value_set=found["image_id"].combine_chunks())
        prob = found["prob"].combine_chunks().take(place).to_numpy(zero_copy_only=False)
        mine = (fold == trial.fold) | (fold < 0)
        total[mine] += prob[mine]
        count[mine] += 1
    return total / count


def rank_labels(labelled: pa.Table, fold: NDArray[np.int64], prob: Floats) -> Doubt:
    """Return the labels in the order of their doubt, which is that of the self-confidence.

    Args:
        labelled: n rows of a manifest.
        fold: [n], -1 for none.
        prob: [n], probability of pneumonia of models that did not train on the image.
    """
    label = labelled["label"].to_numpy().astype(np.int64)
    own = self_confidence(label, prob)
    order = np.lexsort((np.array(labelled["image_id"].to_pylist()), own))
    table = pa.table(
        {
            "image_id": labelled["image_id"],
            "label": labelled["label"],
            "split": labelled["split"],
            "fold": pa.array(fold, pa.int32(), mask=fold < 0),
            "prob": prob,
            "self_confidence": own,
            "adjusted_margin": adjusted_margin(label, prob),
            "doubtful": confidently_other(label, prob),
        }
    ).take(order)
    return Doubt(table.append_column("rank", pa.array(np.arange(1, len(table) + 1))).combine_chunks())


def _usable_rows(manifest: pa.Table) -> NDArray[np.bool_]:
    names = set(usable(manifest)["image_id"].to_pylist())
    return np.array([name in names for name in manifest["image_id"].to_pylist()], bool)


def _write_retraining(base: TrainConfig, manifest: pa.Table, doubt: Doubt) -> list[str]:
    """Write the manifest with every label's confidence, those without and with softened doubtful training labels, and retrain.json."""
    chosen = doubt.doubtful.filter(pc.fill_null(pc.equal(doubt.doubtful["split"], "train"), False))
    plain = with_confidence(manifest, doubt)
    soft = {"without": weighted(plain, chosen), "softened": softened(plain, chosen)}
    arms: dict[str, Settings] = {}
    for name, table in {"confidence": plain, **soft}.items():
        uri = storage.join(base.out, f"{name}.parquet")
        write_manifest(table, uri)
        arms[name] = {"manifest": uri, "labels": "soft" if name in soft else "hard"}
    varies = f"what {len(chosen):,} doubtful training labels count for"
    study = {"varies": varies, "arms": {"as-given": arms.pop("confidence"), **arms}, "seeds": 3}
    storage.write_json(study, storage.join(base.out, "retrain.json"))
    return ["confidence.parquet", *(f"{name}.parquet" for name in soft), "retrain.json"]


def with_confidence(manifest: pa.Table, doubt: Doubt) -> pa.Table:
    """Return a manifest with the column `self_confidence`, by which jobs/evaluate.py measures subgroups."""
    return _with(manifest, "self_confidence", _looked_up(manifest, doubt.table, doubt.table["self_confidence"]))


def weighted(manifest: pa.Table, chosen: pa.Table) -> pa.Table:
    """Return a manifest for soft training in which some labels have the weight 0; the others keep theirs, or have 1."""
    is_chosen = pc.is_in(manifest["image_id"], value_set=chosen["image_id"].combine_chunks())
    before = manifest["label_weight"] if "label_weight" in manifest.column_names else pa.scalar(1.0)
    weight = pc.if_else(is_chosen, 0.0, pc.fill_null(before, 1.0))
    return _with(_with(manifest, "label_soft", _given(manifest)), "label_weight", weight)


def softened(manifest: pa.Table, chosen: pa.Table) -> pa.Table:
    """Return a manifest for soft training in which some labels move half of the way to the out-of-fold probability."""
    given, prob = _given(manifest), _looked_up(manifest, chosen, chosen["prob"])
    moved = pc.add(pc.multiply(given, SOFTENED), pc.multiply(prob, 1 - SOFTENED))
    return _with(manifest, "label_soft", pc.if_else(pc.is_valid(prob), moved, given))


def _given(manifest: pa.Table) -> pa.ChunkedArray:
    """Return the labels as probabilities; those of readers where there are some."""
    label = manifest["label"].cast(pa.float64())
    return pc.coalesce(manifest["label_soft"], label) if "label_soft" in manifest.column_names else label


def _looked_up(manifest: pa.Table, table: pa.Table, values: pa.ChunkedArray) -> pa.Array:
    place = pc.index_in(manifest["image_id"].combine_chunks(), value_set=table["image_id"].combine_chunks())
    return values.combine_chunks().take(place)


def _with(manifest: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    spec = pa.field(name, pa.float64())
    if name in manifest.column_names:
        return manifest.set_column(manifest.column_names.index(name), spec, values)
    return manifest.append_column(spec, values)
