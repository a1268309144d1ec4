"""Values of one tensor: its bytes, little-endian as safetensors has them, to a numpy array or a PyTorch tensor.

Both share memory with the bytes, unless the machine is big-endian, the bytes are misaligned, or numpy has no such type.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from rszoo.errors import WeightsError
from rszoo.extras import needs

_NUMPY_DTYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "C64": "<c8", "BOOL": "?"},
    **{"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1"},
}
# What numpy does not have: integers of the same size, and PyTorch's name.
_TORCH_DTYPES = {
    "BF16": ("<i2", "bfloat16"),
    "F8_E4M3": ("i1", "float8_e4m3fn"),
    "F8_E5M2": ("i1", "float8_e5m2"),
}


def to_numpy(data: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return `data` (uint8, one axis) as an array. bfloat16, which numpy does not have, becomes float32, exactly.

    Raises:
        WeightsError: numpy has nothing for the dtype.
    """
    if dtype == "BF16":
        # The upper half of a float32.
        return (_native(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    if dtype not in _NUMPY_DTYPES:
        raise WeightsError(f'numpy has no {dtype}; open the file with load_weights(..., framework="torch")')
    return _native(data, _NUMPY_DTYPES[dtype]).reshape(shape)


def to_torch(data: np.ndarray, dtype: str, shape: tuple[int, ...]) -> Any:
    """Return `data` (uint8, one axis, writable) as a PyTorch tensor.

    Raises:
        WeightsError: the dtype is not one that is read.
    """
    torch = import_torch()
    if dtype in _NUMPY_DTYPES:
        return torch.from_numpy(_native(data, _NUMPY_DTYPES[dtype])).reshape(shape)
    if dtype not in _TORCH_DTYPES:
        allowed = ", ".join([*_NUMPY_DTYPES, *_TORCH_DTYPES])
        raise WeightsError(f"cannot read {dtype}, only {allowed}; convert the file to one of them")
    integers, name = _TORCH_DTYPES[dtype]
    return torch.from_numpy(_native(data, integers)).view(getattr(torch, name)).reshape(shape)


def import_torch() -> Any:
    """Import PyTorch.

    Raises:
        MissingPackageError: it is not installed. A breakage inside it is passed on.
    """
    with needs('a tensor with framework="torch"', "torch"):
        return importlib.import_module("torch")


def _native(data: np.ndarray, code: str) -> np.ndarray:
    """Return bytes as values that this machine and every library can use, copied only if they are not so yet."""
    values = data.view(code)
    if not values.flags.aligned:
        values = values.copy()
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))
