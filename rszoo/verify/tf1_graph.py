"""The original network as a TF1 graph in genuine `tf.compat.v1` code: the reference that everything is compared with.

Follows tensorflow/tpu `models/official/resnet/resnet_model.py` op by op. Its variable names come from TensorFlow's own
scope counters, not from `converters.formats.tf1`, so that a wrong name map cannot agree with it. Used by
`rszoo verify`, by the tests, and to train the demo model. Importing this module imports TensorFlow.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf
from tensorflow.python.util import deprecation

from converters.formats import get_target
from converters.write_back import write_into
from rszoo.arch.config import ArchConfig, Block
from rszoo.errors import ConfigError
from rszoo.folder.model_folder import ModelFolder

# TF1 code in TF2 warns on every call; the user of this module can do nothing about it.
deprecation._PRINT_DEPRECATION_WARNINGS = False

EMA_DECAY = 0.9999
WEIGHT_DECAY = 4e-5
MOMENTUM = 0.9
LABEL_SMOOTHING = 0.1


@dataclass
class Tf1Graph:
    """A built graph. `stages` has the tensors stem, stage1..stage4, pooled and, if any, logits, NHWC float32.

    `averages` maps each model variable's EMA name to the variable, as an evaluating Saver wants it.
    """

    graph: Any
    images: Any
    stages: dict[str, Any]
    averages: dict[str, Any]
    labels: Any = None
    learning_rate: Any = None
    loss: Any = None
    train_op: Any = None

    def run_stages(
        self, checkpoint: str | Path, batches: Sequence[np.ndarray], *, ema: bool
    ) -> list[dict[str, np.ndarray]]:
        """Restore a checkpoint with a Saver, as averages or as plain weights, and return each batch's stages by name.

        `batches`: float32 (N, H, W, C) each.
        """
        with self.graph.as_default(), tf.Session(graph=self.graph) as session:
            variables = self.averages if ema else {variable.op.name: variable for variable in self.averages.values()}
            tf.train.Saver(variables).restore(session, str(checkpoint))
            return [session.run(self.stages, {self.images: images}) for images in batches]


def run_reference(folder: ModelFolder, batches: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Restore a model folder's weights in the graph with TensorFlow's Saver, and return each batch's stages by name.

    `batches`: float32 (N, H, W, C) each; outputs are NHWC.

    Raises:
        ConfigError, ConversionError: the folder is not of the TF1 lineage.
    """
    graph = build_inference(folder.config.arch)
    with tempfile.TemporaryDirectory(prefix="rszoo-") as temporary:
        # Damage is another check's to find.
        # A network without a classifier, too, which is no whole TF1 checkpoint.
        prefix = Path(temporary) / write_into(Path(temporary), folder, *get_target("tf1"), check=False)
        return graph.run_stages(prefix, batches, ema=folder.config.weights == "ema")


# `verify` holds each framework against the same network; building a deep one takes many seconds.
@functools.lru_cache(maxsize=1)
def build_inference(config: ArchConfig) -> Tf1Graph:
    """Build the evaluation graph. Input: float32 (N, H, W, C) of any size. The last one is kept.

    Raises:
        ConfigError: the config is not of the TF1 lineage.
    """
    graph = tf.Graph()
    with graph.as_default():
        images = tf.placeholder(tf.float32, (None, None, None, config.in_chans))
        stages = _network(config, images, training=False)
        averages = {f"{variable.op.name}/ExponentialMovingAverage": variable for variable in tf.global_variables()}
    return Tf1Graph(graph, images, stages, averages)


def build_training(config: ArchConfig, seed: int) -> Tf1Graph:
    """Build the training graph as published: L2 in the loss, Nesterov momentum, EMA over weights and BN statistics.

    `seed` decides the initial values and the dropout.

    Raises:
        ConfigError: the config is not of the TF1 lineage.
    """
    graph = tf.Graph()
    with graph.as_default():
        tf.set_random_seed(seed)
        step = tf.train.get_or_create_global_step()
        images = tf.placeholder(tf.float32, (None, None, None, config.in_chans))
        labels = tf.placeholder(tf.int32, (None,))
        learning_rate = tf.placeholder(tf.float32, ())
        stages = _network(config, images, training=True)
        averaged = tf.trainable_variables() + tf.get_collection(tf.GraphKeys.MOVING_AVERAGE_VARIABLES)
        targets = tf.one_hot(labels, config.num_classes)
        loss = tf.losses.softmax_cross_entropy(targets, stages["logits"], label_smoothing=LABEL_SMOOTHING)
        decayed = [v for v in tf.trainable_variables() if "batch_normalization" not in v.op.name]
        loss += WEIGHT_DECAY * tf.add_n([tf.nn.l2_loss(variable) for variable in decayed])
        optimizer = tf.train.MomentumOptimizer(learning_rate, MOMENTUM, use_nesterov=True)
        with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
            minimized = optimizer.minimize(loss, global_step=step)
        ema = tf.train.ExponentialMovingAverage(EMA_DECAY, num_updates=step)
        with tf.control_dependencies([minimized]):
            train_op = ema.apply(averaged)
        averages = {ema.average_name(variable): variable for variable in averaged}
    return Tf1Graph(graph, images, stages, averages, labels, learning_rate, loss, train_op)


def _network(config: ArchConfig, images: Any, *, training: bool) -> dict[str, Any]:
    if (config.activation, config.strided_padding) != ("relu", "symmetric") or config.shortcut_pool == "always":
        raise ConfigError(f"the TF1 graph knows only its own lineage, received {config}")
    x, stages = images, {}
    for conv in config.iter_stem():
        x = _bn(_conv(x, conv.size, conv.out_channels, conv.stride), config, training, relu=True)
    if config.stem == "classic":
        x = tf.nn.max_pool2d(x, 3, 2, "SAME")
    stages["stem"] = x
    for block in config.iter_blocks():
        x = _block(x, block, config, training)
        stages[f"stage{block.stage}"] = x
    stages["pooled"] = x = tf.reduce_mean(x, axis=(1, 2))
    if training and config.dropout_rate:
        x = tf.nn.dropout(x, rate=config.dropout_rate)
    if not config.num_classes:
        return stages
    with tf.variable_scope(None, default_name="dense"):
        shape = (x.shape[-1], config.num_classes)
        kernel = tf.get_variable("kernel", shape, initializer=tf.random_normal_initializer(stddev=0.01))
        bias = tf.get_variable("bias", (config.num_classes,), initializer=tf.zeros_initializer())
        stages["logits"] = tf.matmul(x, kernel) + bias
    return stages


def _block(x: Any, block: Block, config: ArchConfig, training: bool) -> Any:
    shortcut = x
    if block.has_projection:
        if block.pools_shortcut:
            shortcut = tf.nn.avg_pool2d(x, 2, block.stride, "SAME")
        shortcut = _bn(_conv(shortcut, 1, block.out_channels, block.projection_stride), config, training)
    x = _bn(_conv(x, 1, block.width), config, training, relu=True)
    x = _bn(_conv(x, 3, block.width, block.stride), config, training, relu=True)
    x = _bn(_conv(x, 1, block.out_channels), config, training, zero_gamma=True)
    if block.se_channels:
        squeezed = tf.reduce_mean(x, axis=(1, 2), keepdims=True)
        squeezed = tf.nn.relu(_conv(squeezed, 1, block.se_channels, bias=True))
        x = x * tf.sigmoid(_conv(squeezed, 1, block.out_channels, bias=True))
    if training and block.drop_connect_rate:
        keep = 1.0 - block.drop_connect_rate
        x = x / keep * tf.floor(keep + tf.random_uniform((tf.shape(x)[0], 1, 1, 1)))
    return tf.nn.relu(x + shortcut)


def _conv(x: Any, size: int, filters: int, stride: int = 1, bias: bool = False) -> Any:
    if stride > 1:
        before = (size - 1) // 2
        x = tf.pad(x, [[0, 0], [before, size - 1 - before], [before, size - 1 - before], [0, 0]])
    with tf.variable_scope(None, default_name="conv2d"):
        shape = (size, size, x.shape[-1], filters)
        kernel = tf.get_variable("kernel", shape, initializer=tf.variance_scaling_initializer())
        x = tf.nn.conv2d(x, kernel, stride, "SAME" if stride == 1 else "VALID")
        if bias:
            x += tf.get_variable("bias", (filters,), initializer=tf.zeros_initializer())
    return x


def _bn(x: Any, config: ArchConfig, training: bool, *, relu: bool = False, zero_gamma: bool = False) -> Any:
    channels = (x.shape[-1],)
    with tf.variable_scope(None, default_name="batch_normalization"):
        first = tf.zeros_initializer() if zero_gamma else tf.ones_initializer()
        gamma = tf.get_variable("gamma", channels, initializer=first)
        beta = tf.get_variable("beta", channels, initializer=tf.zeros_initializer())
        mean, variance = (
            tf.get_variable(
                name,
                channels,
                initializer=initializer,
                trainable=False,
                collections=[tf.GraphKeys.GLOBAL_VARIABLES, tf.GraphKeys.MOVING_AVERAGE_VARIABLES],
            )
            for name, initializer in (
                ("moving_mean", tf.zeros_initializer()),
                ("moving_variance", tf.ones_initializer()),
            )
        )
        if training:
            x, batch_mean, batch_variance = tf.nn.fused_batch_norm(x, gamma, beta, epsilon=config.bn_epsilon)[:3]
            # bn_momentum is 0 in every published config: the moving statistics are the last batch's.
            for moving, batch in ((mean, batch_mean), (variance, batch_variance)):
                tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, moving.assign(batch))
        else:
            x = tf.nn.fused_batch_norm(x, gamma, beta, mean, variance, epsilon=config.bn_epsilon, is_training=False)[0]
    return tf.nn.relu(x) if relu else x
