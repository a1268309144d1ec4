"""Weights opened: `model.safetensors` as a lazy mapping. Opening reads the header; a tensor is read when asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from rszoo.cache import find_folder
from rszoo.config import ArchConfig
from rszoo.errors import WeightsError, summarize
from rszoo.names import torch_name, torch_shape
from rszoo.tensors import iter_tensors


class Weights(Mapping[str, np.ndarray]):
    """The tensors of a `model.safetensors`, by PyTorch key, read when asked for: float32, OIHW and out x in.

    `metadata` has the file's origin. Also a context manager that closes the file.

    Raises:
        WeightsError: the file is missing, damaged, or not a safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = _open(path, "numpy")
        self._names: tuple[str, ...] = tuple(self._file.offset_keys())

    @property
    def metadata(self) -> dict[str, str]:
        """The file's metadata: source, its SHA-256, which weights, the converter's version."""
        return dict(sorted((self._file.metadata() or {}).items()))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, without reading its values. Raises KeyError for an unknown name."""
        self._check(name)
        return tuple(self._file.get_slice(name).get_shape())

    def __getitem__(self, name: str) -> np.ndarray:
        self._check(name)
        return self._file.get_tensor(name)

    def __contains__(self, name: object) -> bool:
        # Mapping's own would read the tensor.
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.__exit__(None, None, None)

    def _check(self, name: str) -> None:
        if name not in self:
            raise KeyError(name)


def load_weights(model: str | os.PathLike[str]) -> Weights:
    """Open the weights of a model folder, or of a registered model (converted on first use), without reading them.

    Raises:
        UnknownModelError, SourceNotFoundError: there is no such model or folder.
        WeightsError: the weights are missing or damaged.
    """
    return Weights(find_folder(model).weights_path)


def check_header(path: Path, config: ArchConfig) -> None:
    """Compare the names, shapes and dtypes in a weights file's header with the architecture.

    Raises:
        WeightsError: they differ; all differences are counted.
    """
    expected = {torch_name(spec): torch_shape(spec) for spec in iter_tensors(config)}
    actual = {name: (facts["dtype"], tuple(facts["shape"])) for name, facts in read_header(path).items()}
    problems = {
        "missing": [name for name in expected if name not in actual],
        "unexpected": [name for name in actual if name not in expected],
        "misshapen": [
            f"{name} {dtype} {shape}"
            for name, (dtype, shape) in actual.items()
            if name in expected and (dtype, shape) != ("F32", expected[name])
        ],
    }
    found = [f"{len(names)} {what} ({summarize(names)})" for what, names in problems.items() if names]
    if found:
        raise WeightsError(f"{path} does not hold a {config.label}: {'; '.join(found)}; convert it again")


def read_header(path: Path) -> dict[str, Any]:
    """Return dtype, shape and offsets of each tensor of a safetensors file.

    Raises:
        WeightsError: the file is missing, damaged, or not a safetensors file.
    """
    # Opened first for the package's own checks; it has no call for the shapes of thousands of tensors at once.
    _open(path, "numpy")
    with path.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    header.pop("__metadata__", None)
    return header


def open_torch(path: Path) -> dict[str, Any]:
    """Return all tensors of a weights file as torch tensors that map the file; a page is read when it is touched.

    Writing to them changes memory only, never the file.

    Raises:
        WeightsError: the file is missing, damaged, or not a safetensors file.
    """
    opened = _open(path, "pt")
    return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - safe_open is no mapping


def _open(path: Path, framework: str) -> Any:
    try:
        return safe_open(path, framework=framework)
    except FileNotFoundError as error:
        raise WeightsError(f"there is no {path}; convert again") from error
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is damaged or not a safetensors file ({error}); convert again") from error
