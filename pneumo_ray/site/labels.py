"""The images of a site: scores, the labels that some of them have, and what the manifest knows of them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumo_ray.errors import ConfigError
from pneumo_ray.evaluate.metrics import number_groups
from pneumo_ray.evaluate.scores import Scores

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MIN_PATIENTS = 15
"""Labelled patients below which nothing is fitted."""
MIN_CLASS_PATIENTS = 5
"""Labelled patients of each class below which nothing is fitted."""
CLASS_WORDS = ("without pneumonia", "with pneumonia")


@dataclass(frozen=True)
class Labelled:
    """Images with a label."""

    prob: Floats
    """[n], `prob_mean` of the scores, before recalibration."""
    label: Ints
    """[n], 0 normal or 1 pneumonia."""
    patient_of: Ints
    """[n], patients numbered from 0; an image without a patient is one of its own."""

    def __len__(self) -> int:
        return len(self.label)

    @property
    def num_patients(self) -> int:
        """Patients with a labelled image."""
        return len(np.unique(self.patient_of))

    def patients_of_class(self, label: int) -> int:
        """Count the patients with an image of a class."""
        return len(np.unique(self.patient_of[self.label == label]))

    def where(self, rows: NDArray[np.bool_] | Ints) -> "Labelled":
        """Return some of the images."""
        return Labelled(self.prob[rows], self.label[rows], self.patient_of[rows])

    def one_per_patient(self, seed: int) -> "Labelled":
        """Return one image of each patient and class, drawn at random: independent draws, as exact intervals need them."""
        order = np.random.default_rng(seed).permutation(len(self))
        key = 2 * self.patient_of[order] + self.label[order]
        _, first = np.unique(key, return_index=True)
        return self.where(np.sort(order[first]))

    def check_enough(self) -> None:
        """Refuse to fit anything on too few patients.

        Raises:
            ConfigError: with how many labels are missing.
        """
        if not len(self):
            raise ConfigError(
                f"no scored image has a label in the manifest; commissioning needs labels of at least {MIN_PATIENTS} "
                f"patients, {MIN_CLASS_PATIENTS} of each class among them"
            )
        seen = [self.patients_of_class(c) for c in (0, 1)]
        of_class = [max(0, MIN_CLASS_PATIENTS - count) for count in seen]
        missing = max(0, MIN_PATIENTS - self.num_patients, sum(of_class))
        if missing:
            need = [f"{number} {CLASS_WORDS[c]}" for c, number in enumerate(of_class) if number]
            raise ConfigError(
                f"{len(self):,} labelled image(s) of {self.num_patients:,} patient(s), {seen[1]:,} with pneumonia and "
                f"{seen[0]:,} without, are too few to commission on: label images of {missing:,} more patient(s)"
                f"{', at least ' + ' and '.join(need) if need else ''}"
            )


@dataclass(frozen=True)
class SiteImages:
    """All images of a site that could be scored."""

    labelled: Labelled
    prob: Floats
    """[N], `prob_mean` of every image, labelled ones included."""
    unlabelled: Floats
    """[m], `prob_mean` of the images without a label."""
    unlabelled_patient_of: Ints
    """[m], their patients."""
    without_patient: int
    """Images that name no patient and count as one each."""
    labels_hash: str
    """sha256 (hex) over the names and labels of the labelled images, in order of their names."""
    scores_hash: str
    """sha256 (hex) over the names and probabilities of all images, in order of their names."""


def site_images(scores: Scores) -> SiteImages:
    """Return the images of scores that are joined with `label` and `patient_id` of the manifest (`matching.match`)."""
    prob = scores.numbers("prob_mean")
    names = scores.table["image_id"].to_pylist()
    label = np.array([-1 if value is None else value for value in scores.table["label"].to_pylist()], np.int64)
    patient_of, _ = number_groups(scores.table["patient_id"].to_pylist())
    known = label >= 0
    return SiteImages(
        labelled=Labelled(prob[known], label[known], patient_of[known]),
        prob=prob,
        unlabelled=prob[~known],
        unlabelled_patient_of=patient_of[~known],
        without_patient=scores.table["patient_id"].null_count,
        labels_hash=_digest(names, label, known),
        scores_hash=_digest(names, prob, np.ones(len(names), bool)),
    )


def _digest(names: Sequence[str], values: NDArray[np.generic], rows: NDArray[np.bool_]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted((names[row], values[row].item()) for row in np.flatnonzero(rows).tolist()):
        digest.update(f"{name}\0{value!r}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
