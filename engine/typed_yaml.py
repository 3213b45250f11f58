"""YAML as frozen dataclasses: unknown keys, wrong types and impossible values are refused with the file and the key.

A dataclass's `check` method calls `require` for what its types do not say.
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml


class ConfigError(ValueError):
    """A configuration that cannot be used: names the file, the key, and what is wrong."""


class ImpossibleValue(Exception):
    """A value of the right type that cannot be used; `build` adds the file and the section's name."""

    def __init__(self, key: str, why: str):
        super().__init__(key, why)
        self.key, self.why = key, why


def require(condition: bool, key: str, why: str) -> None:
    """Raise `ImpossibleValue` for a section's ``key`` unless the condition holds."""
    if not condition:
        raise ImpossibleValue(key, why)


def read_yaml(path: Path) -> dict:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or holds something else.
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not text in UTF-8 ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold sections (model, data, …), not {type(content).__name__}")
    return content


def parse_yaml(text: str, where: str) -> object:
    """The value of a YAML text; ConfigError, beginning with ``where``, for text that is not YAML."""
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise ConfigError(f"{where}: not valid YAML: nested too deep") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: 2020-99-99, or a number of 5000 digits
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error


class _Loader(yaml.SafeLoader):
    """Refuses a mapping that has a key twice, of which PyYAML keeps the last."""

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        keys = set()
        for key, _ in node.value:
            if (key.tag, repr(key.value)) in keys:
                raise yaml.composer.ComposerError(None, None, f"{key.value} is given twice", key.start_mark)
            keys.add((key.tag, repr(key.value)))
        return node


def build(cls: type, content: object, source: str, prefix: str = "", origins: Mapping[str, str] | None = None):
    """An instance of the dataclass ``cls`` from a mapping, dataclasses among its fields from nested mappings.

    Args:
        source: the file, for messages.
        prefix: the name of the section within the file, for messages.
        origins: where single keys (``section.key``) came from instead of the file.

    Raises:
        ConfigError: for the first key that is unknown, missing, of another type or impossible.
    """
    origins = origins or {}
    if not isinstance(content, dict):
        raise ConfigError(f"{source}: {prefix or 'top level'}: must be a section of keys, not {_shown(content)}")
    types, values = typing.get_type_hints(cls), {}
    for key, value in content.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        where = f"{origins.get(name, source)}: {name}"
        if key not in types:
            raise ConfigError(f"{where}: unknown key{suggest(str(key), types)}")
        if dataclasses.is_dataclass(types[key]):
            values[key] = build(types[key], value, source, name, origins)
        else:
            values[key] = _convert(value, types[key], where)
    for field in dataclasses.fields(cls):
        if field.name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{source}: {f'{prefix}.' if prefix else ''}{field.name}: must be given")
    section = cls(**values)
    try:
        if hasattr(section, "check"):
            section.check()
    except ImpossibleValue as error:
        name = f"{prefix}.{error.key}"
        value = _shown(getattr(section, error.key))
        raise ConfigError(f"{origins.get(name, source)}: {name}: {error.why}, not {value}") from None
    return section


def suggest(key: str, known: Iterable[str]) -> str:
    """The end of a message on an unknown key: the nearest one, or all."""
    close = difflib.get_close_matches(key, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else f"; choose one of {', '.join(known)}"


def _convert(value: object, wanted: typing.Any, where: str) -> object:
    """``value`` as the annotated type ``wanted``; only text is converted, to a number: PyYAML reads 1e-4 as text."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is typing.Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{where}: must be one of {', '.join(map(str, arguments))}, not {_shown(value)}")
    if origin is tuple:
        if isinstance(value, (list, tuple)) and len(value) == len(arguments):
            return tuple(_convert(item, kind, where) for item, kind in zip(value, arguments, strict=True))
    elif origin is dict:
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {key: _convert(item, arguments[1], f"{where}.{key}") for key, item in value.items()}
    elif arguments:  # a union
        for kind in arguments:
            try:
                return _convert(value, kind, where)
            except ConfigError:
                continue
    elif wanted is float:
        if (number := _number(value)) is not None:
            return number
    elif isinstance(value, wanted) and (wanted is not int or not isinstance(value, bool)):
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ConfigError(f"{where}: must be below 2^63, not {_shown(value)}")
        return value
    raise ConfigError(f"{where}: must be {_describe(wanted)}, not {_shown(value)}")


def _number(value: object) -> float | None:
    """A finite number, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):  # text; a whole number of 309 digits
        return None
    return number if math.isfinite(number) else None


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of more than 4300 digits
        text = "a longer number"
    return text if len(text) <= 100 else f"{text[:100]}…"


def _describe(kind: typing.Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return " or ".join(map(str, arguments))
    if origin is tuple:
        return f"a list of {len(arguments)}"
    if origin is dict:
        return "a mapping of names to numbers"
    if arguments:
        return " or ".join(_describe(argument) for argument in arguments)
    return {int: "a whole number", float: "a finite number", str: "text", bool: "true or false", type(None): "null"}[
        kind
    ]
