"""A file with a state dict, open: tensors by `SECTION/KEY`, and what the file or its neighbour says of the network.

- `.safetensors`: names without a section. Read without PyTorch.
- What `torch.save` wrote: a state dict, whose names have no section; or a dict with state dicts, such as timm's
  `train.py` leaves, where `state_dict_ema/conv1.0.weight` is a name.
- A `config.json` of timm's beside `model.safetensors` or `pytorch_model.bin` says what the weights are, as on the Hub.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from converters.state_dict.pickled import load_pickled
from rszoo.disk.regular import open_regular, read_regular
from rszoo.errors import CheckpointError, ConfigError, WeightsError
from rszoo.folder.model_folder import CONFIG, OTHER_WEIGHTS, WEIGHTS, ModelConfig, parse_config
from rszoo.schema.fields import parse_json
from rszoo.weights.mapping import Weights

_SAFETENSORS = ".safetensors"
# Archives of other kinds are called `.bin` as well.
_PICKLED = (".pth", ".pth.tar", ".pt")
_ZIP = b"PK\x03\x04"
# torch.save's own number, as the first object of the pickle.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_START_BYTES = 16
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64", "I64": "int64"}


class Facts(NamedTuple):
    """What is known of a tensor without its values."""

    dtype: str
    shape: tuple[int, ...]


class StateDictFile:
    """Tensors by name. `arguments`: of the script that wrote the file; `metadata`: a safetensors file's.

    `config`: what a `config.json` of timm's beside the file says, or None where there is none.
    """

    def __init__(
        self,
        entries: Mapping[str, Facts],
        read: Callable[[str], np.ndarray],
        *,
        close: Callable[[], object] = lambda: None,
        arguments: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
        config: ModelConfig | None = None,
    ) -> None:
        self.entries, self._read, self._close = entries, read, close
        self.arguments, self.metadata, self.config = arguments or {}, metadata or {}, config

    def read(self, name: str) -> np.ndarray:
        """Return a tensor's values, float32; half precision is widened exactly.

        Raises:
            CheckpointError: there is none of that name, or it is damaged.
        """
        if name not in self.entries:
            raise CheckpointError(f"the file has no tensor {name!r}")
        return self._read(name)

    def close(self) -> None:
        """Close the file."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_state_dict(path: Path) -> StateDictFile | None:
    """Open a file, or return None if it is of another kind by its name and its first bytes.

    Raises:
        CheckpointError: it is damaged, or refused. ConfigError: timm's config.json beside it is, or another network's.
        MissingPackageError: it was written by torch.save, and PyTorch is not installed.
    """
    with open_regular(path) as opened:
        start = opened.read(_START_BYTES)
        zipped = start.startswith(_ZIP) and _has_pickle(path)
    name = path.name.lower()
    if name.endswith(_SAFETENSORS) or _is_safetensors(start, path.stat().st_size):
        return _open_safetensors(path)
    # By name too, so that a damaged file is told to be that.
    if zipped or start.startswith(_LEGACY) or name.endswith(_PICKLED):
        return _open_pickled(path, zipped)
    return None


def _has_pickle(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def _is_safetensors(start: bytes, size: int) -> bool:
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") < size


def _open_safetensors(path: Path) -> StateDictFile:
    try:
        weights = Weights(path)
        entries = {name: weights.facts(name) for name in weights}
    except WeightsError as error:
        raise CheckpointError(f"{path} cannot be read: {error.__cause__ or error}") from error

    def read(name: str) -> np.ndarray:
        try:
            values: np.ndarray = weights[name]
        except WeightsError as error:
            raise CheckpointError(str(error)) from error
        return values.astype(np.float32, copy=False)

    found = {name: Facts(_DTYPES.get(facts.dtype, facts.dtype), facts.shape) for name, facts in entries.items()}
    return StateDictFile(found, read, close=weights.close, metadata=weights.metadata, config=_read_config(path))


def _open_pickled(path: Path, zipped: bool) -> StateDictFile:
    tensors, arguments = load_pickled(path, zipped=zipped)
    for name, tensor in tensors.items():
        # A view may claim more values than the file has.
        whole = str(tensor.layout) == "torch.strided" and not tensor.is_quantized and tensor.device.type == "cpu"
        if not whole or math.prod(tensor.shape) * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{path} is refused: the values of {name!r} are not all in it, one by one")
    entries = {
        name: Facts(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for name, tensor in tensors.items()
    }

    def read(name: str) -> np.ndarray:
        values: np.ndarray = tensors[name].detach().float().numpy()
        return values

    return StateDictFile(entries, read, arguments=arguments, config=_read_config(path))


def _read_config(weights: Path) -> ModelConfig | None:
    """Return what timm's `config.json` beside weights of timm's name says; None where there is none, or another's."""
    path = weights.parent / CONFIG
    if weights.name not in (WEIGHTS, *OTHER_WEIGHTS) or not path.is_file():
        return None
    text = read_regular(path)
    try:
        keys = parse_json(text)
    except ConfigError as error:
        raise ConfigError(f"{path}, beside the weights, is damaged: {error}") from error
    if not isinstance(keys, dict) or "architecture" not in keys or "rszoo" in keys:
        return None
    return parse_config(text, str(path))
