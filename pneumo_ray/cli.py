"""How every job begins and ends: a typed config from the command line or a file, one sentence for a mistake.

A job's config is a frozen dataclass. The values it ran with are written as JSON beside its results, and
`--config FILE` takes them back; options given beside it win.
"""

import dataclasses
import difflib
import json
import os
import signal
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from pneumo_ray import storage
from pneumo_ray.errors import ConfigError, PneumoError

Config = TypeVar("Config")


def run_job(config_type: type[Config], job: Callable[[Config], None], argv: Sequence[str] | None = None) -> None:
    """Parse the command line, run the job, and turn a `PneumoError` into one sentence and its exit code (2, or 1 for a study that failed).

    Ctrl-C ends with code 130 and SIGTERM with 143, as shells expect.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing about a hospital's runs leaves it
    end_on_sigterm()
    try:
        job(parse(config_type, sys.argv[1:] if argv is None else argv))
    except PneumoError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept, and the same command continues", file=sys.stderr, flush=True)
        sys.exit(130)
    except BaseException:
        # Where the signal comes while Ray's core is at work, it arrives as a SystemError.
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
            raise
        print("terminated; what is finished is kept, and the same command continues", file=sys.stderr, flush=True)
        sys.exit(143)


class Terminated(BaseException):
    """Someone asked the job to end: a preemption, `ray job stop`, `kill`."""


def end_on_sigterm() -> None:
    """Make SIGTERM end the job in an orderly way: an exception in the main thread, then exit code 143."""

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # asked once is enough; cleaning up takes a moment
        raise Terminated

    signal.signal(signal.SIGTERM, end)


def parse(config_type: type[Config], argv: Sequence[str]) -> Config:
    """Return the config that the command line describes.

    Raises:
        ConfigError: if a value cannot work, or the file given with `--config` cannot be used.
        SystemExit: with code 2 for words that are no options, after saying so.
    """
    words = list(argv)
    default: Any = None
    for position, word in enumerate(words):
        if word == "--config" or word.startswith("--config="):
            path = word.partition("=")[2] or (words[position + 1] if position + 1 < len(words) else "")
            del words[position : position + (1 if "=" in word else 2)]
            default = load_config(config_type, path)
            break
    description = (
        config_type.__doc__ or ""
    ) + "\n\n--config FILE takes the values of an earlier run; options beside it win."
    kwargs: dict[str, Any] = {} if default is None else {"default": default}
    return tyro.cli(config_type, args=words, description=description, prog=Path(sys.argv[0]).name, **kwargs)


def load_config(config_type: type[Config], path: str) -> Config:
    """Read a config that `save_config` wrote (or a part of one; what is missing has its default).

    Raises:
        ConfigError: if the file is missing, not JSON, or has a key that the config does not.
    """
    values = read_object("--config", path, "of options")
    try:
        return typing.cast(Config, _build(config_type, values, path))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--config {path} has a value of the wrong type: {error}") from error


def read_object(option: str, uri: str, holds: str) -> dict[str, Any]:
    """Return the JSON object in a file that an option names.

    Args:
        option: its name, for the sentence.
        uri: the file.
        holds: what the object should hold, such as `of options`, for the sentence.

    Raises:
        ConfigError: if the file is missing, not JSON, or not an object.
    """
    try:
        values = json.loads(storage.read_bytes(uri))
    except FileNotFoundError as error:
        raise ConfigError(f"{option} {uri} does not exist") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{option} {uri} is not a readable JSON file: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{option} {uri} must hold a JSON object {holds}")
    return values


def _build(kind: Any, values: dict[str, Any], path: str, prefix: str = "") -> Any:
    hints = typing.get_type_hints(kind)
    if unknown := [key for key in values if key not in hints]:
        near = difflib.get_close_matches(unknown[0], hints, n=1)
        hint = f"; did you mean {prefix}{near[0]}?" if near else ""
        raise ConfigError(f"--config {path} has the unknown option {prefix}{unknown[0]}{hint}")
    arguments: dict[str, Any] = {}
    for spec in dataclasses.fields(kind):
        if spec.name in values:
            value = values[spec.name]
            if dataclasses.is_dataclass(hints[spec.name]):
                value = _build(hints[spec.name], value, path, f"{prefix}{spec.name}.")
            elif isinstance(value, list):
                value = tuple(value)
            arguments[spec.name] = value
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            arguments[spec.name] = tyro.MISSING
    return kind(**arguments)


def save_config(config: Any, uri: str) -> None:
    """Write a config as JSON, such that `load_config` returns its equal."""
    storage.write_json(as_plain(config), uri)


def as_plain(config: Any) -> dict[str, Any]:
    """Return a config as what JSON holds."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def as_flat(config: Any) -> dict[str, Any]:
    """Return a config's options by their dotted names, as they are given on the command line (with underscores)."""
    return flatten(as_plain(config))


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested options by their dotted names."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        out |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return out
