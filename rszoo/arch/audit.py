"""Tensors compared with what they must be: names, shapes and dtypes in both directions, and values bit by bit.

In go tensors of any library, or what an index or a header says of them; out come the differences, ready for the one
error of the caller, who knows what was read and what to type next.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from rszoo.errors import summarize


class Described(Protocol):
    """A tensor, or what is known of one without its values. The dtype is one whose text is its name: `float32`."""

    @property
    def dtype(self) -> Any:
        """Its dtype."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""


def audit(
    found: Mapping[str, Described],
    expected: Mapping[str, tuple[int, ...]],
    *,
    dtypes: Collection[str] | None = None,
    excused: Callable[[str], bool] = lambda _: False,
) -> list[str]:
    """Return the differences between tensors and the names and shapes that they must have; empty if there are none.

    Each text is of one kind of difference, and has its count and the first few names.

    Args:
        found: the tensors by name.
        expected: the shape of each tensor that must be there.
        dtypes: what the tensors' dtype may be; any if left out.
        excused: whether a tensor that is not expected may be there.
    """
    there = {name: found[name] for name in expected if name in found}
    problems = {
        f"of {len(expected)} missing": [name for name in expected if name not in found],
        "unexpected": sorted(name for name in found if name not in expected and not excused(name)),
        "misshapen": [
            f"{name} {tuple(tensor.shape)}, not {expected[name]}"
            for name, tensor in there.items()
            if tuple(tensor.shape) != expected[name]
        ],
    }
    if dtypes is not None:
        problems[f"not {', '.join(dtypes)}"] = [
            f"{name} {dtype_name(tensor)}" for name, tensor in there.items() if dtype_name(tensor) not in dtypes
        ]
    return counted(problems)


def counted(problems: Mapping[str, Sequence[str]]) -> list[str]:
    """Return each kind of problem that occurs as a count, the kind, and the first few names in parentheses."""
    return [f"{len(names)} {kind} ({summarize(names)})" for kind, names in problems.items() if names]


def dtype_name(tensor: Described) -> str:
    """Return the dtype of a tensor of any library by its plain name: `bfloat16`."""
    return str(tensor.dtype).removeprefix("torch.")


def same_bits(expected: np.ndarray, actual: np.ndarray) -> bool:
    """Whether two float32 arrays are of the same shape and equal bit by bit; NaN equals itself, and 0.0 is not -0.0."""
    is_float32 = expected.dtype == actual.dtype == np.float32
    return is_float32 and np.array_equal(expected.view(np.int32), actual.view(np.int32))
