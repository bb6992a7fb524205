"""UIDs that follow from what they name, so that an object which is made again is the same object.

A UID is `2.25.` and a UUID as a decimal number (PS3.5 B.2). The UUID is of version 5, a hash of names (RFC 9562, 5.5).
"""

import uuid

VERSION = 2
"""Of the objects: content that changes for the same names needs another one."""
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_OID, f"pneumo_ray results {VERSION}")


def derived_uid(*names: str) -> str:
    """Return the UID of something, at most 44 characters.

    Args:
        names: what it is and what it is made from, such as a kind, hashes and the UID of its source.
    """
    return f"2.25.{uuid.uuid5(_NAMESPACE, chr(0).join(names)).int}"
