"""`Format`: all that the converter must know of one kind of checkpoint.

A format sees a checkpoint as a `Reader`, tensors by name, in any kind of file. Its values have its own axes;
`Format.to_torch` and `from_torch` are the only places where axes change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from converters.tensorbundle.layout import Ranges
from rszoo.arch.audit import Described
from rszoo.arch.config import ArchConfig
from rszoo.arch.names import to_tf_layout, to_torch_layout, torch_shape
from rszoo.arch.walk import Kind, TensorSpec
from rszoo.folder.model_folder import ModelConfig, WeightSet
from rszoo.registry.preprocessing import Preprocessing

#: Kernels as HWIO and (in, out), or as OIHW and (out, in).
Axes = Literal["tensorflow", "torch"]
#: One of `Format.loses`.
LABELS = "the class names"


class Reader(Protocol):
    """A checkpoint's tensors by name; `read` may be called from several threads."""

    @property
    def entries(self) -> Mapping[str, Described]:
        """Dtype and shape of each tensor, without its values."""

    def read(self, name: str) -> np.ndarray:
        """Return a tensor's values.

        Raises:
            CheckpointError: they are damaged or missing.
        """


class FileReader(Reader, Protocol):
    """The reader of a file that it keeps open."""

    def close(self) -> None:
        """Close the file."""


@dataclass(frozen=True)
class Said:
    """What a checkpoint says of itself beside its tensors; None for what it does not say.

    Attributes:
        image_size: the side of the square input, in pixels.
        preprocessing: what images go through, for any image size.
        labels: the class names, index by index.
    """

    image_size: int | None = None
    preprocessing: Callable[[int], Preprocessing] | None = None
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Contents:
    """The tensors that a checkpoint must and may hold.

    Attributes:
        arch: the network, with the format's own activation, paddings and pools.
        names: for each set of weights that such a checkpoint may have, the name of each tensor of the walk, in the
            walk's order; "raw" alone where there are no averages.
        why_missing: for a set that it does not have, why, if that is not plain.
        skippable: by the reason for leaving it out, what else may be there.
        step: the tensor that counts the steps, an integer without axes; it may be missing.
        notes: what else the account says, in words.
        said: what it says of itself.
    """

    arch: ArchConfig
    names: Mapping[WeightSet, Sequence[str]]
    why_missing: Mapping[WeightSet, str] = field(default_factory=dict)
    skippable: Mapping[str, Sequence[str]] = field(default_factory=dict)
    step: str | None = None
    notes: tuple[str, ...] = ()
    said: Said = Said()


@dataclass(frozen=True)
class Export:
    """A model folder that is written back: what it is, and a function for each tensor's values, with the format's axes.

    `step`: how many steps were taken, as recorded at conversion, or 0.
    """

    config: ModelConfig
    step: int
    read: Callable[[TensorSpec], np.ndarray]


#: Writes a checkpoint into an empty folder, and returns its name in it.
Writer = Callable[[Export, Path], str]


@dataclass(frozen=True)
class Reference:
    """The original implementation, which `rszoo verify` compares with.

    Attributes:
        function: "module:function", imported when it is needed: `(folder, batches)` to one mapping a batch, from
            stage (stem, stage1..stage4, pooled, logits) to output. A batch is float32 (N, H, W, C), outputs are NHWC.
        package: what it needs and rszoo does not, by the name to import and to install.
        how: how it got the weights, in words for the outcome of the check.
    """

    function: str
    package: str
    how: str


@dataclass(frozen=True)
class Format:
    """One kind of checkpoint.

    Attributes:
        name: one word, for `--to` and `conversion.json`.
        title: what checkpoints of it are, in a few words.
        axes: the order of the kernels' axes in a checkpoint.
        why_not: returns why a checkpoint is not of this format, by the names, shapes and dtypes in it, or None if it
            is. `contents` refuses what is of this format but damaged.
        contents: returns what a checkpoint of this format must and may hold. Raises ConversionError.
        dtypes: what the tensors may be; `read` gives their values as float32, exactly.
        fits: whether a checkpoint of this format can hold a network: whether `contents` would find the same one.
        preprocessing: from an image size, the preprocessing of weights that are not a registered pair's.
        labels: from an architecture, the class names of weights that are not a registered pair's, or None.
        reference: the original implementation; None where there is none to compare with.
        write: writes a checkpoint into an empty folder and returns its name in it; None if it cannot be written.
            May raise ConversionError.
        loses: what of a model folder is not in what `write` writes, in words.
        package: what reading the published files needs and rszoo does not, by the name to import.
        open_file: opens a file of this format's kind, or returns None if it is of another by its first bytes; raises
            CheckpointError. None for TensorFlow's checkpoints, which `converters.read` finds and opens.
        shard_ranges: where a set of weights and the step counter lie in a data shard of a size in bytes, or None if
            the size is not a registered network's. Only for TensorFlow's checkpoints.
    """

    name: str
    title: str
    axes: Axes
    why_not: Callable[[Reader], str | None]
    contents: Callable[[Reader], Contents]
    fits: Callable[[ArchConfig], bool]
    dtypes: tuple[str, ...] = ("float32",)
    preprocessing: Callable[[int], Preprocessing] = Preprocessing
    labels: Callable[[ArchConfig], tuple[str, ...] | None] = lambda _: None
    reference: Reference | None = None
    write: Writer | None = None
    loses: tuple[str, ...] = (LABELS, "the preprocessing")
    package: str | None = None
    open_file: Callable[[Path], FileReader | None] | None = None
    shard_ranges: Callable[[int, WeightSet], Ranges | None] | None = None

    def shape(self, spec: TensorSpec) -> tuple[int, ...]:
        """Return a tensor's shape in a checkpoint."""
        return spec.shape if self.axes == "tensorflow" else torch_shape(spec)

    def to_torch(self, kind: Kind, values: np.ndarray) -> np.ndarray:
        """Return a view of a checkpoint's values with PyTorch's axes."""
        return to_torch_layout(kind, values) if self.axes == "tensorflow" else values

    def from_torch(self, kind: Kind, values: np.ndarray) -> np.ndarray:
        """Return a view of a model folder's values with the checkpoint's axes."""
        return to_tf_layout(kind, values) if self.axes == "tensorflow" else values
