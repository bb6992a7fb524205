"""Isolation of decoders: an image that hangs or crashes its decoder becomes a failed row and does not end the job.

Decoders are written in C: no exception ends a loop in them, and one that holds Python's lock stops every thread of its
process. So a task decodes under a watchdog that ends the whole process, and Ray starts the task again; a task that was
started again decodes every image in a child process and so finds the image. The normal case costs 40
microseconds per image.
"""

import faulthandler
import multiprocessing
import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import ParamSpec, Protocol, TypeVar

from pneumo_ray.errors import DecodeError

DECODE_SECONDS = 60.0
"""A full-size radiograph takes a hundredth of a second; the largest image that is accepted, some seconds."""

_START_SECONDS = 120.0
"""Time limit for a child process to start and import its modules on a busy machine."""

_CHILD_BYTES = 4 << 30
"""Memory that one image may take in a child process."""

P = ParamSpec("P")
T = TypeVar("T")


class DecodeTimeoutError(DecodeError):
    """Decoding took longer than the limit."""

    kind = "timeout"


class DecoderDiedError(DecodeError):
    """The process of the decoder died."""

    kind = "crash"


class Call(Protocol):
    """Calls a function that decodes."""

    def __call__(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the function returns."""


def unguarded(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in this process without a time limit."""
    return function(*args, **kwargs)


@contextmanager
def guarded(seconds: float, *, careful: bool) -> Iterator[Call]:
    """Yield a function that calls a decoder, once per image.

    Args:
        seconds: time limit of one call.
        careful: decode in a child process, where a call that exceeds the limit raises. Otherwise such a call ends
            this process; the caller must then be started again with `careful`.

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

    def watched(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        faulthandler.dump_traceback_later(seconds, exit=True, file=2)
        try:
            return function(*args, **kwargs)
        finally:
            faulthandler.cancel_dump_traceback_later()

    yield watched


class _Child:
    """A process that calls functions one after the other and is replaced if it hangs or dies."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None

    def __call__(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
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
        context = multiprocessing.get_context("spawn")  # a fork of a process with many threads may deadlock
        here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, self._seconds), name="decoder", daemon=True)
        self._process.start()
        there.close()
        self._pipe = here
        return here

    def _wait_for_word(self, pipe: Connection) -> None:
        """Wait until the child has received the call; the first time it has to start and import its modules."""
        if not pipe.poll(_START_SECONDS):
            self.end()
            raise RuntimeError(f"the decoding process did not start within {_START_SECONDS:g} s")
        pipe.recv()

    def _cause(self) -> str:
        process = self._process
        assert process is not None, "a call was sent to it"
        process.join(timeout=10)
        code = process.exitcode
        self.end()
        return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def _serve(pipe: Connection, seconds: float) -> None:
    # RLIMIT_DATA, not RLIMIT_AS: mapped libraries take gigabytes of address space.
    resource.setrlimit(resource.RLIMIT_DATA, (_CHILD_BYTES, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    while True:
        try:
            function, args, kwargs = pipe.recv()
            pipe.send(None)
        except (EOFError, ConnectionError):
            return
        # Ends a call that hangs after the parent has died.
        faulthandler.dump_traceback_later(2 * seconds + 10, exit=True, file=2)
        try:
            answer = (True, function(*args, **kwargs))
        except DecodeError as error:
            answer = (False, error)
        except Exception as error:  # a defect: report the traceback without the message, which may quote the file
            answer = (
                False,
                RuntimeError(f"{type(error).__name__} at\n{''.join(traceback.format_tb(error.__traceback__))}"),
            )
        faulthandler.cancel_dump_traceback_later()
        pipe.send(answer)
