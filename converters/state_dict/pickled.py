"""What `torch.save` wrote, taken apart: every tensor by its path in the object, and the settings beside them.

Read by `torch.load(weights_only=True)` alone, which makes tensors and plain values; what it refuses is refused here.
timm's `train.py` also leaves an `argparse.Namespace`, a bag of values without code, which is let through as timm does.
"""

from __future__ import annotations

import argparse
import io
import pickle
import pickletools
import re
import zipfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from rszoo.disk.regular import open_regular
from rszoo.errors import CheckpointError, MissingPackageError, summarize
from rszoo.extras import needs
from rszoo.schema.limits import is_writable

if TYPE_CHECKING:
    import torch

# Before it, a file could corrupt memory in spite of weights_only: GHSA-63cw-57p8-fm3p.
_SAFE_TORCH = "2.10"
# An optimizer's state of a 420 is 5 deep and has some 4,000 tensors.
_MAX_DEPTH = 12
_MAX_TENSORS = 200_000
# A training script may keep a history of losses.
_MAX_VALUES = 1_000_000
# The pickle of a 420 with its optimizer has 1 MB.
_MAX_PICKLE_BYTES = 64 << 20
_MAX_NAME = 1000
# A number, a version, the machine, the object, and the keys of its tensors.
_LEGACY_PICKLES = 5
_REMEDY = "save the tensors alone, in the program that wrote it: torch.save(model.state_dict(), 'weights.pth')"


class Pickled(NamedTuple):
    """The tensors of a file by their paths, `SECTION/KEY`, and the arguments of the script that wrote it."""

    tensors: Mapping[str, torch.Tensor]
    arguments: Mapping[str, Any]


def load_pickled(path: Path, *, zipped: bool) -> Pickled:
    """Read a file of `torch.save`. `zipped`: of the format since PyTorch 1.6, whose tensors are mapped and not read.

    Raises:
        MissingPackageError: PyTorch is not installed, or too old to read such a file safely.
        CheckpointError: the file is damaged, or has other things than tensors and plain values.
    """
    with needs("reading a file of torch.save", "torch"):
        import torch
    if torch.torch_version.TorchVersion(torch.__version__) < _SAFE_TORCH:
        raise MissingPackageError(
            f"reading a file of torch.save needs PyTorch {_SAFE_TORCH} or newer, here is {torch.__version__}: with an "
            f'older one such a file can run code; pip install "torch>={_SAFE_TORCH}", or save the tensors as '
            "safetensors"
        )
    try:
        _check_archive(path) if zipped else _check_legacy(path)
        # PyTorch maps no file whose name is not UTF-8.
        mapped = zipped and is_writable(str(path))
        with torch.serialization.safe_globals([argparse.Namespace]), open_regular(path) as opened:
            source = path if mapped else opened
            loaded = torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        if unsafe := re.findall(r"GLOBAL ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{path} is refused: it has more than tensors and plain values ({summarize(unsafe)}), and loading that "
                f"could run code; {_REMEDY}"
            ) from error
        raise CheckpointError(f"{path} is damaged, or no file of torch.save: {_reason(error)}") from error
    except CheckpointError:
        raise
    # What a damaged pickle makes Python do may raise anything.
    except Exception as error:
        raise CheckpointError(f"{path} is damaged, or no file of torch.save: {_reason(error)}") from error
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path} has no state dict, but a {type(loaded).__name__}; {_REMEDY}")
    return Pickled(dict(_named_tensors(loaded, str(path))), _arguments(loaded))


def _check_archive(path: Path) -> None:
    """Raise CheckpointError for an archive that unpacks to more than it has, which `torch.save` never writes."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(f"{path} is refused: {member.filename} in it is compressed; {_REMEDY}")
            if not member.filename.endswith(".pkl"):
                continue
            if member.file_size > _MAX_PICKLE_BYTES:
                raise CheckpointError(f"{path} is refused: {member.filename} in it has {member.file_size} bytes")
            _check_names(io.BytesIO(archive.read(member)), path)


def _check_legacy(path: Path) -> None:
    """Raise CheckpointError for one of the pickles that precede the values in a file of the old kind."""
    with open_regular(path) as opened:
        for _ in range(_LEGACY_PICKLES):
            _check_names(opened, path)


def _check_names(stream: IO[bytes], path: Path) -> None:
    """Raise CheckpointError for a name that is too long: PyTorch takes the square of its length to refuse it."""
    for operation, argument, _ in pickletools.genops(stream):
        if operation.name == "GLOBAL" and isinstance(argument, str) and len(argument) > _MAX_NAME:
            raise CheckpointError(f"{path} is refused: it names an object by {len(argument)} characters")


def _reason(error: BaseException) -> str:
    """Return what PyTorch found, without its advice to load the file in a way that can run code."""
    if match := re.search(r"WeightsUnpickler error:\s*(.+)", str(error)):
        return match[1]
    return (str(error).strip().splitlines() or [type(error).__name__])[0].partition(". In PyTorch")[0]


def _named_tensors(loaded: Mapping[Any, Any], place: str) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    waiting: deque[tuple[str, Any, int]] = deque([("", loaded, 0)])
    seen: set[str] = set()
    left = _MAX_VALUES
    while waiting:
        prefix, found, depth = waiting.popleft()
        for key, value in found.items() if isinstance(found, Mapping) else enumerate(found):
            if (left := left - 1) < 0:
                raise CheckpointError(f"{place} is refused: it has more than {_MAX_VALUES} values")
            name = f"{prefix}{key}"
            if isinstance(value, torch.Tensor):
                if name in seen or len(seen) >= _MAX_TENSORS:
                    raise CheckpointError(f"{place} is refused: it has two tensors {name!r}, or too many")
                seen.add(name)
                yield name, value
            elif isinstance(value, (Mapping, Sequence)) and not isinstance(value, (str, bytes, bytearray)):
                if depth > _MAX_DEPTH:
                    raise CheckpointError(f"{place} is refused: what it has is too deep, or has itself")
                waiting.append((f"{name}/", value, depth + 1))


def _arguments(loaded: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the arguments of timm's `train.py`, and the model's name as `arch`."""
    given = loaded.get("args")
    found = vars(given) if isinstance(given, argparse.Namespace) else given
    arguments = {key: value for key, value in found.items() if isinstance(key, str)} if isinstance(found, dict) else {}
    return {**arguments, "arch": loaded.get("arch")}
