"""A program that says in JSON where the tensors of the HDF5 file on its standard input lie.

It runs in a process of its own, see `converters.keras2.hdf5`: the HDF5 library ends its process for some damaged files.
It follows no link and opens no other file, and reads no values, only `model_config`, an attribute of Keras.
"""

from __future__ import annotations

import json
from typing import Any

import h5py

# A whole model of a model in a model is 8 deep.
_MAX_DEPTH = 12
_MAX_OBJECTS = 200_000
# The largest published tensor has 9.4 MB; a classifier of a million classes would have 8 GB.
_MAX_TENSOR_BYTES = 1 << 30
_MAX_CONFIG_BYTES = 64 << 20


class RefusedError(Exception):
    """What the file has is not read."""


def list_tensors(root: h5py.Group) -> list[tuple[str, str, tuple[int, ...], int | None]]:
    """Return path, dtype, shape and offset in the file of each dataset below a group, which has each but once.

    The offset is None for what is no numbers. Raises RefusedError for a link, for what is no group or dataset, and for
    a dataset whose values are not in one piece in the file.
    """
    found = []
    waiting: list[tuple[h5py.Group, str, int]] = [(root, "", 0)]
    seen = 0
    while waiting:
        group, prefix, depth = waiting.pop()
        for name in group:
            path, seen = f"{prefix}{name}", seen + 1
            if depth > _MAX_DEPTH or seen > _MAX_OBJECTS:
                raise RefusedError("its groups are too deep or too many, or have each other")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise RefusedError(f"{path} is a link to elsewhere")
            child = group[name]
            if isinstance(child, h5py.Group):
                waiting.append((child, f"{path}/", depth + 1))
            elif isinstance(child, h5py.Dataset):
                found.append((path, child.dtype.str, child.shape, _find(child, path)))
            else:
                raise RefusedError(f"{path} is no group and no dataset")
    return found


def _find(dataset: h5py.Dataset, path: str) -> int | None:
    """Return where the values of a dataset begin, or None if they are no numbers."""
    if dataset.shape is None or dataset.is_virtual or dataset.external:
        raise RefusedError(f"the values of {path} are not in it")
    if dataset.dtype.kind not in "fiub" or dataset.dtype.hasobject:
        # Texts and references of an optimizer or of metrics.
        return None
    if dataset.nbytes > _MAX_TENSOR_BYTES:
        raise RefusedError(f"{path} has {dataset.nbytes} bytes; at most {_MAX_TENSOR_BYTES} are read")
    offset: int | None = dataset.id.get_offset()
    if dataset.nbytes and (offset is None or dataset.id.get_storage_size() != dataset.nbytes):
        raise RefusedError(f"{path} is compressed, in several pieces, or not all there")
    return offset or 0


def _read_config(file: h5py.File) -> str | None:
    """Return the text of the architecture of a whole model."""
    config = file.attrs.get("model_config")
    text = config.decode() if isinstance(config, bytes) else config
    if text is not None and (not isinstance(text, str) or len(text) > _MAX_CONFIG_BYTES):
        raise RefusedError(f"its model_config is no text of at most {_MAX_CONFIG_BYTES} bytes")
    return text


def scan() -> dict[str, Any]:
    """Return `tensors` and `config`; or, of a file that is not read, why it is `refused` or `damaged`."""
    try:
        with open(0, "rb", closefd=False) as opened, h5py.File(opened, "r") as file:
            return {"tensors": list_tensors(file), "config": _read_config(file)}
    except RefusedError as error:
        return {"refused": str(error)}
    except Exception as error:
        return {"damaged": (str(error).splitlines() or [type(error).__name__])[0]}


if __name__ == "__main__":
    print(json.dumps(scan()))
