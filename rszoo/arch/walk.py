"""The only walk over all tensors of a ResNet-RS, in the order in which the TF1 graph created them.

Takes an `ArchConfig` and yields `TensorSpec`s; every name map, file and test derives from this list. The order is
that of tensorflow/tpu `resnet_model.py`: a block's projection comes first, its squeeze-excitation last.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

from rszoo.arch.config import ArchConfig, Block


class Kind(Enum):
    """What a tensor is. The value is its variable name in TensorFlow and Keras; the kind determines its layout."""

    CONV_KERNEL = ("conv", "kernel")
    CONV_BIAS = ("conv", "bias")
    GAMMA = ("bn", "gamma")
    BETA = ("bn", "beta")
    MOVING_MEAN = ("bn", "moving_mean")
    MOVING_VARIANCE = ("bn", "moving_variance")
    DENSE_KERNEL = ("dense", "kernel")
    DENSE_BIAS = ("dense", "bias")

    @property
    def layer_type(self) -> str:
        """`conv`, `bn` or `dense`."""
        return self.value[0]

    @property
    def variable(self) -> str:
        """Name of the variable within its layer, in TF1 and Keras."""
        return self.value[1]

    @property
    def trainable(self) -> bool:
        """Whether the optimizer updates it, and therefore keeps a momentum for it."""
        return self not in (Kind.MOVING_MEAN, Kind.MOVING_VARIANCE)


class Initial(Enum):
    """The published initial values of a tensor."""

    #: Truncated normal of variance 1 / fan in.
    FAN_IN = "fan in"
    #: Normal of standard deviation 0.01.
    NORMAL = "normal"
    ZEROS = "zeros"
    ONES = "ones"


@dataclass(frozen=True)
class TensorSpec:
    """One tensor: its layer, its kind, its shape in TensorFlow's layout (HWIO; in x out), and its initial values."""

    layer: str
    kind: Kind
    shape: tuple[int, ...]
    initial: Initial

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def iter_tensors(config: ArchConfig) -> Iterator[TensorSpec]:
    """Yield every tensor of the network once, in TF1 creation order; the classifier's only if there are classes."""
    for conv in config.iter_stem():
        yield from _conv(f"stem.{conv.name}", conv.size, conv.in_channels, conv.out_channels)
        yield from _bn(f"stem.{conv.bn_name}", conv.out_channels)
    for block in config.iter_blocks():
        yield from _block(block)
    if not config.num_classes:
        return
    shape = (config.num_features, config.num_classes)
    yield TensorSpec("head.dense", Kind.DENSE_KERNEL, shape, Initial.NORMAL)
    yield TensorSpec("head.dense", Kind.DENSE_BIAS, (config.num_classes,), Initial.ZEROS)


def count_parameters(config: ArchConfig) -> int:
    """Return the number of trainable values."""
    return sum(spec.size for spec in iter_tensors(config) if spec.kind.trainable)


def with_published_widths(config: ArchConfig) -> ArchConfig:
    """Return the same network with the published widths and a multiplier; as it is if no multiplier gives its own."""
    published = replace(config, stem_widths=ArchConfig.stem_widths, stage_widths=ArchConfig.stage_widths)
    multiplied = replace(published, width_multiplier=config.stage_widths[0] / published.stage_widths[0])
    return multiplied if list(iter_tensors(multiplied)) == list(iter_tensors(config)) else config


def _block(block: Block) -> Iterator[TensorSpec]:
    if block.has_projection:
        yield from _conv(f"{block.name}.proj_conv", 1, block.in_channels, block.out_channels)
        yield from _bn(f"{block.name}.proj_bn", block.out_channels)
    yield from _conv(f"{block.name}.conv1", 1, block.in_channels, block.width)
    yield from _bn(f"{block.name}.bn1", block.width)
    yield from _conv(f"{block.name}.conv2", 3, block.width, block.width)
    yield from _bn(f"{block.name}.bn2", block.width)
    yield from _conv(f"{block.name}.conv3", 1, block.width, block.out_channels)
    # At the start, every block equals its shortcut.
    yield from _bn(f"{block.name}.bn3", block.out_channels, gamma=Initial.ZEROS)
    if block.se_channels:
        yield from _conv(f"{block.name}.se_reduce", 1, block.out_channels, block.se_channels, bias=True)
        yield from _conv(f"{block.name}.se_expand", 1, block.se_channels, block.out_channels, bias=True)


def _conv(layer: str, size: int, inputs: int, outputs: int, bias: bool = False) -> Iterator[TensorSpec]:
    yield TensorSpec(layer, Kind.CONV_KERNEL, (size, size, inputs, outputs), Initial.FAN_IN)
    if bias:
        yield TensorSpec(layer, Kind.CONV_BIAS, (outputs,), Initial.ZEROS)


def _bn(layer: str, channels: int, gamma: Initial = Initial.ONES) -> Iterator[TensorSpec]:
    yield TensorSpec(layer, Kind.GAMMA, (channels,), gamma)
    yield TensorSpec(layer, Kind.BETA, (channels,), Initial.ZEROS)
    yield TensorSpec(layer, Kind.MOVING_MEAN, (channels,), Initial.ZEROS)
    yield TensorSpec(layer, Kind.MOVING_VARIANCE, (channels,), Initial.ONES)
