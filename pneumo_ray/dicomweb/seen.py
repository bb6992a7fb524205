"""Which names a listing has seen, in a few bytes each: a set of a million numbers takes 65 MB, and this one a fifth of it."""

import numpy as np
from numpy.typing import NDArray

_FEWEST = 4096
_SHARE = 16


class Seen:
    """A set of names that only grows, by their 64-bit hashes.

    Most of it is one sorted array. What is new waits in a set until it is a sixteenth of that, and is merged.
    """

    def __init__(self) -> None:
        """Begin without any."""
        self._sorted: NDArray[np.int64] = np.empty(0, np.int64)
        self._fresh: set[int] = set()

    def add(self, name: str) -> bool:
        """Add a name; return whether it is new."""
        key = hash(name)
        place = int(self._sorted.searchsorted(key))
        if key in self._fresh or (place < len(self._sorted) and self._sorted[place] == key):
            return False
        self._fresh.add(key)
        if len(self._fresh) >= max(_FEWEST, len(self._sorted) // _SHARE):
            fresh = np.fromiter(self._fresh, np.int64, len(self._fresh))
            self._sorted = np.concatenate([self._sorted, fresh])
            self._sorted.sort()
            self._fresh = set()
        return True
