"""The order of a queue: images that are read twice far apart, and no patient twice in a row."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def with_repeats(images: int, repeats: int, rng: np.random.Generator) -> Ints:
    """Return the images 0, 1, ... in order, with some of them a second time, about half of the queue later.

    Images of the first half (or more, if there are more repeats) are drawn, and come again in their order, evenly spread
    over what follows, so that a reader has forgotten them.

    Args:
        images: how many.
        repeats: how many of them come twice, at most all.
        rng: draws which.

    Returns:
        [images + repeats]; the first occurrence of each image is in order.
    """
    half = max(repeats, -(-images // 2))
    again = np.sort(rng.choice(half, repeats, replace=False))
    # The k-th repeat follows this share of what stands behind the first half.
    place = half + (np.arange(1, repeats + 1) * (images - half)) // max(repeats, 1)
    return np.insert(np.arange(images), place, again)


def in_order(patient_of: Sequence[int] | Ints) -> Ints:
    """Return an order in which no patient follows itself, as near to the given order as one pass makes it.

    The next reading is the first whose patient is not that of the last one, unless a patient has as many left as all
    others together: then it is that patient's. Where one patient has more than half of all readings, some are left out.

    Args:
        patient_of: [n], the patient of each reading.

    Returns:
        Indices into the given order, of all n or as many as can be.
    """
    left = list(range(len(patient_of)))
    counts = Counter(int(patient) for patient in patient_of)
    order: list[int] = []
    last: int | None = None
    while left:
        most, number = counts.most_common(1)[0]
        pressing = most if number > len(left) - number and most != last else None
        place = next(
            (
                k
                for k, row in enumerate(left)
                if (patient_of[row] == pressing if pressing is not None else patient_of[row] != last)
            ),
            None,
        )
        if place is None:
            break
        row = left.pop(place)
        last = int(patient_of[row])
        counts[last] -= 1
        order.append(row)
    return np.array(order, np.int64)
