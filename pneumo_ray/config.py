"""A typed config from the command line or a file, and one sentence for a mistake in it.

A job's config is a frozen dataclass. The values it ran with are written as JSON beside its results, and
`--config FILE` reads them back; options on the command line take precedence.

Every config module imports this one, and `--help` imports nothing else: only the standard library stands at its top.
"""

import dataclasses
import difflib
import functools
import json
import operator
import sys
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar

from pneumo_ray.errors import ConfigError
from pneumo_ray.records import JsonObject


class Dataclass(typing.Protocol):
    """An instance of any dataclass."""

    __dataclass_fields__: typing.ClassVar[dict[str, dataclasses.Field[Any]]]


Config = TypeVar("Config", bound=Dataclass)


@typing.runtime_checkable
class HasPresets(typing.Protocol):
    """A config class whose defaults depend on other options."""

    @classmethod
    def unless_given(cls) -> Mapping[str, str]:
        """Return options, by dotted names, that a command line without --config has where it does not name them.

        A file that lacks them is of a version that had the class's own defaults.
        """
        ...

    @classmethod
    def presets(cls, given: Mapping[str, object]) -> JsonObject:
        """Return the defaults, by dotted names, that follow from the options given."""
        ...


Amp = Literal["auto", "bf16", "fp16", "off"]
"""Mixed precision: auto takes bfloat16 if the device supports it, otherwise float16 on a GPU, otherwise none."""

Allocator = Literal["jemalloc", "system"]
"""Memory allocator of processes that compute on a CPU: jemalloc where there is one, or that of the system."""

CountRange = int | tuple[int, int]
"""A number of processes, or the fewest and the most of them."""


def count_range(count: CountRange) -> tuple[int, int]:
    """Return the fewest and the most processes that a count allows."""
    return (count, count) if isinstance(count, int) else count


def require(holds: bool, sentence: str) -> None:
    """Refuse a value of a config.

    Args:
        holds: whether the value can work.
        sentence: names the option and says what it must be.

    Raises:
        ConfigError: with the sentence, if it does not hold.
    """
    if not holds:
        raise ConfigError(sentence)


def require_one_of(option: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a word that is none of an option's choices.

    Raises:
        ConfigError: naming the choices.
    """
    require(value in choices, f"{option} must be one of {', '.join(choices)}, got {value!r}")


def require_split(split: str) -> None:
    """Refuse a name that is no split.

    Raises:
        ConfigError: if it is none of the three splits, nor `all` of the images.
    """
    require(split in ("train", "val", "test", "all"), f"split must be train, val, test or all, got {split!r}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a sentence that names the known word nearest to `word`, or nothing if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    return f"; did you mean {near[0]}?" if near else ""


def sub_commands(config_type: object) -> dict[str, type[Any]]:
    """Return the configs of a union by the words that choose them: `QueueConfig` by `queue`; none of a single config."""
    kinds = typing.get_args(config_type) if isinstance(config_type, UnionType) else ()
    return {kind.__name__.removesuffix("Config").lower(): kind for kind in kinds}


def parse(config_type: type[Config] | UnionType, argv: Sequence[str]) -> Config:
    """Return the config that the command line describes.

    Of a union, the first word chooses a config (`sub_commands`).

    A config class with a method `presets` has defaults that depend on other options, such as a recipe. An option of the
    command line wins over a preset named there, that over the file of --config, and that over a preset named in the file.

    Raises:
        ConfigError: if a value cannot work, or the file given with `--config` cannot be used.
        SystemExit: with code 2 for an unknown option, after an error message.
    """
    import tyro

    words = list(argv)
    prog = Path(sys.argv[0]).name
    if commands := sub_commands(config_type):
        if not words or words[0] not in commands:
            named = [typing.Annotated[kind, tyro.conf.subcommand(name)] for name, kind in commands.items()]
            union: Any = functools.reduce(operator.or_, named)
            return tyro.cli(union, args=words, prog=prog)  # ends with --help or the sentence of a mistake
        config_type, prog, words = commands[words[0]], f"{prog} {words[0]}", words[1:]
    assert isinstance(config_type, type)
    values: JsonObject = {}
    path = ""
    for position, word in enumerate(words):
        if word == "--config" or word.startswith("--config="):
            path = word.partition("=")[2] or (words[position + 1] if position + 1 < len(words) else "")
            del words[position : position + (1 if "=" in word else 2)]
            values = read_object("--config", path, "of options")
            break
    description = (
        config_type.__doc__ or ""
    ) + "\n\n--config FILE reads the options of an earlier run; options on the command line take precedence."
    kwargs: JsonObject = {}
    given = given_words(words)
    if issubclass(config_type, HasPresets):
        given = ({} if path else dict(config_type.unless_given())) | given
    if values or issubclass(config_type, HasPresets):
        kwargs["default"] = _config(config_type, values, path, given)
    return tyro.cli(config_type, args=words, description=description, prog=prog, **kwargs)


def given_words(words: Sequence[str]) -> dict[str, str]:
    """Return the options of a command line that have one word, by dotted names with underscores; a later one wins."""
    given: dict[str, str] = {}
    for position, word in enumerate(words):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            following = words[position + 1] if position + 1 < len(words) else "--"
            if equals or not following.startswith("--"):
                given[name.replace("-", "_")] = value if equals else following
    return given


def load_config(config_type: type[Config], path: str) -> Config:
    """Read a config that `save_config` wrote (or a part of one; missing options have their defaults).

    Raises:
        ConfigError: if the file is missing, not JSON, or has a key that the config does not.
    """
    return _config(config_type, read_object("--config", path, "of options"), path, {})


def config_from(config_type: type[Config], options: JsonObject) -> Config:
    """Build a config from options by their dotted names, with the presets that they choose, such as those of a recipe.

    Raises:
        ConfigError: if an option is unknown or a value cannot work.
    """
    return _config(config_type, nested(options), "", {})


def _config(config_type: type[Config], values: JsonObject, path: str, words: dict[str, str]) -> Config:
    """Build a config from a file and the presets that it and the command line choose.

    Args:
        config_type: what to build.
        values: of the file; empty without one.
        path: of the file, for sentences.
        words: options of the command line, of which only those count here that choose presets.
    """
    try:
        if issubclass(config_type, HasPresets):
            of_file = flatten(values)
            values = nested(
                config_type.presets(of_file) | of_file | moved_presets(config_type, of_file, of_file | words)
            )
        return _build(config_type, values, path)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--config {path} has a value of the wrong type: {error}") from error


def moved_presets(config_type: type[HasPresets], before: JsonObject, after: JsonObject) -> JsonObject:
    """Return the presets that differ between two sets of given options, as they are after the second.

    Args:
        config_type: a config class with a method `presets`.
        before: options by dotted names.
        after: the same with some changed.
    """
    old, new = config_type.presets(before), config_type.presets(after)
    return {option: value for option, value in new.items() if old.get(option) != value}


def read_object(option: str, uri: str, holds: str) -> JsonObject:
    """Return the JSON object in a file that an option names.

    Args:
        option: its name, for the error message.
        uri: the file.
        holds: what the object should hold, such as `of options`, for the error message.

    Raises:
        ConfigError: if the file is missing, not JSON, or not an object.
    """
    values = read_json(option, uri)
    if not isinstance(values, dict):
        raise ConfigError(f"{option} {uri} must hold a JSON object {holds}")
    return values


def read_json(option: str, uri: str) -> object:
    """Return what the JSON file holds that an option names; arguments and errors as `read_object`."""
    from pneumo_ray import storage

    try:
        return json.loads(storage.read_bytes(uri))
    except FileNotFoundError as error:
        raise ConfigError(f"{option} {uri} does not exist") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{option} {uri} is not a readable JSON file: {error}") from error


def _build(kind: type[Config], values: JsonObject, path: str, prefix: str = "") -> Config:
    import tyro

    hints = typing.get_type_hints(kind)
    if unknown := [key for key in values if key not in hints]:
        hint = did_you_mean(prefix + unknown[0], [prefix + name for name in hints])
        raise ConfigError(f"--config {path} has the unknown option {prefix}{unknown[0]}{hint}")
    arguments: JsonObject = {}
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


def save_config(config: Dataclass, uri: str) -> None:
    """Write a config as JSON; `load_config` returns an equal config."""
    from pneumo_ray import storage

    storage.write_json(as_plain(config), uri)


def as_plain(config: Dataclass) -> JsonObject:
    """Return a config as plain JSON values."""
    plain: JsonObject = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def as_flat(config: Dataclass) -> JsonObject:
    """Return a config's options by their dotted names, as they are given on the command line (with underscores)."""
    return flatten(as_plain(config))


def flatten(values: JsonObject, prefix: str = "") -> JsonObject:
    """Return nested options by their dotted names."""
    out: JsonObject = {}
    for name, value in values.items():
        out |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return out


def nested(options: JsonObject) -> JsonObject:
    """Return options with dotted names as nested ones: what `flatten` undoes.

    Raises:
        TypeError: if an option is both a value and a group.
    """
    out: JsonObject = {}
    for name, value in options.items():
        *groups, last = name.split(".")
        inner = out
        for group in groups:
            inner = inner.setdefault(group, {})
            if not isinstance(inner, dict):
                raise TypeError(f"{group} is a group of options, got {inner!r}")
        inner[last] = value
    return out
