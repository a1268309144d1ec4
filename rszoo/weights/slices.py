"""Part of a tensor: only the rows that an index needs are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rszoo.weights.tensor_file import TensorFacts


class TensorSlice:
    """A tensor to be indexed before it is read, as the safetensors package has it: `weights.get_slice(name)[2:4, 0]`.

    `facts` are of the tensor. Rows are the parts that are consecutive in the file, along `axis`: output channels.
    `read` takes the first row and the one after the last, and returns a tensor of these rows.
    """

    def __init__(self, facts: TensorFacts, axis: int, read: Callable[[int, int], Any]) -> None:
        self._facts = facts
        self._axis = axis
        self._read = read

    def get_shape(self) -> list[int]:
        """Return the whole tensor's shape."""
        return list(self._facts.shape)

    def get_dtype(self) -> str:
        """Return the dtype as the file names it."""
        return self._facts.dtype

    def __getitem__(self, index: Any) -> Any:
        """Return what numpy or PyTorch have for this index; only for integers, slices and `...` less than all is read.

        Raises:
            IndexError: the index does not fit the shape.
        """
        items = _expand(index, len(self._facts.shape))
        rows = self._facts.shape[self._axis] if self._facts.shape else 1
        if not items:
            return _own(self._read(0, rows)[index])
        start, stop, items[self._axis] = _needed(items[self._axis], rows)
        return _own(self._read(start, stop)[tuple(items)])


def _own(part: Any) -> Any:
    """Return a part of a tensor that is contiguous and does not keep the rest in memory."""
    if not isinstance(part, np.ndarray):
        # PyTorch's, or one value.
        return part.contiguous() if hasattr(part, "contiguous") else part
    return np.ascontiguousarray(part) if part.ndim else part


def _expand(index: Any, axes: int) -> list[Any] | None:
    """Return one integer or slice for each axis, or None if the index has something else or is too long."""
    items = list(index) if isinstance(index, tuple) else [index]
    gaps = [place for place, item in enumerate(items) if item is Ellipsis] or [len(items)]
    missing = axes - sum(item is not Ellipsis for item in items)
    if len(gaps) > 1 or missing < 0:
        return None
    items[gaps[0] : gaps[0] + 1] = [slice(None)] * missing
    plain = all(isinstance(item, (int, slice)) and not isinstance(item, bool) for item in items)
    return items if plain else None


def _needed(item: int | slice, rows: int) -> tuple[int, int, int | slice]:
    """Return the first needed row, the one after the last, and the item's counterpart among these."""
    if isinstance(item, int):
        if not -rows <= item < rows:
            raise IndexError(f"index {item} is out of bounds for {rows} rows")
        return item % rows, item % rows + 1, 0
    chosen = range(*item.indices(rows))
    if not chosen:
        return 0, 0, slice(0, 0)
    return min(chosen[0], chosen[-1]), max(chosen[0], chosen[-1]) + 1, slice(None, None, chosen.step)
