"""Projections of the tensor walk: PyTorch keys (timm's), Keras layers, and the layout of each.

Pure functions of `TensorSpec`s; nothing here matches substrings or pairs tensors by position in a file. What a
checkpoint calls its variables is the format's, see `converters.formats`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from rszoo.arch.config import ArchConfig
from rszoo.arch.walk import Kind, TensorSpec, iter_tensors

# timm's names for its resnetrs* models, so that one file serves both: the stem is a Sequential named conv1 whose last
# normalization is bn1, and the strided convolution that replaces the max pool is named maxpool. The names of
# the classic stem are those of timm's other ResNets.
_TORCH_MODULE = {
    "stem.conv": "conv1",
    "stem.bn": "bn1",
    "stem.conv1": "conv1.0",
    "stem.bn1": "conv1.1",
    "stem.conv2": "conv1.3",
    "stem.bn2": "conv1.4",
    "stem.conv3": "conv1.6",
    "stem.bn3": "bn1",
    "stem.conv4": "maxpool.0",
    "stem.bn4": "maxpool.1",
    "head.dense": "fc",
    "proj_conv": "downsample.1",
    "proj_bn": "downsample.2",
    "se_reduce": "se.fc1",
    "se_expand": "se.fc2",
}
_TORCH_PARAMETER = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}

# HWIO -> OIHW and (in, out) -> (out, in). Everything else is a vector and does not change.
_TO_TORCH_AXES = {Kind.CONV_KERNEL: (3, 2, 0, 1), Kind.DENSE_KERNEL: (1, 0)}
_TO_TF_AXES = {Kind.CONV_KERNEL: (2, 3, 1, 0), Kind.DENSE_KERNEL: (1, 0)}
_COUNTER = ".num_batches_tracked"
_BLOCK_KEY = re.compile(r"layer([1-4])\.([0-9]{1,6})\.")


def torch_name(spec: TensorSpec) -> str:
    """Return the key in the PyTorch state dict and in `model.safetensors`: `layer2.0.se.fc1.bias`."""
    parameter = _TORCH_PARAMETER[spec.kind.variable]
    if spec.layer in _TORCH_MODULE:
        return f"{_TORCH_MODULE[spec.layer]}.{parameter}"
    stage, block, layer = spec.layer.split(".")
    module = _TORCH_MODULE.get(layer, layer)
    return f"layer{stage.removeprefix('stage')}.{block.removeprefix('block')}.{module}.{parameter}"


def keras_name(spec: TensorSpec) -> tuple[str, str]:
    """Return the Keras layer's name, unique within the model, and the variable: `("stage2_block0_conv1", "kernel")`."""
    return spec.layer.replace(".", "_"), spec.kind.variable


def keras_names(torch_names: Iterable[str]) -> dict[str, tuple[str, Kind]]:
    """Return each PyTorch key's kind and name in Keras, as `variable.path` has it: `stage2_block0_conv1/kernel`.

    Keys of other networks are left out. Names depend on the stem and the number of blocks, which follow from the keys.

    Raises:
        ConfigError: there are more blocks than any network can have.
    """
    keys = list(torch_names)
    arch = ArchConfig(_count_blocks(keys), stem="classic" if "conv1.weight" in keys else "deep")
    known = {torch_name(spec): spec for spec in iter_tensors(arch)}
    return {key: ("/".join(keras_name(known[key])), known[key].kind) for key in keys if key in known}


def infer_arch(known: ArchConfig, shapes: Mapping[str, tuple[int, ...]]) -> ArchConfig:
    """Return `known` with the blocks, classes and input channels of tensors, given their shapes by PyTorch key.

    Raises:
        ConfigError: no network has such tensors.
    """
    stem, head = shapes.get(torch_name(next(iter_tensors(known))), ()), shapes.get("fc.weight", ())
    return replace(
        known,
        blocks=_count_blocks(shapes) if any(map(_BLOCK_KEY.match, shapes)) else known.blocks,
        num_classes=head[0] if len(head) == 2 else known.num_classes,
        in_chans=stem[1] if len(stem) == 4 else known.in_chans,
    )


def _count_blocks(torch_names: Iterable[str]) -> tuple[int, int, int, int]:
    found = [match for key in torch_names if (match := _BLOCK_KEY.match(key))]
    first, second, third, fourth = (
        max((int(match[2]) + 1 for match in found if match[1] == stage), default=1) for stage in "1234"
    )
    return first, second, third, fourth


def is_counter(torch_key: str) -> bool:
    """Whether a PyTorch key is a batch normalization's batch count: not a weight, and not in any checkpoint."""
    return torch_key.endswith(_COUNTER)


def counter_names(specs: Iterable[TensorSpec]) -> list[str]:
    """Return the PyTorch keys of the batch counts that belong to the batch normalizations among the specs."""
    gammas = (torch_name(spec) for spec in specs if spec.kind is Kind.GAMMA)
    return [f"{name.removesuffix('.weight')}{_COUNTER}" for name in gammas]


def torch_shape(spec: TensorSpec) -> tuple[int, ...]:
    """Return the spec's shape in PyTorch's layout (OIHW; out x in)."""
    axes = _TO_TORCH_AXES.get(spec.kind)
    return tuple(spec.shape[axis] for axis in axes) if axes else spec.shape


def to_torch_layout(kind: Kind, values: np.ndarray) -> np.ndarray:
    """Return a view of `values` (HWIO; in x out) with PyTorch's axes (OIHW; out x in). It is rarely contiguous."""
    axes = _TO_TORCH_AXES.get(kind)
    return values.transpose(axes) if axes else values


def to_tf_layout(kind: Kind, values: np.ndarray) -> np.ndarray:
    """Return a view of `values` (OIHW; out x in) with TensorFlow's and Keras's axes (HWIO; in x out)."""
    axes = tf_axes(kind)
    return values.transpose(axes) if axes else values


def tf_axes(kind: Kind) -> tuple[int, ...] | None:
    """Return the index in PyTorch's axes (OIHW; out x in) of each axis of TensorFlow and Keras (HWIO; in x out).

    None if the layout is the same in both.
    """
    return _TO_TF_AXES.get(kind)
