"""A set of names in a few bytes each, against Python's own."""

import numpy as np

from pneumo_ray.dicomweb.seen import Seen


def test_names_are_new_once_as_in_a_set():
    """The draws cross several merges, and half of the names come again, before and after one."""
    drawn = np.random.default_rng(0).integers(0, 12_000, 30_000)
    seen, known = Seen(), set()
    for number in drawn:
        name = f"1.2.{number}"
        assert seen.add(name) == (name not in known)
        known.add(name)
