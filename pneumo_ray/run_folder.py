"""One folder, one job: a lock against a second job, and a record that decides whether a command continues or is refused."""

import json
import os
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from pneumo_ray import storage
from pneumo_ray.errors import ConfigError, StorageError
from pneumo_ray.records import JsonObject

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 30.0
"""Age of the heartbeat at which a lock of another machine is abandoned."""


class FolderInUseError(StorageError):
    """Another job is writing into the folder."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of a training, a study or a scoring job, and the JSON file in it that identifies the job."""

    out: str
    """The folder, absolute."""
    record: str
    """Name of the file below it; the lock lies beside that file."""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Prove that the folder can be written, and keep other jobs out of it while the block runs.

        Raises:
            FolderInUseError: if another job writes into it.
            StorageError: if it cannot be written.
        """
        storage.require_writable(self.out)
        with folder_lock(storage.join(storage.parent(self.uri), "lock.json")):
            yield

    @property
    def uri(self) -> str:
        """Where the record is."""
        return storage.join(self.out, *self.record.split("/"))

    def read(self, required: Collection[str] = ()) -> JsonObject | None:
        """Return the record, or None where no job has begun.

        Args:
            required: keys without which it is damaged.

        Raises:
            StorageError: if it is damaged.
        """
        try:
            found = json.loads(storage.read_bytes(self.uri))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict) or not set(required) <= found.keys():
            raise StorageError(
                f"{self.uri} is damaged, so the job that these results belong to is unknown; choose another --out"
            )
        return found

    def write(self, record: Mapping[str, object]) -> None:
        """Write the record."""
        storage.write_json(record, self.uri)

    def refuse_other(self, what: str, before: object, now: object) -> None:
        """Refuse to continue with something else than the job began with.

        Args:
            what: the sentence's object, such as "the scores of another model".
            before: what the record says.
            now: what the command asks for.

        Raises:
            ConfigError: if they differ.
        """
        if before != now:
            raise ConfigError(f"{self.out} holds {what}; choose another --out")

    def refuse_other_options(
        self, before: Mapping[str, object], now: Mapping[str, object], *, free: Collection[str] = ()
    ) -> None:
        """Refuse to continue with other options; one that the record does not know counts as equal.

        Args:
            before: dotted names and values of the record.
            now: of the command.
            free: options, or groups of them, that may change.

        Raises:
            ConfigError: naming the first that differs.
        """
        for name, value in now.items():
            if name.split(".")[0] not in free and before.get(name, value) != value:
                raise ConfigError(
                    f"{self.out} was begun with {name} {before[name]} and not {value}; choose another --out, or repeat "
                    "its command to continue it"
                )


def salt_of(out: str) -> bytes:
    """Return the salt of a run's folder, generated once; without one the hashes of identifiers could be found by trial.

    Raises:
        StorageError: if it cannot be written.
    """
    path = storage.join(out, ".salt")
    if not storage.exists(path):
        storage.write_bytes(path, secrets.token_bytes(32))
        if storage.is_local(path):
            os.chmod(path, 0o600)
    return storage.read_bytes(path)


@contextmanager
def folder_lock(uri: str) -> Iterator[None]:
    """Hold the lock file `uri` while the block runs.

    A lock whose process is gone from this machine is taken over at once, any other after `STALE_SECONDS` without a
    heartbeat.

    Raises:
        FolderInUseError: naming the process that holds it.
    """
    token = uuid.uuid4().hex
    _refuse_living(uri, token)
    _beat(uri, token)
    time.sleep(0.2)  # of two jobs that start at the same time, the one whose lock was overwritten is refused
    _refuse_living(uri, token)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            # A temporarily full disk must not end the job; the next heartbeat tries again.
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


def host_name() -> str:
    """Return the host name and the PID namespace, because containers may share a host name."""
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
    text = json.dumps({"token": token, "host": host_name(), "pid": os.getpid(), "time": time.time()})
    storage.write_bytes(uri, text.encode())


def _refuse_living(uri: str, token: str) -> None:
    try:
        found: JsonObject = json.loads(storage.read_bytes(uri))
        same_host = found["host"] == host_name()
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
