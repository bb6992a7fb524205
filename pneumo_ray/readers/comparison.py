"""Readers compared: with each other, with themselves, and with a model.

The first answer of a reader about an image counts; a later one measures how far the reader agrees with itself. A model is
compared with answers that were given blind, as far as the readings say.
"""

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from pneumo_ray.errors import ManifestError
from pneumo_ray.evaluate.intervals import patient_intervals
from pneumo_ray.evaluate.metrics import classification_metrics, number_groups
from pneumo_ray.readers.agreement import Agreement, Estimate, cohen, fleiss, krippendorff
from pneumo_ray.readers.consensus import vote_share
from pneumo_ray.readers.readings import Readings

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FEWEST = 2
"""Images that a group must have to be listed."""


@dataclass(frozen=True)
class Facts:
    """What is known of n images beside their readings; None where nothing is."""

    image_ids: tuple[str, ...]
    patients: Sequence[Hashable] | None = None
    """[n]; an image without a patient is one of its own."""
    groups: dict[str, Sequence[str | None]] = field(default_factory=dict)
    """By the name of a column such as subtype: [n] values."""
    prob: Floats | None = None
    """[n], the model's probability; NaN where it has none."""
    threshold: float = 0.5
    """The model calls an image pneumonia where `prob >= threshold`."""


@dataclass(frozen=True)
class ReaderSummary:
    """One reader's answers."""

    reader: str
    images: int
    """With an answer, `cannot say` included."""
    cannot_say: int
    positive_share: float | None
    """Share of the answers 0 and 1 that are 1."""
    median_seconds: float | None
    unblinded: int
    """Answers that were given with the model's view visible."""


@dataclass(frozen=True)
class Pair:
    """Two readers."""

    readers: tuple[str, str]
    agreement: Agreement


@dataclass(frozen=True)
class Group:
    """Images with one value of a column."""

    column: str
    value: str
    agreement: Agreement
    """Krippendorff's."""


@dataclass(frozen=True)
class Repeated:
    """A reader's first answers against the last ones about the same images."""

    reader: str
    agreement: Agreement


@dataclass(frozen=True)
class Against:
    """Calls compared with somebody's answers, which are taken for the truth."""

    who: str
    truth: str
    images: int
    kappa: Estimate
    recall: Estimate
    """The sensitivity."""
    specificity: Estimate
    auc: Estimate
    """Of the model's probabilities; undefined for a reader."""


@dataclass(frozen=True)
class Comparison:
    """Everything about the readers of a set of images."""

    images: int
    patients: int
    answers: int
    """First answers, `cannot say` included."""
    readers: tuple[ReaderSummary, ...]
    krippendorff: Agreement
    """Of all images with two answers or more."""
    fleiss: Agreement
    """Of the images that all readers answered."""
    pairs: tuple[Pair, ...]
    groups: tuple[Group, ...]
    repeated: tuple[Repeated, ...]
    others: tuple[Against, ...]
    """Each reader against the majority of the other readers."""
    model: tuple[Against, ...]
    """The model against the majority of all readers, and against each."""


def compare_readers(readings: Readings, facts: Facts) -> Comparison:
    """Compare the readers of some images.

    Args:
        readings: answers about images of `facts`.
        facts: of the images; those that nobody read count for nothing.

    Raises:
        ManifestError: with one reader alone, or where no image has the answers of two.
    """
    if len(readings.readers) < 2:
        raise ManifestError(
            f"--readings hold the answers of one reader alone, {readings.readers[0]!r}; agreement needs a second one"
        )
    first = readings.first()
    votes = first.votes(facts.image_ids)
    if not (np.count_nonzero(~np.isnan(votes), 1) >= 2).any():
        raise ManifestError("--readings hold no image that two readers answered; agreement needs images in common")
    patient_of, _ = number_groups(facts.patients if facts.patients is not None else [None] * len(votes))
    place = {name: row for row, name in enumerate(facts.image_ids)}
    read = [place[name] for name in first.image_ids]
    pairs = [
        Pair((first.readers[a], first.readers[b]), cohen(votes[:, [a, b]], patient_of))
        for a, b in itertools.combinations(range(votes.shape[1]), 2)
    ]
    return Comparison(
        images=len(read),
        patients=len(np.unique(patient_of[read])),
        answers=len(first),
        readers=tuple(_summary(first, reader) for reader in first.readers),
        krippendorff=krippendorff(votes, patient_of),
        fleiss=fleiss(votes, patient_of),
        pairs=tuple(pair for pair in pairs if pair.agreement.images),
        groups=tuple(_groups(votes, patient_of, facts)),
        repeated=tuple(_repeated(readings, patient_of, facts)),
        others=tuple(_others(votes, first.readers, patient_of)),
        model=tuple(_model(first, patient_of, facts)),
    )


def _summary(first: Readings, reader: str) -> ReaderSummary:
    rows = first.table.filter(pc.equal(first.table["reader"], reader))
    seconds = rows["seconds"].drop_null().to_numpy()
    return ReaderSummary(
        reader=reader,
        images=len(rows),
        cannot_say=rows["label"].null_count,
        positive_share=pc.mean(rows["label"]).as_py(),
        median_seconds=float(np.median(seconds)) if len(seconds) else None,
        unblinded=int(pc.sum(pc.equal(rows["blinded"], False)).as_py() or 0),
    )


def _groups(votes: Floats, patient_of: Ints, facts: Facts) -> list[Group]:
    found = []
    for column, values in facts.groups.items():
        of_image = np.array(["" if value is None else value for value in values], object)
        for value in sorted(set(of_image.tolist()) - {""}):
            chosen = of_image == value
            agreement = krippendorff(votes[chosen], patient_of[chosen])
            if agreement.images >= FEWEST:
                found.append(Group(column, value, agreement))
    return found


def _repeated(readings: Readings, patient_of: Ints, facts: Facts) -> list[Repeated]:
    place = {name: row for row, name in enumerate(facts.image_ids)}
    labels = readings.table["label"].to_pylist()
    answers: dict[str, list[tuple[int, int, int]]] = {}
    for (image_id, reader), rows in readings.repeats().items():
        first, last = labels[rows[0]], labels[rows[-1]]
        if len(rows) > 1 and first is not None and last is not None:
            answers.setdefault(reader, []).append((first, last, place[image_id]))
    found = []
    for reader in sorted(answers):
        table = np.array(answers[reader])
        found.append(Repeated(reader, cohen(table[:, :2].astype(np.float64), patient_of[table[:, 2]])))
    return found


def _others(votes: Floats, readers: Sequence[str], patient_of: Ints) -> list[Against]:
    found = []
    for number, reader in enumerate(readers):
        majority = vote_share(np.delete(votes, number, 1))
        row = _against(reader, "the other readers", votes[:, number], majority, 0.5, patient_of)
        if row is not None:
            found.append(row)
    return found


def _model(first: Readings, patient_of: Ints, facts: Facts) -> list[Against]:
    if facts.prob is None:
        return []
    blind = first.where(pc.fill_null(first.table["blinded"], True).to_numpy(zero_copy_only=False))
    votes = blind.votes(facts.image_ids)
    truths = [("the majority of the readers", vote_share(votes))]
    truths += [(reader, votes[:, number]) for number, reader in enumerate(blind.readers)]
    rows = [_against("the model", name, facts.prob, truth, facts.threshold, patient_of) for name, truth in truths]
    return [row for row in rows if row is not None]


def _against(who: str, name: str, prob: Floats, truth: Floats, threshold: float, patient_of: Ints) -> Against | None:
    """Return how calls [images] compare with answers or shares of answers [images]; ties and gaps are left out."""
    known = ~np.isnan(prob) & ~np.isnan(truth) & (truth != 0.5)
    if not known.any():
        return None
    label, called, patients = (truth[known] > 0.5).astype(np.int64), prob[known], patient_of[known]
    values = classification_metrics(label, called, threshold)
    is_model = not np.isin(called, (0.0, 1.0)).all()
    names = ["kappa", "recall", "specificity", *(["auc"] if is_model else [])]
    intervals = patient_intervals(label, called, threshold, patients.tolist(), names)
    made = {measure: Estimate(values[measure], intervals[measure]) for measure in names}
    return Against(
        who, name, len(label), made["kappa"], made["recall"], made["specificity"], made.get("auc", Estimate(None))
    )
