"""Checked dataclasses from the values of a JSON or YAML file, and back.

Every key must be known and every value of its field's type: bool, int, float, str, Literal, None, Any, tuple, Mapping,
another dataclass (a section of the file), or a union of these. Lists become tuples, whole numbers do as numbers; a bool
is no number, and neither is NaN or infinity. Errors name the key with all of its sections, what was received, and what
was allowed. What a type cannot say, a class checks in its `__post_init__`, with the functions of
`rszoo.schema.limits`.

A class with shorthand in its files has `expand_shorthand(values)`, which returns the values by the fields' names.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from rszoo.errors import ConfigError, NewerFormatError, nearest
from rszoo.schema.limits import WRITABLE, is_a, is_writable, require, shown
from rszoo.version import __version__

_T = TypeVar("_T")
_ONE: dict[Any, str] = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
_MANY: dict[Any, str] = {int: "whole numbers", float: "numbers", str: "texts"}


def build(cls: type[_T], values: object, where: str = "", *, number_texts: bool = False) -> _T:
    """Build a dataclass from the values of a file.

    Args:
        cls: the dataclass.
        values: a mapping by the fields' names.
        where: the key of this section in the file, for error texts; empty for the whole file.
        number_texts: take a text such as "4e-5" for a number; YAML reads that as a text, for it has no point.

    Raises:
        ConfigError: a key is unknown or missing, or a value impossible.
    """
    section = _as_section(values, where or "the file")
    # mypy does not see that a class has a hash.
    types_of, required = _fields(cls)  # type: ignore[arg-type]
    try:
        section = getattr(cls, "expand_shorthand", dict)(section)
    except ConfigError as error:
        raise ConfigError(_placed(str(error), where, types_of)) from error
    for key in section:
        if key not in types_of:
            raise ConfigError(_unknown(_dotted(where, key), nearest(str(key), types_of), list(types_of)))
    if missing := [name for name in required if name not in section]:
        raise ConfigError(f"{_dotted(where, missing[0])} is missing")
    built = {key: _value(types_of[key], section[key], _dotted(where, key), number_texts) for key in section}
    try:
        return cls(**built)
    except ConfigError as error:
        raise ConfigError(_placed(str(error), where, types_of)) from error


def pick(cls: Any, values: object, where: str = "") -> dict[str, Any]:
    """Return those of a file's values that a dataclass has, for files that hold more than the class reads.

    Raises:
        ConfigError: the values are no section.
    """
    section = _as_section(values, where or "the file")
    return {name: section[name] for name in _fields(cls)[0] if name in section}


def plain(value: Any) -> Any:
    """Return a value as JSON and YAML have it: a section for a dataclass, a list for a tuple."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def parse_json(text: str | bytes) -> Any:
    """Return the values of a JSON text.

    Raises:
        ConfigError: it is not JSON, or nested too deep.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"it is not JSON: {error}") from error


def check_format(values: object, version: int, where: object, *, key: str = "format_version") -> Mapping[str, Any]:
    """Check the version of a file's format, and return its other values.

    Args:
        values: what the file says.
        version: the one that is read.
        where: the file, for error texts.
        key: which value is the version.

    Raises:
        NewerFormatError: a newer rszoo wrote the file; the text names the one to install.
        ConfigError: the values are no section, or the version is none that any rszoo writes.
    """
    section = {**_as_section(values, "the file")}
    found = section.pop(key, None)
    if isinstance(found, int) and not isinstance(found, bool) and found > version:
        writer = _writer(section)
        by, wanted = (f"rszoo {writer}", f"'rszoo>={writer}'") if writer else ("a newer rszoo", "rszoo")
        raise NewerFormatError(
            f"{where} has {key} {found}, written by {by}; this is rszoo {__version__}, which reads {version}: "
            f"pip install -U {wanted}"
        )
    if found != version or type(found) is not int:
        raise ConfigError(f"{key} must be {version}, received {shown(found)}")
    return section


def check_fields(instance: Any) -> None:
    """Check the fields of a dataclass against their types, for one that users build in Python; lists become tuples.

    Raises:
        ConfigError: a value is of another type.
    """
    for name, hint in _fields(type(instance))[0].items():  # type: ignore[arg-type]
        object.__setattr__(instance, name, _value(hint, getattr(instance, name), name, False))


def _writer(section: Mapping[str, Any]) -> str | None:
    """Return the version of rszoo that a file says wrote it; None if it does not, or says no version."""
    versions = section.get("versions")
    for text in (
        section.get("rszoo_version"),
        section.get("converter"),
        section.get("rszoo"),
        versions.get("rszoo") if isinstance(versions, Mapping) else None,
    ):
        # It becomes part of a command to type.
        if match := re.fullmatch(r"(?:rszoo )?(\d{1,9}(?:\.\w{1,9}){0,4})", str(text), re.ASCII):
            return match[1]
    return None


@functools.cache
def _fields(cls: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the types of a dataclass's fields by name, and the names of those without a default."""
    fields = [field for field in dataclasses.fields(cls) if field.init]
    hints = get_type_hints(cls)
    required = [field.name for field in fields if field.default is field.default_factory is dataclasses.MISSING]
    return {field.name: hints[field.name] for field in fields}, required


def _value(hint: Any, value: Any, where: str, number_texts: bool) -> Any:
    """Check a value against a field's type, and return it as the field has it."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        return value
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, where, number_texts=number_texts)  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):
        return _union(args, value, where, number_texts)
    if origin is tuple:
        return _tuple(args, value, where, number_texts)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        section = _as_section(value, where)
        return {key: _value(args[1], item, _dotted(where, key), number_texts) for key, item in section.items()}
    if hint is float:
        value = _number(value, number_texts)
    kind = WRITABLE if hint is str and isinstance(value, str) else _kind(hint)
    require(value in args if origin is Literal else is_a(value, hint), where, kind, value)
    return value


def _number(value: Any, number_texts: bool) -> Any:
    """Return a value as a float if it is a number; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str) if number_texts else (int, float)):
        return value
    try:
        return float(value)
    except (ValueError, OverflowError):
        return value


def _union(args: tuple[Any, ...], value: Any, where: str, number_texts: bool) -> Any:
    arms = [arg for arg in args if arg is not types.NoneType]
    if value is None and len(arms) < len(args):
        return None
    if isinstance(value, (list, tuple)):
        # Of lists of several lengths, the one of this length says what is wrong with an item.
        arms = [arm for arm in arms if get_origin(arm) is tuple and len(get_args(arm)) == len(value)] or arms
    if len(arms) == 1:
        return _value(arms[0], value, where, number_texts)
    for arm in arms:
        try:
            return _value(arm, value, where, number_texts)
        except ConfigError:
            continue
    raise ConfigError(f"{where} must be {' or '.join(map(_kind, args))}, received {shown(value)}")


def _tuple(args: tuple[Any, ...], value: Any, where: str, number_texts: bool) -> tuple[Any, ...]:
    items = () if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable) else tuple(value)
    open_ended = args[-1] is Ellipsis
    wanted = (args[0],) * len(items) if open_ended else args
    if len(items) != len(wanted) or (not items and not isinstance(value, (list, tuple))):
        raise ConfigError(f"{where} must be {_kind_of_tuple(args)}, received {shown(value)}")
    if wanted and set(wanted) == {str} and set(map(type, items)) == {str} and is_writable("".join(items)):
        # At once: a folder's thousand class names are checked whenever it is opened.
        return items
    numbered = enumerate(zip(wanted, items, strict=True))
    return tuple(_value(hint, item, f"{where}[{index}]", number_texts) for index, (hint, item) in numbered)


def _kind(hint: Any) -> str:
    """Return a field's type in words."""
    if hint is types.NoneType:
        return "null"
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    return _kind_of_tuple(get_args(hint)) if get_origin(hint) is tuple else _ONE.get(hint, "a section with keys")


def _kind_of_tuple(args: tuple[Any, ...]) -> str:
    open_ended = args[-1] is Ellipsis
    names = _MANY.get(args[0], "values") if open_ended or len(set(args)) == 1 else "values"
    return f"a list of {'' if open_ended else f'{len(args)} '}{names if len(args) > 1 else names.removesuffix('s')}"


def _as_section(values: object, where: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{where} must be a section with keys, received {shown(values)}")
    return values


def _unknown(key: str, likely: list[str], allowed: list[str]) -> str:
    hint = f"did you mean {', '.join(likely)}?" if likely else f"allowed: {', '.join(allowed)}"
    return f"unknown key {shown(key)}; {hint}"


def _placed(text: str, where: str, names: Iterable[str]) -> str:
    """Return a class's own error text, which begins with the field's name, with the sections in front of it."""
    if not where:
        return text
    return f"{where}.{text}" if re.split(r"[ .\[]", text, maxsplit=1)[0] in names else f"{where}: {text}"


def _dotted(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)
