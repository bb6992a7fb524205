"""Facts about a data set that decide how far results on it can be trusted.

Kermany's radiographs have known faults (`docs/data.md`, "Audit"): duplicates, patients on both sides of a
split, and normal images that are larger and less compressed, so that the size of a file predicts its class.
"""

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pneumo_ray.anatomy.lungs import PLAUSIBLE
from pneumo_ray.data.manifest import count_notes, crossing, usable
from pneumo_ray.data.names import PassedOver
from pneumo_ray.records import JsonObject

CLASS_NAMES = {0: "normal", 1: "pneumonia", None: "unlabelled"}
SPLIT_NAMES = ("train", "val", "test", None)
MAX_SHARE, MANY = 0.2, 20
"""Share and number of labelled images from which on one patient identifier is not believed to be one patient's."""


def audit(table: pa.Table, ignored_files: int = 0, passed_over: Mapping[str, int] = MappingProxyType({})) -> JsonObject:
    """Return the facts that `prepare` prints and writes as `audit.json`.

    Args:
        table: a manifest with splits.
        ignored_files: files and folders of the archive that the listing passed over.
        passed_over: the same by reason, the keys of `names.REASONS`.
    """
    ok = table.filter(pc.equal(table["status"], "ok"))
    labelled = usable(table)
    failed = table.filter(pc.equal(table["status"], "failed"))
    label, split = table["label"].to_pylist(), table["split"].to_pylist()
    counts = Counter(
        (part or "not used", CLASS_NAMES[value])
        for part, value, status in zip(split, label, table["status"].to_pylist(), strict=True)
        if status == "ok"
    )
    return {
        "images": len(table),
        "readable": len(ok),
        "failed": len(failed),
        "failed_by_reason": dict(
            Counter((error or "").split(":", 1)[0] for error in failed["error"].to_pylist()).most_common()
        ),
        "decode_notes": count_notes(ok["decode_note"].to_pylist() if "decode_note" in ok.column_names else ()),
        "ignored_files": ignored_files,
        "passed_over": dict(passed_over),
        "unlabelled": ok["label"].null_count,
        **patient_facts(labelled),
        "counts": {
            part or "not used": {name: counts[part or "not used", name] for name in CLASS_NAMES.values()}
            for part in SPLIT_NAMES
        },
        "duplicates": _duplicates(ok),
        "patients_in_several_splits": (crossed := crossing(labelled, "patient_id"))[:20],
        "num_patients_in_several_splits": len(crossed),
        "num_patients_in_several_folders": len(crossing(_by_folder(labelled), "patient_id")),
        "shortcut": _shortcut(labelled),
        **({"lungs": _lungs(ok)} if "lung_quality" in table.column_names else {}),
    }


def patient_facts(labelled: pa.Table) -> dict[str, int]:
    """Return how many images and patients the readable, labelled rows of a manifest have, and what is odd about them."""
    patients = labelled["patient_id"].drop_null()
    counts = pc.value_counts(patients).field("counts").to_pylist()
    return {
        "labelled": len(labelled),
        "patients": len(counts),
        "without_patient": len(labelled) - len(patients),
        "images_of_the_largest_patient": max(counts, default=0),
    }


def undividable(facts: Mapping[str, int]) -> str | None:
    """Return a sentence where one patient identifier stands for all, or for many, or None.

    Args:
        facts: from `patient_facts`.
    """
    total, largest = facts["labelled"], facts["images_of_the_largest_patient"]
    if largest == total > 1:
        return (
            f"all {total:,} labelled images carry one patient identifier, perhaps since the files were anonymised, so they "
            "cannot be divided by patient; give patient_id with jobs/prepare.py --labels"
        )
    if largest > MAX_SHARE * total and largest >= MANY:
        return (
            f"{largest:,} of {total:,} labelled images carry one patient identifier, which may stand for everybody and keeps "
            "them in one split; give patient_id with jobs/prepare.py --labels"
        )
    return None


def patients_warning(facts: Mapping[str, int]) -> str | None:
    """Return a sentence where the patient identifiers cannot keep patients apart in the splits, or None.

    Args:
        facts: from `patient_facts`.
    """
    total, patients = facts["labelled"], facts["patients"]
    if (sentence := undividable(facts)) or total < 2 or patients + facts["without_patient"] < total:
        return sentence
    known = "every labelled image has a patient of its own" if patients else "no labelled image names its patient"
    return (
        f"{known}, so two images of one child may train and test unseen; give patient_id with --labels if that is known"
    )


def _by_folder(table: pa.Table) -> pa.Table:
    """Replace the split by that of the archive's folders, where the manifest has it."""
    if "folder" not in table.column_names:
        return table
    return table.set_column(table.column_names.index("split"), "split", table["folder"])


def _lungs(ok: pa.Table) -> JsonObject:
    """Return how many of the readable images have plausible lungs, and why the others have not."""
    reasons = Counter(ok["lung_quality"].to_pylist())
    looked = sum(count for reason, count in reasons.items() if reason is not None)
    plausible = ok.filter(pc.fill_null(pc.equal(ok["lung_quality"], PLAUSIBLE), False))
    return {
        "looked_at": looked,
        "quality": {reason: count for reason, count in reasons.most_common() if reason is not None},
        "doubtful": looked - len(plausible),
        "doubtful_share": (looked - len(plausible)) / looked if looked else None,
        "mean_area": pc.mean(plausible["lung_area"]).as_py(),
    }


def _duplicates(ok: pa.Table) -> dict[str, int]:
    groups = ok.group_by("content_sha256").aggregate(
        [
            ("image_id", "count"),
            ("label", "count_distinct"),
            ("patient_id", "count_distinct"),
            ("frame", "count_distinct"),
        ]
    )
    # Frames of one file share their bytes and are not copies of one another.
    surplus = pc.subtract(groups["image_id_count"], pc.max_element_wise(groups["frame_count_distinct"], 1))
    several = groups.filter(pc.greater(surplus, 0))
    return {
        "groups": len(several),
        "surplus_images": int(pc.sum(surplus).as_py() or 0),
        "groups_across_classes": int(pc.sum(pc.greater(several["label_count_distinct"], 1)).as_py() or 0),
        "groups_across_patients": int(pc.sum(pc.greater(several["patient_id_count_distinct"], 1)).as_py() or 0),
        "groups_across_splits": len(crossing(ok, "content_sha256")),
    }


def _shortcut(labelled: pa.Table) -> dict[str, dict[str, float]]:
    """Return size, shape and compression by class, and how well each alone separates the classes (AUC).

    Copies written by `--materialize-copies` are not part of the archive and are left out.
    """
    if "copy_of" in labelled.column_names:
        labelled = labelled.filter(pc.is_null(labelled["copy_of"]))
    label = labelled["label"].to_numpy()
    width = labelled["width"].to_numpy().astype(float)
    height = labelled["height"].to_numpy().astype(float)
    num_bytes = labelled["num_bytes"].to_numpy().astype(float)
    out: dict[str, dict[str, float]] = {}
    for name, value in (
        ("width", width),
        ("height", height),
        ("aspect", width / height),
        ("num_bytes", num_bytes),
        ("bytes_per_pixel", num_bytes / (width * height)),
    ):
        row = {CLASS_NAMES[c]: float(value[label == c].mean()) for c in (0, 1) if (label == c).any()}
        if len(row) == 2:
            from sklearn.metrics import roc_auc_score

            auc = float(roc_auc_score(label, value))
            row["auc"] = max(auc, 1 - auc)
        out[name] = row
    if len(np.unique(label)) == 2:
        out["colour"] = {
            CLASS_NAMES[c]: float(
                np.mean(
                    [
                        m not in ("L", "1", "I;16")
                        for m in labelled.filter(pc.equal(labelled["label"], c))["mode"].to_pylist()
                    ]
                )
            )
            for c in (0, 1)
        }
    return out


def audit_lines(facts: JsonObject) -> list[str]:
    """Return the audit as a short table in plain text."""
    lines = [f"{'':<12}{'normal':>10}{'pneumonia':>12}{'unlabelled':>12}"]
    for part, row in facts["counts"].items():
        if any(row.values()):
            lines.append(f"{part:<12}{row['normal']:>10,}{row['pneumonia']:>12,}{row['unlabelled']:>12,}")
    reasons = ", ".join(f"{count} {reason}" for reason, count in facts["failed_by_reason"].items())
    lines.append(f"failed       {facts['failed']:,}{f' ({reasons})' if reasons else ''}")
    if words := PassedOver(facts["passed_over"]).sentence():
        lines.append(words)
    dup = facts["duplicates"]
    lines.append(
        f"duplicates   {dup['surplus_images']:,} surplus images in {dup['groups']:,} groups; across classes {dup['groups_across_classes']}, "
        f"patients {dup['groups_across_patients']}, splits {dup['groups_across_splits']}"
    )
    lines.append(
        f"patients     {facts['patients']:,} with labelled images; in several folders of the archive {facts['num_patients_in_several_folders']:,}, "
        f"in several splits {facts['num_patients_in_several_splits']:,}"
    )
    if warning := patients_warning(facts):
        lines.append(f"warning      {warning}")
    if (lungs := facts.get("lungs")) and lungs["looked_at"]:
        doubtful = {reason: count for reason, count in lungs["quality"].items() if reason != PLAUSIBLE}
        why = ", ".join(f"{count:,} {reason}" for reason, count in doubtful.items())
        lines.append(
            f"lungs        plausible in {lungs['quality'].get(PLAUSIBLE, 0):,} of {lungs['looked_at']:,}; doubtful views "
            f"{lungs['doubtful']:,} ({lungs['doubtful_share']:.1%}){f': {why}' if why else ''}"
        )
    for name, row in facts["shortcut"].items():
        if "auc" in row:
            note = "  <- predicts the class by itself" if row["auc"] >= 0.7 else ""
            lines.append(
                f"{name:<17}normal {row['normal']:>11,.2f}   pneumonia {row['pneumonia']:>11,.2f}   AUC alone {row['auc']:.2f}{note}"
            )
    return lines
