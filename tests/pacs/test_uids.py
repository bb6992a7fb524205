"""UIDs that follow from names, against PS3.5 B.2 and RFC 9562."""

import re
import uuid

from pneumo_ray.pacs.uids import derived_uid


def test_a_uid_encodes_a_version_5_uuid():
    uid = derived_uid("sr", "model", "1.2.3")
    assert re.fullmatch(r"2\.25\.(0|[1-9]\d*)", uid)
    assert len(uid) <= 64
    named = uuid.UUID(int=int(uid.removeprefix("2.25.")))
    assert (named.version, named.variant) == (5, uuid.RFC_4122)


def test_other_names_are_another_uid():
    names = [("a", "b"), ("ab",), ("a", "b", ""), ("b", "a"), ("a",), ()]
    assert len({derived_uid(*several) for several in names}) == len(names)
    assert derived_uid("a", "b") == derived_uid("a", "b")
