"""Files of Keras 2's ResNet-RS (`tf_keras.applications.resnet_rs`): what layers are called, and how they are written.

They hold one set of weights, which in the published files are the averages. Facts: tf_keras
`src/applications/resnet_rs.py`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converters.formats.format import Contents, Export, Format, Reader, Reference, Said
from converters.formats.shapes import TF1_NETWORK, count_blocks, read_arch
from converters.keras2.files import Keras2File, open_keras2
from converters.keras2.surroundings import Surroundings, find_surroundings
from rszoo.arch.config import Activation, ArchConfig
from rszoo.arch.walk import TensorSpec, iter_tensors
from rszoo.errors import ConversionError, summarize
from rszoo.extras import needs
from rszoo.schema.limits import is_a

if TYPE_CHECKING:
    import h5py

#: Name of the file that is written back.
FILE = "resnet-rs.h5"
_HEAD = "predictions"
_BLOCKS = "BlockGroup"
_STEM = "stem_1_stem_"
_STEM_CONVS = 4
# In a block; the first normalization has one line less than the others.
_IN_BLOCK = {
    "proj_conv": "__projection_conv",
    "proj_bn": "__projection_batch_norm",
    "conv1": "__conv_1",
    "bn1": "_batch_norm_1",
    "conv2": "__conv_2",
    "bn2": "__batch_norm_2",
    "conv3": "__conv_3",
    "bn3": "__batch_norm_3",
    "se_reduce": "__se_se_reduce",
    "se_expand": "__se_se_expand",
}
# tf_keras `HDF5_OBJECT_HEADER_LIMIT`.
_MAX_ATTRIBUTE_BYTES = 64512
_ACTIVATIONS: dict[str, Activation] = {"relu": "relu", "swish": "silu", "silu": "silu"}
_NOT_RESNET = "the file is not of a ResNet-RS of tf_keras.applications"
_STATE = "state of the optimizer, and what else is beside the model"
_PREPROCESSING = "layers before the network"
_FOREIGN = "layers that are not the network's"
_NO_LAYERS = (
    "the file does not list its layers: activation (relu), epsilon (1e-5) and pooling (mean) are the published ones"
)


def keras2_name(spec: TensorSpec, stem: str = _STEM) -> str:
    """Return a tensor's `LAYER/VARIABLE`. `stem`: what the names of the stem's layers begin with."""
    return f"{_layer_name(spec.layer, stem)}/{spec.kind.variable}"


def _layer_name(layer: str, stem: str = _STEM) -> str:
    if layer == "head.dense":
        return _HEAD
    if layer.startswith("stem."):
        kind = "conv" if "conv" in layer else "batch_norm"
        return f"{stem}{kind}_{layer[-1]}"
    stage, block, part = layer.split(".")
    return f"BlockGroup{int(stage.removeprefix('stage')) + 1}__block_{block.removeprefix('block')}{_IN_BLOCK[part]}"


def _find_stem(reader: Reader) -> str | None:
    """Return what the names of the stem's layers begin with: the stems of a process are counted."""
    found = (re.fullmatch(r"(stem_[0-9]+_stem_)conv_1/kernel", name) for name in reader.entries)
    return next((match[1] for match in found if match), None)


def _why_not(reader: Reader) -> str | None:
    if isinstance(reader, Keras2File) and _find_stem(reader) is not None:
        return None
    return f"has no layer {_STEM}conv_1"


def _contents(reader: Reader) -> Contents:
    stem = _find_stem(reader) or _STEM
    layers = reader.layers if isinstance(reader, Keras2File) else None
    around = find_surroundings(layers, lambda name: name.startswith((stem, _BLOCKS)))
    arch = _infer_arch(reader, stem, around)
    names = [keras2_name(spec, stem) for spec in iter_tensors(arch)]
    skippable = _skippable(reader, names, stem, foreign=not arch.num_classes)
    notes = ["the file has one set of weights, of the published files the averages"]
    notes += around.notes(_HEAD if arch.num_classes else None) if layers is not None else [_NO_LAYERS]
    if foreign := skippable.get(_FOREIGN):
        notes.append(f"only the backbone was taken; left out: {summarize(foreign, 6)}")
    return Contents(
        arch,
        # Of one set, which is what was trained: of the published files the averages.
        names={"ema": names, "raw": names},
        skippable=skippable,
        notes=tuple(notes),
        said=Said(around.image_size, around.preprocessing(arch.in_chans, partial(_read_if_there, reader))),
    )


def _read_if_there(reader: Reader, name: str) -> np.ndarray | None:
    return reader.read(name) if name in reader.entries else None


def _skippable(reader: Reader, names: Sequence[str], stem: str, *, foreign: bool) -> dict[str, list[str]]:
    """Return by reason which tensors may be left out; `foreign`: also what comes after a backbone."""
    known = {*names}
    others = [name for name in reader.entries if name not in known]
    layers = {name.partition("/")[0] for name in known}
    if any(name.partition("/")[0] in layers or name.startswith((stem, _BLOCKS)) for name in others):
        return {}
    found = {
        _PREPROCESSING: [name for name in others if re.match("(normalization|rescaling)(_[0-9]+)?/", name)],
        _STATE: [name for name in others if re.match("(optimizer_weights|optimizer|metrics|vars)(/|$)", name)],
    }
    left = {*others}.difference(*found.values())
    return found | ({_FOREIGN: [name for name in others if name in left]} if foreign else {})


def _infer_arch(reader: Reader, prefix: str, around: Surroundings) -> ArchConfig:
    """Read blocks, widths, classes and channels off the shapes, activation and epsilon off the layers' settings."""
    shapes = {name: tuple(entry.shape) for name, entry in reader.entries.items()}
    stem = [shapes.get(f"{prefix}conv_{number}/kernel", ()) for number in range(1, _STEM_CONVS + 1)]
    counts, widths = count_blocks(
        lambda stage, block: shapes.get(f"BlockGroup{stage + 1}__block_{block}__conv_2/kernel", ()), out_axis=3
    )
    if 0 in counts:
        raise ConversionError(f"{_NOT_RESNET}: it has no layer BlockGroup{counts.index(0) + 2}__block_0__conv_2")
    if any(len(shape) != 4 for shape in stem):
        raise ConversionError(f"{_NOT_RESNET}: it has no stem of {_STEM_CONVS} convolutions")
    known = replace(TF1_NETWORK, activation=_activation(reader), bn_epsilon=_epsilon(reader, prefix))
    classes = _count_classes(shapes) if around.feeds(_HEAD) else 0
    return read_arch(known, counts, widths, [shape[3] for shape in stem], channels=stem[0][2], classes=classes)


def _count_classes(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the classes of the network's own classifier; 0 where there is none, or another after other layers."""
    head, features = shapes.get(f"{_HEAD}/kernel", ()), shapes.get("BlockGroup5__block_0__conv_3/kernel", ())
    return head[1] if len(head) == 2 and head[:1] == features[3:] else 0


def _epsilon(reader: Reader, prefix: str) -> float:
    layers = reader.layers if isinstance(reader, Keras2File) else None
    norms = (layer for layer in layers or () if layer.kind == "BatchNormalization")
    given = (layer.settings.get("epsilon") for layer in norms if layer.name.startswith((prefix, _BLOCKS)))
    said: set[Any] = {value if isinstance(value, (int, float)) else str(value) for value in given if value is not None}
    if len(said) > 1 or not all(is_a(value, (int, float)) and 0 < value < 1 for value in said):
        raise ConversionError(f"{_NOT_RESNET}: its normalizations have epsilons of {', '.join(sorted(map(str, said)))}")
    return float(next(iter(said), ArchConfig.bn_epsilon))


def _activation(reader: Reader) -> Activation:
    layers = reader.layers if isinstance(reader, Keras2File) else None
    inside = (layer for layer in layers or () if layer.kind == "Activation" and layer.name.startswith(_BLOCKS))
    # The gate's is in its convolution.
    said = sorted({str(layer.settings.get("activation")) for layer in inside}) or ["relu"]
    if len(said) > 1 or said[0] not in _ACTIVATIONS:
        raise ConversionError(f"{_NOT_RESNET}: its activations are {', '.join(said)}")
    return _ACTIVATIONS[said[0]]


def _fits(arch: ArchConfig) -> bool:
    ops = arch.activation, arch.strided_padding, arch.shortcut_pool, arch.stem, arch.se_ratio
    return ops == ("relu", "symmetric", "strided", "deep", ArchConfig.se_ratio)


def _write(export: Export, folder: Path) -> str:
    """Write the weights as Keras 2's `save_weights` does, for `load_weights` of the same network.

    It takes layers by their order and not by their names: Keras's, in which a block's projection comes last.
    """
    with needs("writing HDF5", "h5py"):
        import h5py

    layers: dict[str, list[TensorSpec]] = {}
    for spec in _in_keras_order(export.config.arch):
        layers.setdefault(_layer_name(spec.layer), []).append(spec)
    with h5py.File(folder / FILE, "w") as file:
        _put_texts(file, "layer_names", [*layers])
        file.attrs["backend"], file.attrs["keras_version"] = "tensorflow", "2.15.0"
        for layer, specs in layers.items():
            group = file.create_group(layer)
            names = [f"{layer}/{spec.kind.variable}:0" for spec in specs]
            _put_texts(group, "weight_names", names)
            for spec, name in zip(specs, names, strict=True):
                group.create_dataset(name, data=np.ascontiguousarray(export.read(spec)))
    return FILE


def _in_keras_order(arch: ArchConfig) -> Iterator[TensorSpec]:
    """Yield the walk with each block's projection at its end."""
    for _, block in itertools.groupby(iter_tensors(arch), key=lambda spec: spec.layer.rpartition(".")[0]):
        yield from sorted(block, key=lambda spec: spec.layer.rpartition(".")[2].startswith("proj_"))


def _put_texts(group: h5py.Group, name: str, texts: Sequence[str]) -> None:
    """Write texts as an attribute, or as the numbered ones that Keras makes of what is too long for an HDF5 header."""
    stored = np.array([text.encode() for text in texts])
    if stored.nbytes <= _MAX_ATTRIBUTE_BYTES:
        group.attrs[name] = stored
        return
    pieces = np.array_split(stored, -(-stored.nbytes // _MAX_ATTRIBUTE_BYTES) + 1)
    for number, piece in enumerate(pieces):
        group.attrs[f"{name}{number}"] = piece


KERAS2 = Format(
    name="keras2",
    title="file of Keras 2's ResNet-RS (HDF5 or .keras)",
    axes="tensorflow",
    why_not=_why_not,
    contents=_contents,
    fits=_fits,
    reference=Reference("rszoo.verify.tf1_graph:run_reference", "tensorflow", "restored by TensorFlow's Saver"),
    write=_write,
    package="h5py",
    open_file=open_keras2,
)
