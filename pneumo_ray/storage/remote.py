"""The file system of a location; a remote operation that fails temporarily is tried again."""

import os
import random
import re
import time
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar
from urllib.parse import unquote

from pyarrow import fs as pafs

from pneumo_ray.console import log
from pneumo_ray.errors import StorageError
from pneumo_ray.storage.addresses import is_local, local_path

TRIES = 5
"""Attempts of a remote operation; pyarrow's S3 client itself repeats each request for 6 seconds."""

FIRST_WAIT = 0.5
"""Seconds before the second attempt; doubled before each further one."""

LONGEST_WAIT = 8.0
"""Longest wait between two attempts, in seconds."""

_REFUSALS = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)

_REFUSED = re.compile(
    r"AWS Error (NO_SUCH|ACCESS_DENIED|INVALID_|SIGNATURE_|UNRECOGNIZED_|MISSING_|RESOURCE_NOT_FOUND|ACCOUNT_|OPT_IN)"
    r"|HTTP status (3\d\d|40[0-7]|41\d)|[Bb]ucket '[^']*' not found"
)

T = TypeVar("T")


class RetriesExhaustedError(StorageError, OSError):
    """A remote operation that failed in all attempts; also an OSError, for callers that do not require the file."""


class RefusedError(StorageError, OSError):
    """A remote operation that was refused for good; also an OSError, as above."""


def retried(verb: str, uri: str, action: Callable[[], T]) -> T:
    """Return the result of `action`; on a remote location, try again after a temporary error.

    Args:
        verb: the operation, for messages: read, write, list.
        uri: the location.
        action: may be called several times.

    Raises:
        FileNotFoundError: and similar errors, immediately, as the file system reports them.
        RefusedError: immediately if the refusal is final (no such bucket to write to, no access).
        RetriesExhaustedError: if it failed `TRIES` times.
    """
    if is_local(uri):
        return action()
    # A message must contain neither the query nor a key before the bucket.
    place = re.sub(r"//[^/@]*@", "//", uri.partition("?")[0])
    attempt = 1
    while True:
        try:
            return action()
        except OSError as error:
            if isinstance(error, (*_REFUSALS, RefusedError, RetriesExhaustedError)):
                raise
            if _REFUSED.search(str(error)):
                hint = (
                    "; the environment must have credentials with this permission"
                    if "ACCESS_DENIED" in str(error)
                    else ""
                )
                raise RefusedError(f"cannot {verb} {place}: {str(error).rstrip('.')}{hint}") from error
            if attempt >= TRIES:
                raise RetriesExhaustedError(f"cannot {verb} {place} after {TRIES} tries: {error}") from error
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1)) * random.uniform(0.5, 1)
            log(f"warning: cannot {verb} {place} (try {attempt} of {TRIES}), again in {wait:.1f} s: {error}")
        time.sleep(wait)
        attempt += 1


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the pyarrow file system of a URI and the path inside it.

    Raises:
        StorageError: if the scheme is unknown, the URI is malformed, or it contains a secret.
    """
    if is_local(uri):
        return pafs.LocalFileSystem(), os.fsdecode(local_path(uri))
    scheme, _, rest = uri.partition("://")
    address, mark, query = rest.partition("?")
    bucket, _, path = address.partition("/")
    if ":" in bucket.rpartition("@")[0]:
        raise StorageError(
            f"the address {scheme}://...@{bucket.rpartition('@')[2]} contains a key, which would be written into manifests and "
            "models; leave it out and give it through the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )
    try:
        if scheme in ("s3", "gs"):
            root = f"{scheme}://{bucket}{mark}{query}"
            fs, base = retried("reach", uri, lambda: client(root))
            return fs, "/".join([base, *filter(None, unquote(path).rstrip("/").split("/"))])
        return retried("reach", uri, lambda: pafs.FileSystem.from_uri(uri))
    except (RetriesExhaustedError, RefusedError):
        raise
    except (ValueError, OSError) as error:
        raise StorageError(f"cannot use the address {uri!r}: {error}") from error


@lru_cache(maxsize=32)
def client(root: str) -> tuple[pafs.FileSystem, str]:
    """Return the file system of a bucket; its connections are reused."""
    return pafs.FileSystem.from_uri(root)
