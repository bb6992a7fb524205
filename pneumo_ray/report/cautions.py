"""Warnings of the report, derived from the numbers."""

import pyarrow as pa
import pyarrow.compute as pc

from pneumo_ray.evaluate.evaluation import Measured
from pneumo_ray.evaluate.metrics import Metrics
from pneumo_ray.evaluate.number_text import number_text
from pneumo_ray.evaluate.tables import best_uncertainties
from pneumo_ray.report.subject import Subject
from pneumo_ray.report.wording import words_of

SHIFT = 0.10
"""Decrease of sensitivity or specificity from validation that causes a warning."""
BAD_CALIBRATION = 0.05
"""Expected calibration error above which a probability should not be read as one, if it is more than chance."""
CHANCE = 0.05
"""Share of calibrated models that may be warned of: their calibration error is that of few images."""
STRONG_SHORTCUT = 0.70
"""AUC of the metadata baseline above which the report warns of a shortcut."""
FEW = 100
"""Number of images of a class below which the report points to the intervals."""


def cautions(subject: Subject) -> list[str]:
    """Return the warnings of a report, the most severe first; empty if there are none."""
    numbers = subject.numbers
    found = [*_permuted(subject), *_trained_on(subject)]
    if (measured := numbers.measured) is not None:
        stored = measured.metrics.stored.values
        found += [*_one_class(stored), *_shift(subject, stored), *_calibration(measured), *_few(stored)]
        found += _uncertainty(measured)
    found += _shortcuts(subject)
    found += _failed(subject)
    if numbers.labelled < numbers.images:
        found.append(f"{numbers.images - numbers.labelled:,} image(s) have no label and are not measured.")
    return found


def _permuted(subject: Subject) -> list[str]:
    if subject.provenance("config", "permute_labels"):
        return [
            "The model was trained on permuted labels, for the randomisation test of its maps: its predictions have no meaning."
        ]
    return []


def _trained_on(subject: Subject) -> list[str]:
    split = subject.numbers.split
    trained = pc.sum(pc.equal(subject.chosen.table["split"], "train")).as_py() or 0
    if trained and subject.own_manifest:
        return [
            f"The model was trained on {trained:,} of these images: the numbers are too good and do not apply to new patients."
        ]
    if trained:
        return [
            f"{trained:,} of these images are in the manifest's split train. The model was trained with another manifest; if it has "
            "seen them, the numbers are too good."
        ]
    if split == "val" and subject.own_manifest:
        return ["The epoch, the calibration and the threshold were chosen on these images: the numbers are too good."]
    if subject.provenance("manifest", "protocol") == "paper" and subject.own_manifest:
        return [
            "The split protocol `paper` divides images, not patients: the same patient can be on both sides, and the numbers are too good."
        ]
    lines = []
    for column, words in (("patient_id", "patient(s)"), ("content_sha256", "image(s), byte for byte,")):
        if shared := _shared(subject, column):
            lines.append(
                f"{shared:,} {words} of this split are also in the splits that train and choose the model: the numbers are too good."
            )
    return lines


def _shared(subject: Subject, column: str) -> int:
    """Count the values of a column that this split shares with train or val."""
    split, table = subject.numbers.split, subject.manifest
    if split != "test":
        return 0
    used = table.filter(pc.is_in(table["split"], value_set=pa.array(["train", "val"])))[column].drop_null()
    here = table.filter(pc.equal(table["split"], split))[column].drop_null().unique()
    return int(pc.sum(pc.is_in(here, value_set=pc.unique(used))).as_py() or 0)


def _one_class(m: Metrics) -> list[str]:
    missing = [name for name, count in (("normal", m.tn + m.fp), ("pneumonia", m.fn + m.tp)) if not count]
    return [
        f"There is no {name} image among these: AUC, and the rates of that class, are undefined." for name in missing
    ]


def _shift(subject: Subject, here: Metrics) -> list[str]:
    lines = []
    for name, words in (("recall", "sensitivity"), ("specificity", "specificity")):
        before, after = subject.provenance("validation", name), here[name]
        if isinstance(before, float) and after is not None and before - after > SHIFT:
            lines.append(
                f"The {words} at the stored threshold is {number_text(after)} here and was {number_text(before)} on validation: these images differ "
                "from those that the threshold was chosen on. Choose a threshold on your own images before use."
            )
    return lines


def _calibration(measured: Measured) -> list[str]:
    found = measured.calibration["monte_carlo_mean"]
    if found.ece <= BAD_CALIBRATION or found.ece_p > CHANCE:
        return []
    return [
        f"The probabilities are off by {found.ece:.2f} on average (expected calibration error; {found.ece_expected:.2f} is what a calibrated model "
        "would show on these images): use them to rank images, not as probabilities."
    ]


def _few(m: Metrics) -> list[str]:
    counts = {"normal": m.tn + m.fp, "pneumonia": m.fn + m.tp}
    return [
        f"Only {count:,} {name} image(s): rely on the intervals, not on the estimates."
        for name, count in counts.items()
        if 0 < count < FEW
    ]


def _failed(subject: Subject) -> list[str]:
    failed, split = subject.failed, subject.numbers.split
    here = failed if split is None else failed.filter(pc.equal(failed["split"], split))
    lines = []
    if len(here):
        ill, well = (pc.sum(pc.equal(here["label"], c)).as_py() or 0 for c in (1, 0))
        lines.append(
            f"{len(here):,} image(s) of this split could not be scored ({ill:,} pneumonia, {well:,} normal) and are in none of the numbers."
        )
    if len(failed) > len(here):
        lines.append(
            f"{len(failed) - len(here):,} file(s) outside this split could not be scored; failures.csv names them."
        )
    return lines


def _uncertainty(measured: Measured) -> list[str]:
    compared = best_uncertainties(measured)
    if compared is None:
        return []
    (best, best_auroc), (plain, plain_auroc) = compared
    if best_auroc > plain_auroc:
        return []
    return [
        f"No uncertainty of the weights finds the errors better (best: {words_of(best)}, AUROC {number_text(best_auroc)}) than the plain probability "
        f"does ({plain}: {number_text(plain_auroc)}): referral does not need it here."
    ]


def _shortcuts(subject: Subject) -> list[str]:
    auc = None if subject.robustness is None else subject.robustness["metadata_only"]["auc"]
    if auc is None or auc < STRONG_SHORTCUT:
        return []
    return [
        f"A model that sees only the size, bytes per pixel and mode of the files reaches an AUC of {number_text(auc)}: the classes differ in "
        "how their files were made or how well they compress, and the network may use this."
    ]
