"""An image that hangs or kills its decoder costs its own row, not the job.

Decoders are written in C: no exception ends a loop in one, and one that holds Python's lock stops every thread of its
process. So a task decodes under a watchdog that ends the whole process, and Ray starts the task again; a task that was
started again decodes every image in a child process, and learns there which one it is. The common case costs 40
microseconds an image.
"""

import faulthandler
import multiprocessing
import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Protocol, TypeVar

from pneumo_ray.errors import DecodeError

DECODE_SECONDS = 60.0
"""A full-size radiograph takes a hundredth of a second; the largest image that is accepted, some seconds."""

_START_SECONDS = 120.0
"""Until a child process has imported what it needs, on a machine that is busy."""

_CHILD_BYTES = 4 << 30
"""Memory that one image may take in a child process."""

T = TypeVar("T")


class DecodeTimeoutError(DecodeError):
    """An image whose decoder did not come back."""

    kind = "timeout"


class DecoderDiedError(DecodeError):
    """An image that ended the process of its decoder."""

    kind = "crash"


class Call(Protocol):
    """Calls a function that decodes."""

    def __call__(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Return what the function returns."""


def unguarded(function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Call a function in this process, for as long as it takes."""
    return function(*args, **kwargs)


@contextmanager
def guarded(seconds: float, *, careful: bool) -> Iterator[Call]:
    """Yield what decodes images, one call an image.

    Args:
        seconds: that one call may take.
        careful: decode in a child process, where a call that fails to come back raises. Otherwise such a call ends
            this process, which is only for one that somebody starts again, with `careful`.

    Raises:
        DecodeTimeoutError: by a careful call that took longer.
        DecoderDiedError: by a careful call whose process died, for example of a memory error.
    """
    if careful:
        child = _Child(seconds)
        try:
            yield child
        finally:
            child.end()
        return

    def watched(function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        faulthandler.dump_traceback_later(seconds, exit=True, file=2)
        try:
            return function(*args, **kwargs)
        finally:
            faulthandler.cancel_dump_traceback_later()

    yield watched


class _Child:
    """A process that calls functions one after the other, and is replaced where it hangs or dies."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._process: Any = None
        self._pipe: Connection | None = None

    def __call__(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        pipe = self._pipe or self._start()
        try:
            pipe.send((function, args, kwargs))
            self._wait_for_word(pipe)
            if not pipe.poll(self._seconds):
                self.end()
                raise DecodeTimeoutError(
                    f"decoding took longer than {self._seconds:g} s; look at the file, or raise --decode-seconds"
                )
            fine, result = pipe.recv()
        except (EOFError, ConnectionError):
            raise DecoderDiedError(f"the decoder died ({self._cause()}); look at the file") from None
        if fine:
            answer: T = result
            return answer
        raise result

    def end(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = self._pipe = None

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")  # a fork of a process with many threads may hang by itself
        here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, self._seconds), name="decoder", daemon=True)
        self._process.start()
        there.close()
        self._pipe = here
        return here

    def _wait_for_word(self, pipe: Connection) -> None:
        """Wait until the child knows what to do: the first time it has to start, and to import what it needs."""
        if not pipe.poll(_START_SECONDS):
            self.end()
            raise RuntimeError(f"a process to decode in did not start within {_START_SECONDS:g} s")
        pipe.recv()

    def _cause(self) -> str:
        process = self._process
        process.join(timeout=10)
        code = process.exitcode
        self.end()
        return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def _serve(pipe: Connection, seconds: float) -> None:
    # Data, not address space: the libraries that are mapped here take gigabytes of the latter.
    resource.setrlimit(resource.RLIMIT_DATA, (_CHILD_BYTES, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    while True:
        try:
            function, args, kwargs = pipe.recv()
            pipe.send(None)
        except (EOFError, ConnectionError):
            return
        # Should the parent be gone, nobody else ends a call that does not come back.
        faulthandler.dump_traceback_later(2 * seconds + 10, exit=True, file=2)
        try:
            answer = (True, function(*args, **kwargs))
        except DecodeError as error:
            answer = (False, error)
        except Exception as error:  # a bug; where it is, without what it says, which may quote the file
            answer = (
                False,
                RuntimeError(f"{type(error).__name__} at\n{''.join(traceback.format_tb(error.__traceback__))}"),
            )
        faulthandler.cancel_dump_traceback_later()
        pipe.send(answer)
