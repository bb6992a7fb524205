"""One job a folder: a small file with a heartbeat that a second job sees, and that a killed job cannot leave for ever."""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pneumo_ray import storage
from pneumo_ray.errors import StorageError

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 30.0
"""A lock of another machine counts as left behind when its heartbeat is older than this."""


class FolderInUseError(StorageError):
    """Another job is writing into the folder."""


@contextmanager
def folder_lock(uri: str) -> Iterator[None]:
    """Hold the lock file `uri` while the block runs.

    A lock whose process is gone from this machine is taken over at once, any other after `STALE_SECONDS` without a
    heartbeat.

    Raises:
        FolderInUseError: saying who holds it.
    """
    token = uuid.uuid4().hex
    _refuse_living(uri, token)
    _beat(uri, token)
    time.sleep(0.2)  # of two jobs that start at once, the one whose lock was overwritten gives way
    _refuse_living(uri, token)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            # A disk that is full for a moment must not end the job; the next beat tries again.
            try:
                if _holder(uri) in (None, token):
                    _beat(uri, token)
            except StorageError:
                continue

    thread = threading.Thread(target=beat, name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if _holder(uri) == token:
            storage.remove(uri)


def _host() -> str:
    """Return the name of this machine and of its space of process numbers: containers may share the former."""
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        space = 0
    return f"{socket.gethostname()}/{space}"


def _holder(uri: str) -> str | None:
    try:
        return str(json.loads(storage.read_bytes(uri))["token"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _beat(uri: str, token: str) -> None:
    text = json.dumps({"token": token, "host": _host(), "pid": os.getpid(), "time": time.time()})
    storage.write_bytes(uri, text.encode())


def _refuse_living(uri: str, token: str) -> None:
    try:
        found: dict[str, Any] = json.loads(storage.read_bytes(uri))
        same_host = found["host"] == _host()
        alive = time.time() - found["time"] < STALE_SECONDS and (not same_host or _is_running(int(found["pid"])))
    except (OSError, ValueError, KeyError, TypeError):
        return
    if found["token"] != token and alive:
        raise FolderInUseError(
            f"another job (process {found['pid']} on {found['host']}) is writing into the folder of {uri}; wait for it, or choose another --out"
        )


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
