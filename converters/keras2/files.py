"""The files in which Keras 2 keeps a model, as one reader of `LAYER/VARIABLE` names.

- Weights in HDF5: a group for each layer, in which the values lie at `LAYER/LAYER/VARIABLE:0`.
- A whole model in HDF5: the same under `model_weights`, and the layers as JSON in the attribute `model_config`.
- `.keras`, a zip archive: `config.json`, and `model.weights.h5` with `layers/CLASS_N/vars/I`, where N counts the layers
  of one class in the order of `config.json`.

No layer is ever made of what a file says. Facts: tf_keras `src/saving/legacy/hdf5_format.py`, `saving/saving_lib.py`.
"""

from __future__ import annotations

import json
import lzma
import re
import struct
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from converters.keras2.hdf5 import MAGIC, Hdf5File, StoredTensor
from rszoo.disk.regular import open_regular
from rszoo.errors import CheckpointError

_ZIP = b"PK\x03\x04"
_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_MODEL_WEIGHTS = "model_weights"
_MAX_CONFIG_BYTES = 64 << 20
_MAX_WEIGHTS_BYTES = 8 << 30
_MAX_NESTING = 8
# What zipfile and its decompressors raise for a damaged archive; NotImplementedError is a RuntimeError.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
)
# The order of a layer's variables in `.keras`, by the class of the layer.
_VARIABLES = {
    "Conv2D": ("kernel", "bias"),
    "Dense": ("kernel", "bias"),
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "Normalization": ("mean", "variance", "count"),
}


@dataclass(frozen=True)
class Layer:
    """What a file says of one layer: its class, its name, and its settings."""

    kind: str
    name: str
    settings: Mapping[str, Any]


class Keras2File:
    """A file of Keras 2, open. `entries` by `LAYER/VARIABLE`; `layers` is None where the file says nothing of them."""

    def __init__(
        self, file: Hdf5File, place: str, entries: Mapping[str, StoredTensor], layers: list[Layer] | None
    ) -> None:
        self._file, self._place = file, place
        self.entries, self.layers = entries, layers

    def read(self, name: str) -> np.ndarray:
        """Return a tensor's values. Raises CheckpointError if there is none of that name, or they are damaged."""
        if name not in self.entries:
            raise CheckpointError(f"{self._place} has no tensor {name!r}")
        return self._file.read(self.entries[name])

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_keras2(path: Path) -> Keras2File | None:
    """Open a file, or return None if it is of another kind by its first bytes.

    Raises:
        CheckpointError: it is of Keras, but damaged, or names what is not in it.
        MissingPackageError: h5py is not installed.
    """
    opened = open_regular(path)
    try:
        start = opened.read(len(MAGIC))
        if start == MAGIC:
            return _open_hdf5(opened, str(path))
        found = _open_archive(opened, str(path)) if start.startswith(_ZIP) and _is_keras(opened) else None
    except BaseException:
        opened.close()
        raise
    opened.close()
    return found


def _open_hdf5(opened: IO[bytes], place: str) -> Keras2File:
    file = Hdf5File(opened, place)
    prefix = f"{_MODEL_WEIGHTS}/"
    whole = any(path.startswith(prefix) for path in file.tensors)
    # Beside a whole model: the optimizer's state.
    others = {path: stored for path, stored in file.tensors.items() if whole and not path.startswith(prefix)}
    weights = {path: stored for path, stored in file.tensors.items() if path not in others}
    entries = dict(_by_layer(weights, place)) | others
    layers = None if file.config is None or not whole else _layers(_parse(file.config, place), place)
    return Keras2File(file, place, entries, layers)


def _by_layer(tensors: Mapping[str, StoredTensor], place: str) -> Iterator[tuple[str, StoredTensor]]:
    """Yield tensors by layer and variable: the last two parts of their paths, whatever models they are in."""
    seen: set[str] = set()
    for path, stored in tensors.items():
        *_, layer, variable = ("", *path.split("/"))
        name = f"{layer}/{variable.removesuffix(':0')}"
        if layer == "vars" and variable.isdigit():
            raise CheckpointError(
                f"{place} does not say which layer a tensor belongs to, as save_weights leaves it in *.weights.h5; "
                "save the whole model, model.save('x.keras'), or call save_weights('x.h5')"
            )
        if name in seen:
            raise CheckpointError(f"{place} has two tensors {name}")
        seen.add(name)
        yield name, stored


def _is_keras(opened: IO[bytes]) -> bool:
    try:
        with zipfile.ZipFile(opened) as archive:
            return {_CONFIG, _WEIGHTS} <= {*archive.namelist()}
    except _ZIP_ERRORS:
        return False


def _open_archive(opened: IO[bytes], place: str) -> Keras2File:
    with zipfile.ZipFile(opened) as archive:
        with _member(archive, _CONFIG, _MAX_CONFIG_BYTES, place) as member:
            values = _parse(member.read(), place)
        weights = _member(archive, _WEIGHTS, _MAX_WEIGHTS_BYTES, place)
    try:
        file = Hdf5File(weights, f"{_WEIGHTS} in {place}")
        named = {f"{path}/vars/{number}": name for path, name, number in _archive_names(values, place)}
        entries: dict[str, StoredTensor] = {}
        for path, stored in file.tensors.items():
            name = named.get(path, path)
            if name in entries:
                raise CheckpointError(f"{place} has two tensors {name}")
            entries[name] = stored
        return Keras2File(file, place, entries, _layers(values, place))
    except BaseException:
        weights.close()
        raise


def _member(archive: zipfile.ZipFile, name: str, most: int, place: str) -> IO[bytes]:
    """Return a member, unpacked to a temporary file without a name."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(f"{place} is refused: {name} in it is compressed, which Keras does not do")
    if info.file_size > most:
        raise CheckpointError(f"{place} is refused: {name} in it has {info.file_size} bytes; at most {most} are read")
    copied = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    try:
        for piece in _unpack(archive, info, place):
            copied.write(piece)
    except BaseException:
        copied.close()
        raise
    copied.seek(0)
    return copied


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo, place: str) -> Iterator[bytes]:
    left = info.file_size
    try:
        with archive.open(info) as member:
            while left and (piece := member.read(min(1 << 20, left))):
                yield piece
                left -= len(piece)
    except _ZIP_ERRORS as error:
        raise CheckpointError(f"{place} is a damaged zip archive: {error}") from error


def _parse(text: str | bytes, place: str) -> Mapping[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError, TypeError) as error:
        raise CheckpointError(f"what {place} says of its layers is damaged: {error}") from error
    if not isinstance(values, dict) or not isinstance(values.get("config"), dict):
        raise CheckpointError(f"what {place} says of its layers is damaged: no model")
    return values


def _layers(values: Mapping[str, Any], place: str) -> list[Layer]:
    """Return the layers of a model and of the models in it."""
    return [layer for _, layer in _walk(values, place)]


def _archive_names(values: Mapping[str, Any], place: str) -> Iterator[tuple[str, str, int]]:
    """Yield where each variable of a known layer lies in `.keras`, its name, and its number there."""
    for path, layer in _walk(values, place):
        for number, variable in enumerate(_variables(layer)):
            yield path, f"{layer.name}/{variable}", number


def _variables(layer: Layer) -> Sequence[str]:
    known = _VARIABLES.get(layer.kind, ())
    # Without a center or a scale there are fewer; a bias is optional too, and the last.
    unused = {"gamma": layer.settings.get("scale") is False, "beta": layer.settings.get("center") is False}
    return [name for name in known if not unused.get(name, False)]


def _walk(values: Mapping[str, Any], place: str, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Layer]]:
    """Yield the layers of a model's config with the paths of their groups in `.keras`."""
    config = values.get("config")
    layers = config.get("layers") if isinstance(config, dict) else None
    if not isinstance(layers, list) or depth > _MAX_NESTING:
        raise CheckpointError(f"what {place} says of its layers is damaged: no list of layers")
    counts: Counter[str] = Counter()
    for layer in layers:
        kind, settings = (layer.get("class_name"), layer.get("config")) if isinstance(layer, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(settings, dict):
            raise CheckpointError(f"what {place} says of its layers is damaged: a layer without a class")
        base = _snake_case(kind)
        path = f"{prefix}layers/{base}_{counts[base]}" if counts[base] else f"{prefix}layers/{base}"
        counts[base] += 1
        yield path, Layer(kind, str(settings.get("name", "")), settings)
        if isinstance(settings.get("layers"), list):
            yield from _walk(layer, place, f"{path}/", depth + 1)


def _snake_case(name: str) -> str:
    # As tf_keras `src/utils/generic_utils.py` does.
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
