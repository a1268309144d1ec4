"""The network that a Keras training starts with: the recipe's architecture, with initial or given weights.

In: a recipe. Out: a functional model whose batch normalizations compute as the published ones, and its variables sorted
by what a step does with them. It is for training only: the saved model is built again, of stock layers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from rszoo.arch.layer_groups import layer_group
from rszoo.arch.names import keras_name
from rszoo.arch.walk import Kind, TensorSpec, iter_tensors
from rszoo.folder.model_folder import ModelConfig
from rszoo.models.devices import keras_scope
from rszoo.models.factory import create
from rszoo.models.keras_resnet_rs import build_model
from rszoo.recipes.recipe import Recipe, TrainSettings
from rszoo.train.heads import check_architecture, decide_head

_STATISTICS = (Kind.MOVING_MEAN, Kind.MOVING_VARIANCE)


class TrainingBatchNorm(layers.BatchNormalization):
    """Batch normalization whose moving variance has Bessel's correction, n / (n - 1), as the published code's.

    Keras's own stores the variance that it divides by. On TensorFlow this is the fused operation of the published code.
    With `trainable = False` it computes as in evaluation, as Keras's does.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalize (N, H, W, C), and in training blend the batch's statistics with the moving ones."""
        if not training or not self.trainable:
            return super().call(inputs, training=False, mask=mask)
        fused = keras.backend.backend() == "tensorflow"
        outputs, *statistics = self._fused(inputs) if fused else self._plain(inputs)
        for moving, batch in zip((self.moving_mean, self.moving_variance), statistics, strict=True):
            moving.assign(ops.add(ops.multiply(moving, self.momentum), ops.multiply(batch, 1 - self.momentum)))
        return outputs

    def _fused(self, inputs: Any) -> tuple[Any, Any, Any]:
        import tensorflow as tf

        none = tf.constant([], tf.float32)
        result = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=ops.convert_to_tensor(self.gamma),
            offset=ops.convert_to_tensor(self.beta),
            mean=none,
            variance=none,
            epsilon=self.epsilon,
            is_training=True,
        )
        return result.y, result.batch_mean, result.batch_variance

    def _plain(self, inputs: Any) -> tuple[Any, Any, Any]:
        wide = ops.cast(inputs, "float32")
        mean, variance = ops.moments(wide, axes=[0, 1, 2])
        outputs = ops.batch_normalization(wide, mean, variance, -1, self.beta, self.gamma, self.epsilon)
        count = math.prod(inputs.shape[:-1])
        return ops.cast(outputs, self.compute_dtype), mean, ops.multiply(variance, count / max(1, count - 1))


@dataclasses.dataclass(frozen=True)
class TrainingNetwork:
    """A model in training and its variables, each with its spec, in the walk's order.

    `moved`: what the optimizer moves. `statistics`: moving mean and variance of the normalizations that are not frozen.
    `fixed`: all else, which stays as it is. `seeds`: the states of the dropout layers' generators, in their order.
    """

    model: keras.Model
    origin: ModelConfig | None
    moved: dict[TensorSpec, keras.Variable]
    statistics: dict[TensorSpec, keras.Variable]
    fixed: dict[TensorSpec, keras.Variable]
    seeds: list[keras.Variable]


def start_values(
    recipe: Recipe, init: Any | None, classes: Sequence[str] | None = None
) -> tuple[Mapping[tuple[str, str], np.ndarray] | None, ModelConfig | None]:
    """Return the given weights by Keras's names, and the `ModelConfig` they came with; None twice without `init`.

    `classes`: the data's class names. If the weights have other classes, the head is left out and initialized
    again; if only the order differs, the head is reordered.

    Raises:
        ConfigError: the weights are of another architecture than the recipe's.
        RszooError: `rszoo.create` cannot load them.
    """
    # Before any draw: initial values and new heads are the seed's.
    keras.utils.set_random_seed(recipe.train.seed)
    if init is None:
        return None, None
    arch = recipe.model
    given = create(
        init,
        pretrained=True,
        framework="keras",
        num_classes=arch.num_classes,
        in_chans=arch.in_chans,
        dtype="float32",
    )
    check_architecture(given.config, arch, given.origin)
    values = {name: ops.convert_to_numpy(variable) for name, variable in _variables(given).items()}
    order, origin = decide_head(given.origin, classes)
    for name in [keras_name(spec) for spec in iter_tensors(arch) if spec.layer.startswith("head.")]:
        if order is None:
            del values[name]
        elif order:
            # The last axis of kernel and bias is that of the classes.
            values[name] = values[name][..., list(order)]
    return values, origin


def build_network(
    recipe: Recipe, weights: Mapping[tuple[str, str], np.ndarray] | None, origin: ModelConfig | None
) -> TrainingNetwork:
    """Build the network in training form, frozen as the recipe says, with float32 weights.

    `weights`, `origin`: of `start_values`. Call it where Keras is to put the variables.
    """
    train = recipe.train
    with keras_scope("mixed_bfloat16" if train.precision == "bfloat16" else "float32", None):
        norm = partial(TrainingBatchNorm, momentum=train.bn_momentum)
        model = build_model(recipe.model, weights, batch_norm=norm)
    leaves = {leaf.name: leaf for layer in model.layers for leaf in getattr(layer, "layers", [layer])}
    variables = _variables(model)
    moved: dict[TensorSpec, keras.Variable] = {}
    statistics: dict[TensorSpec, keras.Variable] = {}
    fixed: dict[TensorSpec, keras.Variable] = {}
    for spec in iter_tensors(recipe.model):
        variable = variables[keras_name(spec)]
        if _is_frozen(spec, train):
            leaves[keras_name(spec)[0]].trainable = False
            fixed[spec] = variable
        else:
            (statistics if spec.kind in _STATISTICS else moved)[spec] = variable
    for block in recipe.model.iter_blocks():
        if block.drop_connect_rate and block.stage <= train.freeze_through:
            leaves[f"{block.name.replace('.', '_')}_drop_connect"].rate = 0.0
    seeds = [leaf.seed_generator.state for leaf in leaves.values() if hasattr(leaf, "seed_generator")]
    return TrainingNetwork(model, origin, moved, statistics, fixed, seeds)


def _is_frozen(spec: TensorSpec, train: TrainSettings) -> bool:
    in_front = train.freeze_through > 0 and layer_group(spec) <= train.freeze_through
    return in_front or (train.bn == "frozen" and spec.kind.layer_type == "bn")


def _variables(model: keras.Model) -> dict[tuple[str, str], keras.Variable]:
    named = {}
    for variable in model.weights:
        # Layers inside other models have these models' names before their own.
        layer, name = variable.path.split("/")[-2:]
        named[layer, name] = variable
    return named
