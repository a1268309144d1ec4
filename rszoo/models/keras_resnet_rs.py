"""ResNet-RS in Keras 3, built from an `ArchConfig`: a functional model of stock layers, on any backend.

Input: float32 (N, H, W, C), normalized RGB, any size. Every block is a separate functional model: as one flat graph,
depths of 270 and more exceed Python's recursion limit. Only stock layers are used: a saved model loads without rszoo.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import layers

from rszoo.arch.config import ArchConfig, Block, StemConv
from rszoo.arch.features import FeatureInfo
from rszoo.arch.names import keras_name
from rszoo.arch.walk import Initial, Kind, TensorSpec, iter_tensors
from rszoo.models.collection import paused_collection
from rszoo.models.initial import KernelDraws

# Keras's momentum is one minus PyTorch's: this is PyTorch's default of 0.1. With the published 0, one batch of
# fine-tuning would replace all statistics.
_BN_MOMENTUM = 0.9
_STAGES = ("stem", "stage1", "stage2", "stage3", "stage4", "pooled", "logits")
_STAGE_ENDS = {"stem_act4": "stem", "stem_pool": "stem", "head_pool": "pooled", "head_dense": "logits"}
_INITIALIZER_ARGUMENTS = {
    Kind.CONV_KERNEL: "kernel_initializer",
    Kind.CONV_BIAS: "bias_initializer",
    Kind.DENSE_KERNEL: "kernel_initializer",
    Kind.DENSE_BIAS: "bias_initializer",
    Kind.GAMMA: "gamma_initializer",
    Kind.BETA: "beta_initializer",
    Kind.MOVING_MEAN: "moving_mean_initializer",
    Kind.MOVING_VARIANCE: "moving_variance_initializer",
}


def build_model(
    config: ArchConfig,
    weights: Mapping[tuple[str, str], np.ndarray] | None = None,
    features: FeatureInfo | None = None,
    batch_norm: Callable[..., keras.Layer] | None = None,
) -> keras.Model:
    """Build the classifier, which returns logits (N, num_classes), or a model that returns a list of feature maps.

    Without classes it returns the pooled features (N, num_features).

    `weights`: Keras names (`rszoo.arch.names.keras_name`) to values in Keras's layout (HWIO; in x out). They are
    assigned to the variables directly, without a random draw first. Missing ones get the published initial values.
    `features`: which maps (N, H, W, C), in the list's order. Keras itself turns a list with one map into that map.
    `batch_norm`: creates batch normalization layers, with the arguments of Keras's own, which is the default.
    """
    specs = list(iter_tensors(config) if features is None else features.iter_tensors())
    # Keras's own initializers also take their seeds from Python's generator.
    seed = random.getrandbits(64) if weights is None else 0
    # Keras creates tens of thousands of objects.
    with paused_collection(), KernelDraws(specs if weights is None else (), seed) as draws:
        builder = _Builder(config, weights, draws, specs, batch_norm)
        return builder.build() if features is None else builder.build_features(features)


def stage_model(model: keras.Model) -> keras.Model:
    """Return a model with the outputs stem, stage1..stage4 (N, H, W, C), pooled and, if any, logits, by name."""
    images = x = keras.Input(model.input_shape[1:])
    stages = {}
    # At the top level the model is a chain, so calling its layers in turn repeats it.
    for layer in model.layers[1:]:
        x = layer(x)
        stages[_STAGE_ENDS.get(layer.name, layer.name.partition("_block")[0])] = x
    return keras.Model(images, {name: stages[name] for name in _STAGES if name in stages})


class _Builder:
    """Creates layers whose variables start with given weights or with published initial values."""

    def __init__(
        self,
        config: ArchConfig,
        weights: Mapping[tuple[str, str], np.ndarray] | None,
        draws: KernelDraws,
        specs: list[TensorSpec],
        batch_norm: Callable[..., keras.Layer] | None,
    ) -> None:
        self.config = config
        self.batch_norm = batch_norm or partial(layers.BatchNormalization, momentum=_BN_MOMENTUM)
        self.weights = weights or {}
        self.draws = draws
        self.specs: dict[str, list[TensorSpec]] = {}
        for spec in specs:
            self.specs.setdefault(keras_name(spec)[0], []).append(spec)

    def build(self) -> keras.Model:
        images = self.images()
        x = self.maps(images, 4)[-1]
        x = layers.GlobalAveragePooling2D(data_format="channels_last", name="head_pool")(x)
        x = layers.Dropout(self.config.dropout_rate, name="head_dropout")(x)
        return keras.Model(images, self.dense(x) if self.config.num_classes else x, name="resnet_rs")

    def build_features(self, features: FeatureInfo) -> keras.Model:
        images = self.images()
        maps = self.maps(images, features.last)
        model = keras.Model(images, [maps[index] for index in features.out_indices], name="resnet_rs_features")
        model.feature_info = features
        return model

    def images(self) -> Any:
        return keras.Input((None, None, self.config.in_chans), name="images")

    def maps(self, x: Any, last: int) -> list[Any]:
        """Return the feature maps up to index `last`; later layers are not built."""
        convs, strided = self.config.split_stem()
        for conv in convs:
            x = self.stem(x, conv)
        maps = [x]
        if last > 0:
            x = self.stem(x, strided) if strided else self.stem_pool(x)
        for stage in range(1, last + 1):
            for block in self.config.iter_blocks():
                if block.stage == stage:
                    # Where the scope ends, the block's variables get their values, all with short names. TensorFlow
                    # makes a kernel for each name that it has not seen: a quarter of the time of a deep model.
                    with keras.StatelessScope():
                        part = self.block(block)
                    x = part(x)
            maps.append(x)
        return maps

    def stem(self, x: Any, conv: StemConv) -> Any:
        x = self.conv(x, f"stem_{conv.name}", conv.out_channels, conv.size, conv.stride)
        x = self.bn(x, f"stem_{conv.bn_name}")
        return layers.Activation(self.config.activation, name=f"stem_{conv.name.replace('conv', 'act')}")(x)

    def stem_pool(self, x: Any) -> Any:
        return layers.MaxPooling2D(3, 2, "same", data_format="channels_last", name="stem_pool")(x)

    def block(self, block: Block) -> keras.Model:
        name = block.name.replace(".", "_")
        # Otherwise Input would be float32, and every block's input would be rounded to it.
        dtype = keras.config.dtype_policy().compute_dtype
        inputs = shortcut = keras.Input((None, None, block.in_channels), dtype=dtype, name=f"{name}_input")
        if block.has_projection:
            if block.pools_shortcut:
                shortcut = layers.AveragePooling2D(
                    2, block.stride, "same", data_format="channels_last", name=f"{name}_proj_pool"
                )(shortcut)
            shortcut = self.conv(shortcut, f"{name}_proj_conv", block.out_channels, 1, block.projection_stride)
            shortcut = self.bn(shortcut, f"{name}_proj_bn")
        # One layer, called three times: creating layers takes most of the build time of a deep model.
        act = layers.Activation(self.config.activation, name=f"{name}_act")
        x = self.conv(inputs, f"{name}_conv1", block.width)
        x = act(self.bn(x, f"{name}_bn1"))
        x = self.conv(x, f"{name}_conv2", block.width, 3, block.stride)
        x = act(self.bn(x, f"{name}_bn2"))
        x = self.bn(self.conv(x, f"{name}_conv3", block.out_channels), f"{name}_bn3")
        if block.se_channels:
            x = self.squeeze_excite(x, block, name)
        if block.drop_connect_rate:
            x = layers.Dropout(block.drop_connect_rate, (None, 1, 1, 1), name=f"{name}_drop_connect")(x)
        x = act(layers.Add(name=f"{name}_add")([x, shortcut]))
        return keras.Model(inputs, x, name=name)

    def squeeze_excite(self, x: Any, block: Block, name: str) -> Any:
        gate = layers.GlobalAveragePooling2D(data_format="channels_last", keepdims=True, name=f"{name}_se_pool")(x)
        gate = self.conv(gate, f"{name}_se_reduce", block.se_channels, activation="relu")
        gate = self.conv(gate, f"{name}_se_expand", block.out_channels, activation="sigmoid")
        return layers.Multiply(name=f"{name}_se_scale")([x, gate])

    def conv(
        self, x: Any, name: str, filters: int, size: int = 1, stride: int = 1, activation: str | None = None
    ) -> Any:
        padding = "same"
        if stride > 1 and size > 1 and self.config.strided_padding == "symmetric":
            x = layers.ZeroPadding2D(size // 2, data_format="channels_last", name=f"{name}_pad")(x)
            padding = "valid"
        layer = layers.Conv2D(
            filters,
            size,
            stride,
            padding,
            data_format="channels_last",
            activation=activation,
            use_bias=len(self.specs[name]) > 1,
            name=name,
            **self.initializers(name),
        )
        return self.applied(layer, x)

    def bn(self, x: Any, name: str) -> Any:
        epsilon = self.config.bn_epsilon
        layer = self.batch_norm(axis=-1, epsilon=epsilon, name=name, **self.initializers(name))
        return self.applied(layer, x)

    def dense(self, x: Any) -> Any:
        return self.applied(
            layers.Dense(self.config.num_classes, name="head_dense", **self.initializers("head_dense")), x
        )

    def initializers(self, layer: str) -> dict[str, Any]:
        """Return the initializer arguments of a layer: its given weights, or the published initial values."""
        chosen = {}
        for spec in self.specs[layer]:
            given = self.weights.get(keras_name(spec))
            if given is None:
                given = self.draws.take(spec)
            chosen[_INITIALIZER_ARGUMENTS[spec.kind]] = _published_initializer(spec) if given is None else _Given(given)
        return chosen

    def applied(self, layer: keras.Layer, x: Any) -> Any:
        """Call a layer, which creates its variables, and set the published initializers in its config.

        Otherwise a saved model would contain its weights in its config too.
        """
        x = layer(x)
        for spec in self.specs[layer.name]:
            argument = _INITIALIZER_ARGUMENTS[spec.kind]
            if isinstance(getattr(layer, argument), _Given):
                setattr(layer, argument, _published_initializer(spec))
        return x


class _Given:
    """An initializer that returns the values it was given."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        # On PyTorch and JAX Keras takes an array as it is, and an export of a view with other axes has wrong values.
        return keras.ops.convert_to_tensor(np.ascontiguousarray(self.values), dtype)


def _published_initializer(spec: TensorSpec) -> keras.Initializer:
    if spec.initial is Initial.FAN_IN:
        return keras.initializers.VarianceScaling(1.0, "fan_in", "truncated_normal")
    if spec.initial is Initial.NORMAL:
        return keras.initializers.RandomNormal(stddev=0.01)
    return keras.initializers.Ones() if spec.initial is Initial.ONES else keras.initializers.Zeros()
