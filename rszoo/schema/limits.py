"""What a field's type cannot say of its value, checked in `__post_init__`, with one error text for all classes.

Each value of a tuple is looked at, and None is not. Types are checked by `rszoo.schema.fields`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from rszoo.errors import ConfigError

#: What a text must be to be written.
WRITABLE = "a text without half characters (lone surrogates)"
_MAX_TEXT = 200
_MAX_SHOWN = 100


def check_text(instance: object, *names: str) -> None:
    """Check that fields are texts that say something, of at most 200 characters.

    Raises:
        ConfigError: one is not.
    """
    for name, value in _given(instance, names):
        require(
            bool(value.strip()) and len(value) <= _MAX_TEXT, name, f"a text of at most {_MAX_TEXT} characters", value
        )


def check_range(
    instance: object, *names: str, low: float, high: float = math.inf, below: float = math.inf, what: str = ""
) -> None:
    """Check that fields are from `low` to `high`, or to below `below`; `what` names the values.

    Raises:
        ConfigError: one is not.
    """
    end = f" to {high:g}" if high < math.inf else f" to below {below:g}" if below < math.inf else " upwards"
    for name, value in _given(instance, names):
        require(low <= value <= high and value < below, name, f"{what and what + ' '}from {low:g}{end}", value)


def check_count(instance: object, *names: str, low: int = 1, high: float = math.inf) -> None:
    """Check that fields are whole numbers of at least `low`, or to `high`.

    Raises:
        ConfigError: one is not.
    """
    for name, value in _given(instance, names):
        end = f" and at most {high:g}" if high < math.inf else ""
        require(is_a(value, int) and low <= value <= high, name, f"a whole number of at least {low}{end}", value)


def check_percent(instance: object, *names: str) -> None:
    """Check that fields are percentages, 0 to 100.

    Raises:
        ConfigError: one is not.
    """
    check_range(instance, *names, low=0, high=100, what="a percentage")


def check_pattern(instance: object, name: str, pattern: str, what: str) -> None:
    """Check that a field is a text that a regular expression matches as a whole; `what` says it in words.

    Raises:
        ConfigError: it is not.
    """
    for _, value in _given(instance, (name,)):
        require(re.fullmatch(pattern, value) is not None, name, what, value)


def _given(instance: object, names: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Yield the values of fields that are not None, and each of a tuple's."""
    for name in names:
        value = getattr(instance, name)
        if isinstance(value, tuple):
            yield from ((f"{name}[{index}]", item) for index, item in enumerate(value))
        elif value is not None:
            yield name, value


def require(condition: bool, name: str, allowed: str, received: object) -> None:
    """Raise the error of a field's value unless the condition holds.

    Raises:
        ConfigError: it does not.
    """
    if not condition:
        raise ConfigError(f"{name} must be {allowed}, received {shown(received)}")


def is_a(value: Any, hint: Any) -> bool:
    """Whether a value is of a type: a bool is no number, neither is NaN or infinity, and a text can be written."""
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if isinstance(value, str) and not is_writable(value):
        return False
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def is_writable(text: str) -> bool:
    """Whether a text has no half characters (lone surrogates), that JSON can name and no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_writable(instance: object, *names: str) -> None:
    """Check that texts, or lists of them, have no half characters.

    Raises:
        ConfigError: one has.
    """
    for name in names:
        value = getattr(instance, name)
        # At once: a folder's thousand class names are checked whenever it is opened.
        if value is not None and not is_writable(value if isinstance(value, str) else "".join(value)):
            for field, text in _given(instance, (name,)):
                require(is_writable(text), field, WRITABLE, text)


def shown(value: object) -> str:
    """Return a value as error texts have it, shortened."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."
