"""What the threshold of a site reaches in groups of its patients: one threshold need not serve every projection, age or device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pyarrow as pa

from pneumo_ray.evaluate.subgroups import UNKNOWN, groups_of_column
from pneumo_ray.site.labels import MIN_CLASS_PATIENTS, Labelled
from pneumo_ray.site.threshold import Share, at_threshold


@dataclass(frozen=True)
class SiteGroup:
    """The labelled images of a group at the threshold for the site, one image per patient and class."""

    column: str
    value: str
    sensitivity: Share
    """Of no patient where there are none with pneumonia."""
    specificity: Share

    def share(self, measure: str) -> Share:
        """Return one of the two by its name, `sensitivity` or `specificity`."""
        return self.sensitivity if measure == "sensitivity" else self.specificity


def groups_at(data: Labelled, columns: Mapping[str, pa.Array], threshold: float, seed: int) -> tuple[SiteGroup, ...]:
    """Measure the threshold in every group; a column with one value gives none, and neither do values that are unknown.

    Args:
        data: the labelled images.
        columns: by name, [n] values of them; numbers with many values are divided into quarters.
        threshold: on `prob_mean`.
        seed: of the image that stands for a patient.
    """
    found = []
    for column, values in columns.items():
        divided = groups_of_column(values)
        if isinstance(divided, str):
            continue
        names, which = divided
        for number, name in enumerate(names):
            if name != UNKNOWN and (which == number).any():
                single = data.where(which == number).one_per_patient(seed)
                found.append(SiteGroup(column, name, *at_threshold(single, threshold)))
    return tuple(found)


def differing(groups: Sequence[SiteGroup]) -> list[tuple[str, SiteGroup, SiteGroup]]:
    """Return the pairs of groups of one column whose 95 % intervals do not overlap: measure, the lower and the higher.

    Of each column and measure, the pair that lies furthest apart. Groups of fewer than `MIN_CLASS_PATIENTS` patients of
    the class take no part.
    """
    found = []
    for column in dict.fromkeys(group.column for group in groups):
        for measure in ("sensitivity", "specificity"):
            pairs = []
            for pair in combinations([group for group in groups if group.column == column], 2):
                low, high = sorted(pair, key=lambda group: group.share(measure).value or 0.0)
                enough = min(group.share(measure).of for group in pair) >= MIN_CLASS_PATIENTS
                gap = high.share(measure).low - low.share(measure).high
                if enough and gap > 0:
                    pairs.append((gap, low, high))
            if pairs:
                _, low, high = pairs[int(np.argmax([gap for gap, *_ in pairs]))]
                found.append((measure, low, high))
    return found
