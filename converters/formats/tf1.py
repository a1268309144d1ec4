"""TF1 checkpoints of tensorflow/tpu's ResNet-RS: what their variables are called, and how they are written.

Names are TensorFlow's creation counters (`conv2d_3/kernel`), which advance here and nowhere else. A training checkpoint
holds three sets: plain weights, their averages, and the optimizer's momenta. Facts: tensorflow/tpu
`models/official/resnet/resnet_model.py` (order of creation) and `resnet_main.py` (`get_ema_vars`: the averages are over
batch normalization's statistics too).
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from converters.formats.format import Contents, Export, Format, Reader, Reference
from converters.formats.shapes import TF1_NETWORK, read_arch
from converters.tensorbundle.bundle import write_files
from converters.tensorbundle.layout import Ranges, packed_ranges
from rszoo.arch.config import ArchConfig
from rszoo.arch.walk import TensorSpec, iter_tensors
from rszoo.errors import ConversionError
from rszoo.folder.model_folder import WeightSet
from rszoo.registry.manifest import get_entry, list_models

EMA_SUFFIX = "/ExponentialMovingAverage"
MOMENTUM_SUFFIX = "/Momentum"
GLOBAL_STEP = "global_step"
#: Name of the checkpoint that is written back.
PREFIX = "model.ckpt"

_LAYER = {"conv": "conv2d", "bn": "batch_normalization", "dense": "dense"}
_TF2_MARK = "_CHECKPOINTABLE_OBJECT_GRAPH"
_HINT = "is this a ResNet-RS written by tensorflow/tpu's resnet_main.py?"
_NO_LAYERS = f"has no variables conv2d/kernel ... and dense/kernel ({_HINT})"
_ITEM_BYTES = 4
_STEP_BYTES = 8


def tf1_names(specs: Iterable[TensorSpec]) -> list[str]:
    """Return the TF1 variable name of each spec of a whole walk, in its order: `conv2d_3/kernel` and so on."""
    created: Counter[str] = Counter()
    layer_names: dict[str, str] = {}
    names = []
    for spec in specs:
        if spec.layer not in layer_names:
            base = _LAYER[spec.kind.layer_type]
            layer_names[spec.layer] = f"{base}_{created[base]}" if created[base] else base
            created[base] += 1
        names.append(f"{layer_names[spec.layer]}/{spec.kind.variable}")
    return names


def infer_arch(shapes: Mapping[str, tuple[int, ...]]) -> ArchConfig:
    """Read blocks, widths, classes and channels off the shapes of one set of weights.

    Blocks are counted by their 3x3 convolutions, one per block, whose width shows the stage. Drop rates leave no
    trace in a checkpoint and stay 0.

    Raises:
        ConversionError: the shapes are not a ResNet-RS's.
    """
    if not _has_layers(shapes):
        raise ConversionError(f"the checkpoint {_NO_LAYERS}")
    kernels, (_, classes) = _conv_kernels(shapes), shapes["dense/kernel"]
    widths = Counter(shape[3] for shape in kernels[4:] if shape[:2] == (3, 3))
    if len(widths) != 4:
        raise ConversionError(f"the checkpoint's 3x3 kernels are of {len(widths)} widths, not of 4; {_HINT}")
    stem = [shape[3] for shape in kernels[:4]]
    return read_arch(TF1_NETWORK, [*widths.values()], [*widths], stem, channels=kernels[0][2], classes=classes)


def _has_layers(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    kernels = _conv_kernels(shapes)
    # The stem's four, the projection, and the first block's five are the least there can be.
    return len(kernels) >= 10 and len(shapes.get("dense/kernel", ())) == 2 and all(len(shape) == 4 for shape in kernels)


def _conv_kernels(shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return the shapes of conv2d/kernel, conv2d_1/kernel, ... as far as they go."""
    numbered = {}
    for name, shape in shapes.items():
        if match := re.fullmatch(r"conv2d(?:_([0-9]{1,9}))?/kernel", name):
            numbered[int(match[1] or 0)] = shape
    return [numbered[number] for number in sorted(numbered)]


def _shapes(reader: Reader) -> dict[str, tuple[int, ...]]:
    # Either set shows the shapes: a checkpoint for evaluation may hold the averages alone.
    return {name.removesuffix(EMA_SUFFIX): entry.shape for name, entry in reader.entries.items()}


def _why_not(reader: Reader) -> str | None:
    if _TF2_MARK in reader.entries:
        return (
            "is a TF2 checkpoint (such as the Model Garden's, whose archives have the same names as the TF1 ones but "
            "hold other weights)"
        )
    return None if _has_layers(_shapes(reader)) else _NO_LAYERS


def _contents(reader: Reader) -> Contents:
    arch = infer_arch(_shapes(reader))
    specs = list(iter_tensors(arch))
    names = tf1_names(specs)
    momenta = [name + MOMENTUM_SUFFIX for spec, name in zip(specs, names, strict=True) if spec.kind.trainable]
    return Contents(
        arch,
        names={"ema": [name + EMA_SUFFIX for name in names], "raw": names},
        skippable={"momentum of the optimizer": momenta},
        step=GLOBAL_STEP,
    )


def _fits(arch: ArchConfig) -> bool:
    # "never" and the classic stem are the paper's baseline, which the same code trained.
    same_ops = (arch.activation, arch.strided_padding) == ("relu", "symmetric")
    return same_ops and arch.shortcut_pool != "always" and arch.num_classes > 0


def _shard_ranges(size: int, weights: WeightSet) -> Ranges | None:
    entries = map(get_entry, list_models())
    arches = {replace(entry.arch, dropout_rate=0.0, drop_connect_rate=0.0) for entry in entries if _fits(entry.arch)}
    layouts = (_training_layout(arch, weights) for arch in arches)
    return next((ranges for ranges, end in layouts if end == size), None)


# Once for each network: a hostile archive may have a thousand shards.
@functools.cache
def _training_layout(arch: ArchConfig, weights: WeightSet) -> tuple[Ranges, int]:
    """Return the wanted ranges of the shard of a training checkpoint of this network, and the size of all of it."""
    sizes, wanted = {GLOBAL_STEP: _STEP_BYTES}, {GLOBAL_STEP}
    specs = list(iter_tensors(arch))
    for spec, name in zip(specs, tf1_names(specs), strict=True):
        sizes[name] = sizes[name + EMA_SUFFIX] = spec.size * _ITEM_BYTES
        if spec.kind.trainable:
            sizes[name + MOMENTUM_SUFFIX] = spec.size * _ITEM_BYTES
        wanted.add(name + EMA_SUFFIX if weights == "ema" else name)
    return packed_ranges(sizes, wanted)


def _write(export: Export, folder: Path) -> str:
    """Write a checkpoint that `tf.train.load_checkpoint` and a TF1 Saver restore.

    Averages are written under their EMA names and, so that a plain Saver restores too, under the plain ones. Momentum
    is not in a model folder, and no `.meta` graph is written: build the graph, then restore.
    """
    specs = list(iter_tensors(export.config.arch))
    variables: dict[str, TensorSpec | None] = {GLOBAL_STEP: None, **dict(zip(tf1_names(specs), specs, strict=True))}
    if export.config.weights == "ema":
        variables |= {name + EMA_SUFFIX: spec for name, spec in variables.items() if spec is not None}

    def read(name: str) -> np.ndarray:
        spec = variables[name]
        return np.array(export.step, np.int64) if spec is None else export.read(spec)

    write_files(folder, PREFIX, variables, read)
    return PREFIX


TF1 = Format(
    name="tf1",
    title="TF1 checkpoint of tensorflow/tpu's ResNet-RS",
    axes="tensorflow",
    why_not=_why_not,
    contents=_contents,
    fits=_fits,
    reference=Reference("rszoo.verify.tf1_graph:run_reference", "tensorflow", "restored by TensorFlow's Saver"),
    write=_write,
    shard_ranges=_shard_ranges,
)
