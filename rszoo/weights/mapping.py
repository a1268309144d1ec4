"""`model.safetensors`, here or at a URL, as a lazy mapping: opening reads the header, access reads a tensor.

Tensors are numpy arrays or PyTorch tensors, or numpy arrays under Keras's names and in its layout. Each is compared
with its checksum while it is read, if the file has checksums.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rszoo.arch.audit import audit
from rszoo.arch.config import ArchConfig
from rszoo.arch.names import is_counter, keras_names, tf_axes, torch_name, torch_shape
from rszoo.arch.walk import iter_tensors
from rszoo.disk.checksums import checksum, digest
from rszoo.errors import WeightsError, summarize
from rszoo.weights.slices import TensorSlice
from rszoo.weights.tensor_file import LocalFile, TensorFacts, TensorFile
from rszoo.weights.values import to_numpy, to_torch

_HALF = ("F16", "BF16")

Layout = Literal["numpy", "torch", "keras"]


class Weights(Mapping[str, Any]):
    """The tensors of a safetensors file by name, read when asked for.

    "numpy", "torch": PyTorch's keys and layout (OIHW, out x in). "keras": numpy arrays under Keras's names
    (`layer/variable`, as `variable.path` has them) in Keras's layout (HWIO, in x out). A tensor owns its memory, and is
    read again each time that it is asked for, unless `source` is a mapped file. dtypes are the file's, but numpy has no
    bfloat16 and gets such values as float32, exactly.

    `check`: compare each tensor that is read as a whole with its checksum, where the file has checksums. `metadata` has
    the file's origin. Also a context manager that closes the file.

    Raises:
        WeightsError: the file is missing, damaged, or not a safetensors file; for "keras", not a ResNet-RS's.
        NetworkError: a request failed, or the file changed between two of them.
    """

    def __init__(self, source: Path | TensorFile, framework: Layout = "numpy", *, check: bool = True) -> None:
        self._file = LocalFile(source) if isinstance(source, Path) else source
        self._header = self._file.header
        self._check = check
        self._convert = to_torch if framework == "torch" else to_numpy
        # Keras's names to the file's; None where names are the file's.
        self._renamed: dict[str, str] | None = None
        self._axes: dict[str, tuple[int, ...]] = {}
        if framework == "keras":
            self._rename()

    @property
    def metadata(self) -> dict[str, str]:
        """The file's metadata: source, its SHA-256, which weights, the converter's version."""
        return self._header.metadata

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(self.facts(name).nbytes for name in self)

    @property
    def count(self) -> int:
        """The number of tensors without PyTorch's counts of batches."""
        return len(self._weight_names())

    def facts(self, name: str) -> TensorFacts:
        """Return dtype, shape and stored size of a tensor, without reading it. Raises KeyError for an unknown name."""
        facts = self._header.facts(self._stored(name))
        if axes := self._axes.get(name):
            return facts._replace(shape=tuple(facts.shape[axis] for axis in axes))
        return facts

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, without reading its values. Raises KeyError for an unknown name."""
        return self.facts(name).shape

    def dtype(self, name: str) -> str:
        """Return a tensor's dtype as the file names it: "F32". Raises KeyError for an unknown name."""
        return self.facts(name).dtype

    def load(self, names: Iterable[str]) -> dict[str, Any]:
        """Read many tensors at once. From a URL, those that are adjacent in the file come in one request.

        Raises:
            KeyError: a name is unknown.
            WeightsError: a tensor does not have its checksum, or is of a dtype that the framework does not have.
            NetworkError: a request failed, or the file at the URL changed.
        """
        spans = {name: self._header.span(self._stored(name)) for name in names}
        read = self._file.read_many(spans.values())
        return {name: self._checked(name, values) for name, values in zip(spans, read, strict=True)}

    def digest(self) -> str:
        """Return what names these weights (`rszoo.disk.checksums.digest`); PyTorch's counts of batches are no weights.

        From the file's checksums; where it has none, all values are read.

        Raises:
            NetworkError, WeightsError: they cannot be.
        """
        return self.known_digest or digest(
            {name: checksum(self._file.read(*self._header.span(name))) for name in self._weight_names()}
        )

    @property
    def known_digest(self) -> str | None:
        """The digest that the file itself has, or None if it has none."""
        return self._header.digest

    def _weight_names(self) -> list[str]:
        return [name for name in self._header.names if not is_counter(name)]

    def get_slice(self, name: str) -> TensorSlice:
        """Return a tensor to be indexed before it is read. Raises KeyError for an unknown name."""
        axes = self._axes.get(name)
        return TensorSlice(self.facts(name), axes.index(0) if axes else 0, partial(self._read_rows, name))

    def _read_rows(self, name: str, start: int, stop: int) -> Any:
        """Read rows [start, stop) of the first axis as stored; the other axes whole, in this object's layout."""
        begin, end = self._header.span(self._stored(name))
        facts = self._header.facts(self._stored(name))
        if not facts.shape or stop - start == facts.shape[0]:
            # As a whole, and so checked.
            return self[name]
        row = (end - begin) // max(1, facts.shape[0])
        part = facts._replace(shape=(stop - start, *facts.shape[1:]))
        return self._tensor(name, self._file.read(begin + row * start, begin + row * stop), part)

    def _checked(self, name: str, values: np.ndarray) -> Any:
        stored = self._stored(name)
        if self._check and self._header.contradicts(stored, values):
            raise WeightsError(
                f"{self._header.label} is damaged: {stored} does not have the checksum that was written with it; get "
                "the model again (`rszoo cache verify` renews those in the cache), or load it with check=False"
            )
        return self._tensor(name, values, self._header.facts(stored))

    def _tensor(self, name: str, values: np.ndarray, facts: TensorFacts) -> Any:
        tensor = self._convert(values, facts.dtype, facts.shape)
        axes = self._axes.get(name)
        return np.ascontiguousarray(tensor.transpose(axes)) if axes else tensor

    def _stored(self, name: str) -> str:
        return name if self._renamed is None else self._renamed[name]

    def _rename(self) -> None:
        known = keras_names(self._header.names)
        if unknown := [name for name in self._header.names if name not in known and not is_counter(name)]:
            raise WeightsError(
                f"{self._header.label} has {len(unknown)} tensors that are not a ResNet-RS's ({summarize(unknown)}); "
                'only load_weights(..., framework="numpy") or "torch" reads such a file'
            )
        self._renamed = {keras: stored for stored, (keras, _) in known.items()}
        self._axes = {keras: axes for keras, kind in known.values() if (axes := tf_axes(kind))}
        for name, axes in self._axes.items():
            if len(shape := self._header.facts(self._stored(name)).shape) != len(axes):
                raise WeightsError(f"{self._header.label}: {self._stored(name)} needs {len(axes)} axes, has {shape}")

    def __getitem__(self, name: str) -> Any:
        return self.load([name])[name]

    def __contains__(self, name: object) -> bool:
        # Mapping's own would read the tensor.
        return name in (self._header if self._renamed is None else self._renamed)

    def __iter__(self) -> Iterator[str]:
        return iter(self._header.names if self._renamed is None else self._renamed)

    def __len__(self) -> int:
        return len(self._header.names if self._renamed is None else self._renamed)

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Tensors that were read stay."""
        self._file.close()

    # Mapping's own would read and compare every tensor.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"Weights({self._header.label}, {len(self)} tensors, {self.nbytes} bytes)"


def check_header(source: Path | Weights, config: ArchConfig, *, half: bool = False) -> None:
    """Compare the names, shapes and dtypes in a weights file's header (PyTorch's layout) with the architecture.

    The dtype of a model folder is float32; `half`: that of another tool's file may be float16 or bfloat16.

    Raises:
        WeightsError: they differ; all differences are counted.
    """
    weights = source if isinstance(source, Weights) else Weights(source)
    expected = {torch_name(spec): torch_shape(spec) for spec in iter_tensors(config)}
    found = {name: weights.facts(name) for name in weights}
    if problems := audit(found, expected, dtypes=("F32", *(_HALF if half else ())), excused=is_counter):
        label = weights._header.label
        raise WeightsError(
            f"{label} does not hold a {config.label}: {'; '.join(problems)}; convert it again, or save "
            "it from another tool in float32"
        )
