"""Values of a YAML file to frozen dataclasses and back: every key known, every value of its field's type, or an error.

Nested dataclasses are sections. What a field's type cannot say, its class checks itself.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from rszoo import fields
from rszoo.arch.config import ArchConfig
from rszoo.errors import ConfigError, nearest

_T = TypeVar("_T")


def override_value(values: dict[str, Any], override: str, cls: type) -> None:
    """Set a value as `train.batch_size=1024` says, in the YAML values of a `cls`.

    Raises:
        ConfigError: it is of another form, or its key stands in a section that it does not name.
    """
    key, equals, text = override.partition("=")
    *sections, name = key.strip().split(".")
    if not equals or not name:
        raise ConfigError(f"an override must look like train.batch_size=1024, received {override!r}")
    if not sections and (likely := _places(name, cls)):
        raise ConfigError(f"{override!r} does not say of which section; did you mean {' or '.join(likely)}?")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"cannot read the value of {override!r}: {error}") from error
    place = values
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise ConfigError(f"{override!r}: {section} is a value, not a section")
    place[name] = value


def _places(name: str, cls: type) -> list[str]:
    """Return where a name stands that is in sections of a class, but not in the class itself."""
    hints = get_type_hints(cls)
    sections = [section for section, hint in hints.items() if name in getattr(hint, "__dataclass_fields__", ())]
    return [] if name in hints else [f"{section}.{name}" for section in sections]


def build(cls: type[_T], values: object, where: str = "") -> _T:
    """Build a dataclass from YAML values; `where` is its section, for error texts.

    Raises:
        ConfigError: a key is unknown or missing, or a value impossible.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'a recipe'} must be a section with keys, received {values!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            likely = nearest(str(key), fields) or list(fields)
            raise ConfigError(f"unknown key {_dotted(where, key)!r}; did you mean {', '.join(likely)}?")
    if missing := [name for name, field in fields.items() if _is_required(field) and name not in values]:
        raise ConfigError(f"{_dotted(where, missing[0])} is missing")
    hints = get_type_hints(cls)
    return cls(**{key: _value(hints[key], value, _dotted(where, key)) for key, value in values.items()})


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _value(hint: Any, value: Any, where: str) -> Any:
    """Check a YAML value against a field's type; whole numbers do as numbers, lists become tuples."""
    if hint is ArchConfig:
        return fields.build(ArchConfig, value, where, number_texts=True)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)  # type: ignore[arg-type]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where} must be {' or '.join(args)}, received {value!r}")
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else _value(next(arg for arg in args if arg is not types.NoneType), value, where)
    if origin is tuple:
        return _tuple(args, value, where)
    # YAML reads 4e-5, without a point, as a text.
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            value = float(value)
        except ValueError as error:
            raise ConfigError(f"{where} must be a number, received {value!r}") from error
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)) or value != value:
        kinds = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
        raise ConfigError(f"{where} must be {kinds[hint]}, received {value!r}")
    return value


def _tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)) or (args[-1] is not Ellipsis and len(value) != len(args)):
        count = "values" if args[-1] is Ellipsis else f"{len(args)} values"
        raise ConfigError(f"{where} must be a list of {count}, received {value!r}")
    return tuple(_value(args[0], item, where) for item in value)


def plain(value: Any) -> Any:
    """Return a value of a dataclass as YAML and JSON have it: sections for dataclasses, lists for tuples."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def _dotted(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)
