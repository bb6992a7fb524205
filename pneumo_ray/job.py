"""Start and end of every job: exit codes, and one sentence for what a user can mend."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import UnionType

from pneumo_ray.config import Config, parse
from pneumo_ray.errors import PneumoError
from pneumo_ray.signals import end_on_sigterm


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
        if (death := _death_in_ray(error)) is None:
            raise
        print(f"error: {death}; finished work is kept, and the same command continues", file=sys.stderr, flush=True)
        sys.exit(PneumoError.exit_code)


def _death_in_ray(error: BaseException) -> str | None:
    """Return how Ray has lost a process on which the job depends; None for another error, or without Ray."""
    if "ray" not in sys.modules:
        return None
    from pneumo_ray.ray_cluster import death_in

    return death_in(error)
