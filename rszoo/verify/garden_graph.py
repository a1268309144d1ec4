"""The Model Garden's network in plain TensorFlow: the reference that a conversion of its checkpoints is compared with.

Follows tensorflow/models `official/vision/modeling/backbones/resnet.py` (stem v1, ResNet-D shortcut, no max pool),
`layers/nn_blocks.py` (`BottleneckBlock`) and `layers/nn_layers.py` (`SqueezeExcitation`) op by op. Its variables hang
on objects with the names that Keras and that code give them, and TensorFlow restores them by these names; it does not
use `converters.formats.garden`, so that a wrong map cannot agree with it. Importing this module imports TensorFlow.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from converters.write_back import write_checkpoint
from rszoo.arch.config import ArchConfig, Block
from rszoo.errors import ConfigError
from rszoo.folder.model_folder import ModelFolder


def run_reference(folder: ModelFolder, batches: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Restore a model folder's weights with `tf.train.Checkpoint`, and return each batch's stages by name.

    `batches`: float32 (N, H, W, C) each; outputs are NHWC.

    Raises:
        ConfigError, ConversionError: the folder is not of the Garden's lineage.
    """
    network = Classifier(folder.config.arch)
    with tempfile.TemporaryDirectory(prefix="rszoo-") as temporary:
        # Damage is another check's to find.
        prefix = write_checkpoint(folder, Path(temporary) / "garden", "garden", check=False)
        network.restore(prefix)
    return [network.stages(images) for images in batches]


class Classifier(tf.Module):
    """The classification model, whose variables have no values yet.

    Raises:
        ConfigError: the config is not of the Garden's lineage.
    """

    def __init__(self, config: ArchConfig) -> None:
        super().__init__()
        ops = config.activation, config.strided_padding, config.shortcut_pool, config.stem
        if ops != ("silu", "same", "always", "deep"):
            raise ConfigError(
                f"the Model Garden's ResNet-RS has silu, same, always and deep, received {', '.join(ops)}"
            )
        self._epsilon = config.bn_epsilon
        self.backbone = tf.Module()
        self._stem = []
        for conv in config.iter_stem():
            kernel = self._add(_Conv(conv.size, conv.in_channels, conv.out_channels))
            self._stem.append((kernel, self._add(_Norm(conv.out_channels)), conv.stride))
        self._blocks = [(block, self._add(_Bottleneck(block, config.bn_epsilon))) for block in config.iter_blocks()]
        self.dense = _Dense(config.num_features, config.num_classes)

    def restore(self, prefix: str | Path) -> None:
        """Read all variables from a checkpoint, whether a trainer or the model was saved."""
        model = tf.Module()
        model._track_trackable(self.backbone, "layer_with_weights-0")
        model._track_trackable(self.dense, "layer_with_weights-1")
        status = tf.train.Checkpoint(model=model, backbone=self.backbone).read(str(prefix))
        status.assert_existing_objects_matched().expect_partial()

    def stages(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs stem, stage1..stage4, pooled and logits of float32 (N, H, W, C) images."""
        outputs = {}
        x = tf.constant(images)
        for conv, norm, stride in self._stem:
            x = tf.nn.silu(norm(conv(x, stride), self._epsilon))
        outputs["stem"] = x
        for block, bottleneck in self._blocks:
            x = outputs[f"stage{block.stage}"] = bottleneck(x)
        outputs["pooled"] = x = tf.reduce_mean(x, (1, 2))
        outputs["logits"] = self.dense(x)
        return {name: values.numpy() for name, values in outputs.items()}

    def _add(self, layer: tf.Module) -> tf.Module:
        """Number a layer of the backbone as Keras does those with weights, in the order of their creation."""
        number = len(self.backbone._trackable_children())
        self.backbone._track_trackable(layer, f"layer_with_weights-{number}")
        return layer


class _Conv(tf.Module):
    def __init__(self, size: int, inputs: int, outputs: int, *, bias: bool = False) -> None:
        super().__init__()
        self.kernel = tf.Variable(tf.zeros((size, size, inputs, outputs)))
        self.bias = tf.Variable(tf.zeros(outputs)) if bias else None

    def __call__(self, x: tf.Tensor, stride: int = 1) -> tf.Tensor:
        x = tf.nn.conv2d(x, self.kernel, stride, "SAME")
        return x if self.bias is None else x + self.bias


class _Norm(tf.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma, self.beta = (tf.Variable(tf.zeros(channels)) for _ in range(2))
        self.moving_mean, self.moving_variance = (tf.Variable(tf.zeros(channels)) for _ in range(2))

    def __call__(self, x: tf.Tensor, epsilon: float) -> tf.Tensor:
        return tf.nn.batch_normalization(x, self.moving_mean, self.moving_variance, self.beta, self.gamma, epsilon)


class _SqueezeExcitation(tf.Module):
    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self._se_reduce = _Conv(1, channels, reduced, bias=True)
        self._se_expand = _Conv(1, reduced, channels, bias=True)

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        gate = tf.reduce_mean(x, (1, 2), keepdims=True)
        # ReLU here, whatever the activation outside.
        gate = self._se_expand(tf.nn.relu(self._se_reduce(gate)))
        return x * tf.sigmoid(gate)


class _Bottleneck(tf.Module):
    def __init__(self, block: Block, epsilon: float) -> None:
        super().__init__()
        self._epsilon, self._stride = epsilon, block.stride
        self._projects = block.has_projection
        if block.has_projection:
            self._shortcut1, self._norm0 = _Conv(1, block.in_channels, block.out_channels), _Norm(block.out_channels)
        self._conv1, self._norm1 = _Conv(1, block.in_channels, block.width), _Norm(block.width)
        self._conv2, self._norm2 = _Conv(3, block.width, block.width), _Norm(block.width)
        self._conv3, self._norm3 = _Conv(1, block.width, block.out_channels), _Norm(block.out_channels)
        self._squeeze_excitation = (
            _SqueezeExcitation(block.out_channels, block.se_channels) if block.se_channels else None
        )

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        shortcut = x
        if self._projects:
            # Of two cells and the block's stride, also where that is 1.
            shortcut = tf.nn.avg_pool2d(x, 2, self._stride, "SAME")
            shortcut = self._norm0(self._shortcut1(shortcut), self._epsilon)
        x = tf.nn.silu(self._norm1(self._conv1(x), self._epsilon))
        x = tf.nn.silu(self._norm2(self._conv2(x, self._stride), self._epsilon))
        x = self._norm3(self._conv3(x), self._epsilon)
        if self._squeeze_excitation is not None:
            x = self._squeeze_excitation(x)
        return tf.nn.silu(x + shortcut)


class _Dense(tf.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.kernel, self.bias = tf.Variable(tf.zeros((inputs, outputs))), tf.Variable(tf.zeros(outputs))

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return x @ self.kernel + self.bias
