"""The builder of checked dataclasses: what JSON and YAML give, field by field, and what its errors say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from rszoo.errors import ConfigError
from rszoo.schema.fields import build, check_fields, check_format, pick, plain
from rszoo.schema.limits import check_count, check_percent, check_range


@dataclass(frozen=True)
class Inner:
    """A section."""

    rate: float = 0.5
    kind: Literal["steps", "cosine"] = "steps"
    epochs: tuple[float, ...] = ()
    pair: tuple[int, str] = (1, "a")
    counts: tuple[int, int] = (1, 2)
    top: float | None = None
    mixed: str | int | None = None
    flag: bool = False

    def __post_init__(self) -> None:
        check_percent(self, "top")
        check_range(self, "rate", low=0, below=1)


@dataclass(frozen=True)
class Outer:
    """A file."""

    name: str
    count: int = 1
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()
    figures: Mapping[str, float | None] = None  # type: ignore[assignment]
    facts: Any = None

    def __post_init__(self) -> None:
        check_count(self, "count")


def test_values_become_the_fields_and_back() -> None:
    values = {
        "name": "x",
        "count": 3,
        "inner": {"rate": 0, "epochs": [1, 2.5], "pair": [7, "b"], "top": None, "mixed": 3, "flag": True},
        "many": [{"kind": "cosine"}, {}],
        "figures": {"a": 1, "b": None},
        "facts": [{"any": "thing"}],
    }
    built = build(Outer, values)
    assert built.inner == Inner(0.0, epochs=(1.0, 2.5), pair=(7, "b"), mixed=3, flag=True)
    assert {type(built.inner.rate), type(built.inner.epochs[0])} == {float}
    assert (built.many, built.figures) == ((Inner(kind="cosine"), Inner()), {"a": 1.0, "b": None})
    assert build(Outer, plain(built)) == built


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([], "the file must be a section with keys, received []"),
        ({1: 2}, "the file must be a section with keys, received {1: 2}"),
        ({}, "name is missing"),
        ({"name": 3}, "name must be a text, received 3"),
        ({"nam": "x"}, "unknown key 'nam'; did you mean name?"),
        ({"name": "x", "zzz": 1}, "unknown key 'zzz'; allowed: name, count, inner, many, figures, facts"),
        ({"name": "x", "inner": {"epoch": 1}}, "unknown key 'inner.epoch'; did you mean epochs?"),
        ({"name": "x", "inner": 3}, "inner must be a section with keys, received 3"),
        ({"name": "x", "count": True}, "count must be a whole number, received True"),
        ({"name": "x", "count": 2.0}, "count must be a whole number, received 2.0"),
        ({"name": "x", "count": "2"}, "count must be a whole number, received '2'"),
        ({"name": "x", "count": 0}, "count must be a whole number of at least 1, received 0"),
        ({"name": "x", "inner": {"rate": math.nan}}, "inner.rate must be a number, received nan"),
        ({"name": "x", "inner": {"rate": math.inf}}, "inner.rate must be a number, received inf"),
        ({"name": "x", "inner": {"rate": 10**400}}, "inner.rate must be a number, received 1000"),
        ({"name": "x", "inner": {"rate": True}}, "inner.rate must be a number, received True"),
        ({"name": "x", "inner": {"rate": "4e-5"}}, "inner.rate must be a number, received '4e-5'"),
        ({"name": "x", "inner": {"rate": 1}}, "inner.rate must be from 0 to below 1, received 1.0"),
        ({"name": "x", "inner": {"top": 101}}, "inner.top must be a percentage from 0 to 100, received 101.0"),
        ({"name": "x", "inner": {"kind": "cosin"}}, "inner.kind must be steps or cosine, received 'cosin'"),
        ({"name": "x", "inner": {"kind": ["steps"]}}, "inner.kind must be steps or cosine, received ['steps']"),
        ({"name": "x", "inner": {"flag": 1}}, "inner.flag must be true or false, received 1"),
        ({"name": "x", "inner": {"epochs": "12"}}, "inner.epochs must be a list of numbers, received '12'"),
        ({"name": "x", "inner": {"epochs": [1, "y"]}}, "inner.epochs[1] must be a number, received 'y'"),
        ({"name": "x", "inner": {"counts": [1]}}, "inner.counts must be a list of 2 whole numbers, received [1]"),
        ({"name": "x", "inner": {"pair": ["b", 7]}}, "inner.pair[0] must be a whole number, received 'b'"),
        ({"name": "x", "inner": {"mixed": 1.5}}, "inner.mixed must be a text or a whole number or null, received 1.5"),
        ({"name": "x", "many": [{}, {"rat": 1}]}, "unknown key 'many[1].rat'; did you mean rate"),
        ({"name": "x", "figures": {"a": "b"}}, "figures.a must be a number, received 'b'"),
        ({"name": "x" * 300, "count": 1, "inner": "y" * 300}, "yyy..."),
    ],
)
def test_what_cannot_be_is_named_with_what_is_allowed(values: object, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Outer, values)
    assert text in str(caught.value)


def test_texts_are_numbers_only_where_the_file_is_yaml() -> None:
    values = {"name": "x", "inner": {"rate": "4e-5", "epochs": ["1e2"]}}
    assert build(Outer, values, number_texts=True).inner == Inner(4e-5, epochs=(100.0,))
    for text in ("many", "nan", "inf"):
        with pytest.raises(ConfigError, match=f"inner.rate must be a number, received .?{text}"):
            build(Outer, {"name": "x", "inner": {"rate": text}}, number_texts=True)


def test_a_file_that_holds_more_is_read_for_what_the_class_has() -> None:
    assert pick(Outer, {"name": "x", "more": 1}) == {"name": "x"}


def test_a_class_that_users_build_is_checked_too() -> None:
    inner = Inner(epochs=[1, 2])  # type: ignore[arg-type]
    check_fields(inner)
    assert inner.epochs == (1.0, 2.0)
    with pytest.raises(ConfigError, match="kind must be steps or cosine, received 'x'"):
        check_fields(Inner(kind="x"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"format_version": 0}, "format_version must be 1, received 0$"),
        ({"format_version": True}, "format_version must be 1, received True$"),
        ({"format_version": "1"}, "format_version must be 1, received '1'$"),
        ({}, "format_version must be 1, received None$"),
        ([], "the file must be a section"),
    ],
)
def test_a_file_of_another_version_is_refused(values: object, text: str) -> None:
    assert check_format({"format_version": 1, "a": 2}, 1, "x.json") == {"a": 2}
    with pytest.raises(ConfigError, match=text):
        check_format(values, 1, "x.json")
