"""Start and end of every job: signals, exit codes, and one sentence for what a user can mend."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import UnionType

from pneumo_ray.config import Config, parse
from pneumo_ray.errors import PneumoError


def run_job(
    config_type: type[Config] | UnionType, job: Callable[[Config], None], argv: Sequence[str] | None = None
) -> None:
    """Parse the command line, run the job, and turn a `PneumoError` into one sentence and its exit code (2, or 1 for a study that failed).

    Ctrl-C ends with code 130 and SIGTERM with 143, as shells expect.

    Args:
        config_type: a config, or a union of those of sub-commands (`parse`).
        job: what to run.
        argv: the command line; None for that of the process.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage statistics leave the hospital
    end_on_sigterm()
    try:
        job(parse(config_type, sys.argv[1:] if argv is None else argv))
    except PneumoError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; finished work is kept, and the same command continues", file=sys.stderr, flush=True)
        sys.exit(130)
    except BaseException as error:
        # A signal that arrives inside Ray's core is raised as a SystemError.
        if signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
            print("terminated; finished work is kept, and the same command continues", file=sys.stderr, flush=True)
            sys.exit(143)
        if (death := _death_in(error)) is None:
            raise
        print(f"error: {death}; finished work is kept, and the same command continues", file=sys.stderr, flush=True)
        sys.exit(PneumoError.exit_code)


def _death_in(error: BaseException) -> str | None:
    """Return how Ray has lost a process on which the job depends, if an error or one of its causes says so.

    Workers that die are started again; this is about those beside them, such as the controller of Ray Train.
    """
    if "ray" not in sys.modules:
        return None
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError

    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OutOfMemoryError):
            return "the memory of a node was full, and Ray ended processes of this job"
        if isinstance(found, NodeDiedError):
            return "a node of the cluster is gone"
        # One that cannot begin has an error of its own, whose traceback says which.
        if isinstance(found, WorkerCrashedError) or (isinstance(found, RayActorError) and not found.actor_init_failed):
            return "a process that leads this job has died"
        found = found.__cause__
    return None


class Terminated(BaseException):
    """The job received SIGTERM: a preemption, `ray job stop`, `kill`."""


def end_on_sigterm() -> None:
    """Make SIGTERM end the job in an orderly way: an exception in the main thread, then exit code 143."""

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # later signals are ignored while the job cleans up
        raise Terminated

    signal.signal(signal.SIGTERM, end)
