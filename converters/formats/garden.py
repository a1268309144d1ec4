"""TF2 checkpoints of the Model Garden's ResNet-RS (tensorflow/models): where their object graph has each variable.

A network is a chain of layers, of which those with weights are numbered: the stem's convolutions and normalizations,
then the blocks. Variables are found by the attributes of these objects, never by a checkpoint's names, which depend on
what was saved: a trainer, a model, a model and its backbone. Facts: tensorflow/models
`official/vision/modeling/backbones/resnet.py`, `layers/nn_blocks.py`, `layers/nn_layers.py`,
`classification_model.py` and `official/modeling/optimization/ema_optimizer.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from converters.formats.format import Contents, Export, Format, Reader, Reference
from converters.formats.shapes import read_arch
from converters.tensorbundle.bundle import Bundle, write_files
from converters.tensorbundle.object_graph import OBJECT_GRAPH, VALUE_SUFFIX, ObjectGraph, write_graph
from rszoo.arch.config import ArchConfig
from rszoo.arch.walk import TensorSpec, iter_tensors
from rszoo.errors import ConversionError
from rszoo.folder.model_folder import WeightSet
from rszoo.registry.manifest import load_labels
from rszoo.registry.preprocessing import Preprocessing

#: Name of the checkpoint that is written back.
PREFIX = "ckpt"
_STEP = "global_step"
_SAVES = "save_counter"
_AVERAGE = "average"
#: What a block calls its layers.
_IN_BLOCK = {
    "proj_conv": "_shortcut1",
    "proj_bn": "_norm0",
    "conv1": "_conv1",
    "bn1": "_norm1",
    "conv2": "_conv2",
    "bn2": "_norm2",
    "conv3": "_conv3",
    "bn3": "_norm3",
    "se_reduce": "_squeeze_excitation/_se_reduce",
    "se_expand": "_squeeze_excitation/_se_expand",
}
_STEM_CONVS = 4
_NETWORK = ArchConfig((1, 1, 1, 1), activation="silu", strided_padding="same", shortcut_pool="always")
_HEAD = "head.dense"
# What a classifier calls its parts.
_BACKBONES = ("layer_with_weights-0", "_backbone")
_DENSE = "layer_with_weights-1"
_STEPS = (_STEP, "step")
# What official.core saves while the optimizer has exchanged averages and variables, for an evaluation
# (`actions.EMACheckpointing`, `train_utils.BestCheckpointExporter`).
_EXCHANGED = ("average_weights", "best_ckpt")
_NO_SLOTS = (
    "the checkpoint has one set of weights, its variables, and does not say whether they are averages, as in a "
    "checkpoint for evaluation, or plain"
)
_SWAPPED = (
    "its name says that it was saved for an evaluation, with averages and plain weights exchanged: its variables were "
    "taken for the averages, and its slots for the plain weights"
)
_CLASSES_WITH_BACKGROUND = 1001
_NOT_RESNET = "the checkpoint is not of a ResNet-RS of the Model Garden"


def layer_paths(specs: Iterable[TensorSpec]) -> Iterator[str]:
    """Yield the path of each spec of a whole walk: `backbone/layer_with_weights-8/_conv1/kernel`, `model/...`."""
    numbers: dict[str, int] = {}
    for spec in specs:
        if spec.layer == _HEAD:
            yield f"model/{_DENSE}/{spec.kind.variable}"
            continue
        unit, _, part = spec.layer.partition(".") if spec.layer.startswith("stem.") else spec.layer.rpartition(".")
        # Each layer of the stem has a number of its own, and so has each block.
        number = numbers.setdefault(spec.layer if unit == "stem" else unit, len(numbers))
        inside = "" if unit == "stem" else f"/{_IN_BLOCK[part]}"
        yield f"backbone/layer_with_weights-{number}{inside}/{spec.kind.variable}"


class _Network:
    """The objects of a classifier in a checkpoint's graph."""

    def __init__(self, reader: Bundle) -> None:
        self.entries = reader.entries
        self.graph = ObjectGraph(reader.read_string(OBJECT_GRAPH))
        # What was saved: a trainer, which has the model, or the model itself.
        saved = [self.graph.find(0, "model"), 0]
        self.classifier = self._first(place for place in saved if self._has(place, _DENSE))
        self.backbone = self._first(self.graph.find(self.classifier, name) for name in _BACKBONES)

    def variable(self, path: str) -> int | None:
        """Return the number of a variable's object, by its path as `layer_paths` has it; None if there is none."""
        part, _, inside = path.partition("/")
        return self.graph.find(self.backbone if part == "backbone" else self.classifier, inside)

    def shape(self, path: str) -> tuple[int, ...] | None:
        """Return the shape of a variable, None if there is none."""
        found = self.variable(path)
        entry = None if found is None else self.entries.get(self.graph.nodes[found].key or "")
        return None if entry is None else entry.shape

    def is_counter(self, key: str) -> bool:
        """Whether a variable is a whole number without axes."""
        entry = self.entries.get(key)
        return entry is not None and not entry.shape and entry.dtype in ("int32", "int64")

    def _has(self, place: int | None, path: str) -> bool:
        return place is not None and self.graph.find(place, path) is not None

    def _first(self, places: Iterable[int | None]) -> int:
        found = next((place for place in places if place is not None), None)
        if found is None:
            raise ConversionError(
                f"{_NOT_RESNET}: its object graph has no classifier with a backbone and a dense layer, as `model` or "
                "at its root"
            )
        return found


def _why_not(reader: Reader) -> str | None:
    if isinstance(reader, Bundle) and OBJECT_GRAPH in reader.entries:
        return None
    return "has no object graph, so it is no TF2 checkpoint"


def _infer_arch(network: _Network) -> ArchConfig:
    """Read blocks, widths, classes and channels off the shapes. Activation and padding leave no trace."""
    stem = [network.shape(f"backbone/layer_with_weights-{2 * number}/kernel") for number in range(_STEM_CONVS)]
    head, counts, widths, gate = network.shape(f"model/{_DENSE}/kernel"), [0], [0], None
    for block in _blocks(network):
        width = network.shape(f"{block}/_conv2/kernel")
        if width is None or len(width) != 4:
            raise ConversionError(f"{_NOT_RESNET}: its {block} is no bottleneck block")
        if network.variable(f"{block}/_shortcut1/kernel") is not None:
            counts.append(0)
            widths.append(width[3])
        counts[-1] += 1
        gate = network.shape(f"{block}/_squeeze_excitation/_se_reduce/kernel")
    if head is None or len(head) != 2:
        raise ConversionError(f"{_NOT_RESNET}: its model/{_DENSE} is no dense layer")
    if any(shape is None or len(shape) != 4 for shape in stem):
        raise ConversionError(f"{_NOT_RESNET}: it has no stem of {_STEM_CONVS} convolutions")
    if len(counts) != 5 or counts[0]:
        raise ConversionError(f"{_NOT_RESNET}: it has {len(counts) - 1} stages whose first block has a pooled shortcut")
    kernels = [shape for shape in stem if shape is not None]
    widths_of_stem = [shape[3] for shape in kernels]
    known = replace(_NETWORK, se_ratio=_se_ratio(gate))
    return read_arch(known, counts[1:], widths[1:], widths_of_stem, channels=kernels[0][2], classes=head[1])


def _se_ratio(gate: tuple[int, ...] | None) -> float:
    """Return the ratio of a squeeze-excitation by the shape of its first kernel, (1, 1, in, out)."""
    if gate is None or len(gate) != 4 or not gate[2]:
        return 0.0
    # Truncated: of narrow networks the published ratio is not the quotient.
    return ArchConfig.se_ratio if max(1, int(gate[2] * ArchConfig.se_ratio)) == gate[3] else gate[3] / gate[2]


def _blocks(network: _Network) -> Iterator[str]:
    number = 2 * _STEM_CONVS
    while network.variable(block := f"backbone/layer_with_weights-{number}") is not None:
        yield block
        number += 1


def _contents(reader: Reader) -> Contents:
    if not isinstance(reader, Bundle):
        raise ConversionError(f"{_NOT_RESNET}: it is no checkpoint of TensorFlow's")
    network = _Network(reader)
    arch, graph = _infer_arch(network), network.graph
    objects = _find_objects(network, arch)
    raw = [graph.nodes[number].key or "" for number in objects.values()]
    slots = list(graph.slots())
    averages = {variable: key for name, variable, key in slots if name == _AVERAGE}
    missing = [path for path, number in objects.items() if number not in averages]
    names: dict[WeightSet, list[str]] = {"ema": raw, "raw": raw}
    why: dict[WeightSet, str] = {}
    notes: tuple[str, ...] = (_NO_SLOTS,)
    if averages and missing:
        names, notes = {"raw": raw}, ()
        why["ema"] = f"the checkpoint has averages of some variables, and none of {missing[0]}{_more(missing)}"
    elif averages:
        swapped = reader.prefix.startswith(_EXCHANGED)
        both = [[averages[number] for number in objects.values()], raw]
        names["ema"], names["raw"] = reversed(both) if swapped else both
        notes = (_SWAPPED,) if swapped else ()
    # Of some variables they are of no use, and else one of the two sets.
    partly = {"averages of some variables": list(averages.values())} if missing else {}
    momenta = {"momentum of the optimizer": [key for name, _, key in slots if name != _AVERAGE]}
    step = next(filter(None, (_key_of(graph, name) for name in _STEPS)), None)
    skippable = {**partly, **momenta, **_others(network)}
    return Contents(arch, names, why, skippable, step, notes)


def _find_objects(network: _Network, arch: ArchConfig) -> dict[str, int]:
    """Return the number of each tensor's object, by its path, in the order of the walk."""
    found: dict[str, int] = {}
    taken: dict[int, str] = {}
    missing = []
    for path in layer_paths(iter_tensors(arch)):
        number = network.variable(path)
        if number is None or network.graph.nodes[number].key is None:
            missing.append(path)
            continue
        if number in taken:
            raise ConversionError(f"{_NOT_RESNET}: {taken[number]} and {path} are one variable in its object graph")
        found[path], taken[number] = number, path
    if missing:
        raise ConversionError(f"{_NOT_RESNET}: its object graph has no {missing[0]}{_more(missing)}")
    return found


def _others(network: _Network) -> dict[str, list[str]]:
    """Return what a trainer saves beside the network: settings of its optimizer, counters, the graph itself."""
    graph, optimizer = network.graph, network.graph.find(0, "optimizer")
    direct = (graph.nodes[number].key for number in graph.nodes[0].children.values())
    counters = [key for key in direct if key is not None and network.is_counter(key)]
    return {
        "settings of the optimizer": [] if optimizer is None else list(graph.keys_below(optimizer)),
        "object graph": [OBJECT_GRAPH],
        "counters": [key for key in counters if key not in {_key_of(graph, name) for name in _STEPS}],
    }


def _key_of(graph: ObjectGraph, path: str) -> str | None:
    found = graph.find(0, path)
    return None if found is None else graph.nodes[found].key


def _more(missing: list[str]) -> str:
    return f" and {len(missing) - 1} more" if len(missing) > 1 else ""


def _fits(arch: ArchConfig) -> bool:
    ops = arch.activation, arch.strided_padding, arch.shortcut_pool, arch.stem, arch.expansion
    return ops == ("silu", "same", "always", "deep", ArchConfig.expansion) and arch.num_classes > 0


def _write(export: Export, folder: Path) -> str:
    """Write a checkpoint that `tf.train.Checkpoint(model=...)` and `(backbone=...)` restore to the Garden's model.

    The folder's one set becomes the variables, as in a checkpoint for evaluation: momenta and averages are the
    optimizer's, which it has not.
    """
    specs = list(iter_tensors(export.config.arch))
    # TensorFlow calls a variable after the shortest way to it.
    places = dict(zip(layer_paths(specs), specs, strict=True))
    # `restore` of tf.train.Checkpoint counts the checkpoints that it saves.
    keys = {path: f"{path}{VALUE_SUFFIX}" for path in (_STEP, _SAVES, *places)}
    tensors: dict[str, np.ndarray | bytes | TensorSpec] = {
        **{keys[path]: spec for path, spec in places.items()},
        keys[_STEP]: np.array(export.step, np.int64),
        keys[_SAVES]: np.array(1, np.int64),
        OBJECT_GRAPH: write_graph(keys, {"model/layer_with_weights-0": "backbone"}),
    }

    def read(name: str) -> np.ndarray | bytes:
        value = tensors[name]
        return export.read(value) if isinstance(value, TensorSpec) else value

    write_files(folder, PREFIX, tensors, read)
    return PREFIX


def _labels(arch: ArchConfig) -> tuple[str, ...] | None:
    """Return ImageNet's classes, the background in front, if there are as many."""
    return ("background", *load_labels("imagenet-1k")) if arch.num_classes == _CLASSES_WITH_BACKGROUND else None


def _preprocessing(image_size: int) -> Preprocessing:
    return Preprocessing(image_size, interpolation="bilinear")


GARDEN = Format(
    name="garden",
    title="TF2 checkpoint of the Model Garden's ResNet-RS",
    axes="tensorflow",
    why_not=_why_not,
    contents=_contents,
    fits=_fits,
    preprocessing=_preprocessing,
    labels=_labels,
    reference=Reference("rszoo.verify.garden_graph:run_reference", "tensorflow", "restored by tf.train.Checkpoint"),
    write=_write,
)
