"""SIGTERM ends a job in an orderly way."""

import signal


class Terminated(BaseException):
    """The job received SIGTERM: a preemption, `ray job stop`, `kill`."""


def end_on_sigterm() -> None:
    """Make SIGTERM end the job in an orderly way: an exception in the main thread, then exit code 143."""

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # later signals are ignored while the job cleans up
        raise Terminated

    signal.signal(signal.SIGTERM, end)
