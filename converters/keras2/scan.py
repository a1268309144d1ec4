"""A program that says in JSON where the tensors of the HDF5 file on its standard input lie.

It runs in a process of its own, see `converters.keras2.hdf5`: the HDF5 library ends its process for some damaged files.
It follows no link and opens no other file, and reads no values, only `model_config`, an attribute of Keras.
"""

from __future__ import annotations

import json
import math
from typing import Any

import h5py
import numpy as np

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
    # h5py's lower level takes a third of the time of its groups and datasets.
    waiting = [(h5py.h5g.open(root.id, b"/"), "", 0)]
    seen = 0
    while waiting:
        group, prefix, depth = waiting.pop()
        for name in group:
            path, seen = prefix + name.decode("utf-8", "surrogateescape"), seen + 1
            if depth > _MAX_DEPTH or seen > _MAX_OBJECTS:
                raise RefusedError("its groups are too deep or too many, or have each other")
            if group.links.get_info(name).type != h5py.h5l.TYPE_HARD:
                raise RefusedError(f"{path} is a link to elsewhere")
            child = h5py.h5o.open(group, name)
            if isinstance(child, h5py.h5g.GroupID):
                waiting.append((child, f"{path}/", depth + 1))
            elif isinstance(child, h5py.h5d.DatasetID):
                dtype, shape = child.dtype, child.shape
                found.append((path, dtype.str, shape, _find(child, dtype, math.prod(shape) * dtype.itemsize, path)))
            else:
                raise RefusedError(f"{path} is no group and no dataset")
    return found


def _find(dataset: h5py.h5d.DatasetID, dtype: np.dtype, size: int, path: str) -> int | None:
    """Return where the values of a dataset begin, which have so many bytes; None if they are no numbers."""
    if dtype.kind not in "fiub" or dtype.hasobject:
        # Texts and references of an optimizer or of metrics.
        return None
    if size > _MAX_TENSOR_BYTES:
        raise RefusedError(f"{path} has {size} bytes; at most {_MAX_TENSOR_BYTES} are read")
    offset: int | None = dataset.get_offset()
    if size and (offset is None or dataset.get_storage_size() != size):
        settings = dataset.get_create_plist()
        if settings.get_layout() == h5py.h5d.VIRTUAL or settings.get_external_count():
            raise RefusedError(f"the values of {path} are not in it")
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
