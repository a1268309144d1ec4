"""Tensors of an HDF5 file, read so that it can name nothing else: no link, no other file, no compressed values.

h5py is imported when a file is opened: nothing else needs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from rszoo.errors import CheckpointError
from rszoo.extras import needs

if TYPE_CHECKING:
    import h5py

#: How such a file begins.
MAGIC = b"\x89HDF\r\n\x1a\n"
# A whole model of a model in a model is 7 deep.
_MAX_DEPTH = 12
_MAX_OBJECTS = 200_000
# The largest published tensor has 9.4 MB; a classifier of a million classes would have 8 GB.
_MAX_TENSOR_BYTES = 1 << 30


@dataclass(frozen=True)
class StoredTensor:
    """A dataset: the name of its dtype, its shape, and the path to it."""

    dtype: str
    shape: tuple[int, ...]
    path: str


@contextmanager
def readable(place: str) -> Iterator[None]:
    """Raise a CheckpointError in place of what h5py raises for a damaged file: nearly anything."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{place} is damaged, or no HDF5 file that is read: {str(error).splitlines()[0]}"
        ) from error


def open_hdf5(source: Path | IO[bytes], place: str) -> h5py.File:
    """Open a file, or what behaves as one; `place` names it in errors.

    Raises:
        MissingPackageError: h5py is not installed. CheckpointError: it is damaged.
    """
    with needs("reading HDF5", "h5py", extra="keras2"):
        import h5py
    with readable(place):
        return h5py.File(source, "r")


def list_tensors(root: h5py.Group, place: str) -> dict[str, StoredTensor]:
    """Return all datasets below a group by their paths, `a/b`, which has each but once.

    Raises:
        CheckpointError: there is a link, what is no group or dataset, or a dataset whose values are elsewhere.
    """
    import h5py

    found: dict[str, StoredTensor] = {}
    waiting: list[tuple[h5py.Group, str, int]] = [(root, "", 0)]
    seen = 0
    with readable(place):
        while waiting:
            group, prefix, depth = waiting.pop()
            for name in group:
                path, seen = f"{prefix}{name}", seen + 1
                if depth > _MAX_DEPTH or seen > _MAX_OBJECTS:
                    raise CheckpointError(
                        f"{place} is refused: its groups are too deep or too many, or have each other"
                    )
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise CheckpointError(f"{place} is refused: {path} is a link to elsewhere")
                child = group[name]
                if isinstance(child, h5py.Group):
                    waiting.append((child, f"{path}/", depth + 1))
                elif isinstance(child, h5py.Dataset):
                    _check_stored(child, path, place)
                    found[path] = StoredTensor(child.dtype.name, tuple(child.shape), path)
                else:
                    raise CheckpointError(f"{place} is refused: {path} is no group and no dataset")
    return found


def read_tensor(root: h5py.Group, stored: StoredTensor, place: str) -> np.ndarray:
    """Return a dataset's values. Raises CheckpointError if they are damaged."""
    with readable(place):
        values: np.ndarray = np.asarray(root[stored.path][()])
    return values


def _check_stored(dataset: h5py.Dataset, path: str, place: str) -> None:
    if dataset.shape is None or dataset.is_virtual or dataset.external:
        raise CheckpointError(f"{place} is refused: the values of {path} are not in it")
    if dataset.dtype.kind not in "fiub" or dataset.dtype.hasobject:
        # Texts and references of an optimizer or of metrics.
        return
    if dataset.nbytes > _MAX_TENSOR_BYTES:
        raise CheckpointError(
            f"{place} is refused: {path} has {dataset.nbytes} bytes; at most {_MAX_TENSOR_BYTES} are read"
        )
    if dataset.id.get_storage_size() < dataset.nbytes:
        raise CheckpointError(f"{place} is refused: {path} is compressed, or not all of its values are there")
