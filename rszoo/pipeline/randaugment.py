"""RandAugment as the published TF1 code does it, on one uint8 image, in the graph and determined by a seed.

Facts: tensorflow/tpu `models/official/efficientnet/autoaugment.py`, `distort_image_with_randaugment`; for the 17th
outcome tensorflow/models `official/vision/ops/augment.py`. The operations are in `rszoo.pipeline.image_ops`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, get_args

import tensorflow as tf

from rszoo.errors import ConfigError
from rszoo.pipeline import image_ops
from rszoo.recipes.recipe import Operations

#: The operations in their published order, which is the order of the draws.
NAMES = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Cutout",
    "SolarizeAdd",
)


class Chance(NamedTuple):
    """The random values of an operation: the sign (+1 or -1, float32), and Cutout's center (int32 pixels)."""

    sign: Any
    row: Any
    column: Any


def randaugment(image: Any, seed: Any, *, layers: int, magnitude: float, operations: Operations) -> Any:
    """Return the image after `layers` operations, each drawn uniformly and always applied.

    Args:
        image: uint8 (H, W, 3), at least 3x3 pixels.
        seed: int32 or int64 (2,); the same seed gives the same operations, signs and places, on every machine.
        layers: number of operations in sequence; 0 returns the image.
        magnitude: 0 or more; 10 is an operation's usual full strength, and larger values are stronger.
        operations: `tf1` draws among the 16; `model-garden` adds a 17th outcome, which does nothing.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ConfigError: an argument, or the image's type or number of channels, is impossible.
    """
    _check(image, layers, magnitude, operations)
    if layers == 0:
        return image
    shape = image.shape
    outcomes = len(NAMES) + (operations == "model-garden")
    draws = tf.random.stateless_uniform((layers, 4), seed, alg="philox")
    height, width = tf.unstack(tf.shape(image)[:2])
    for layer in range(layers):
        choice, sign, row, column = tf.unstack(draws[layer])
        chance = Chance(tf.where(sign < 0.5, -1.0, 1.0), _below(height, row), _below(width, column))
        branches = [partial(apply, name, image, magnitude, chance) for name in NAMES]
        branches += [partial(tf.identity, image)] * (outcomes - len(NAMES))
        image = tf.ensure_shape(tf.switch_case(_below(outcomes, choice), branches), shape)
    return image


def apply(name: str, image: Any, magnitude: float, chance: Chance) -> Any:
    """Return the image after one named operation; `chance` has its random values. Shapes as in `randaugment`.

    Raises:
        ConfigError: there is no such operation.
    """
    level = float(magnitude) / 10
    factor = level * 1.8 + 0.1
    table: dict[str, Callable[[], Any]] = {
        "AutoContrast": lambda: image_ops.autocontrast(image),
        "Equalize": lambda: image_ops.equalize(image),
        "Invert": lambda: image_ops.invert(image),
        "Rotate": lambda: image_ops.rotate(image, chance.sign * (level * 30)),
        "Posterize": lambda: image_ops.posterize(image, int(level * 4)),
        "Solarize": lambda: image_ops.solarize(image, int(level * 256)),
        "Color": lambda: image_ops.color(image, factor),
        "Contrast": lambda: image_ops.contrast(image, factor),
        "Brightness": lambda: image_ops.brightness(image, factor),
        "Sharpness": lambda: image_ops.sharpness(image, factor),
        "ShearX": lambda: image_ops.shear_x(image, chance.sign * (level * 0.3)),
        "ShearY": lambda: image_ops.shear_y(image, chance.sign * (level * 0.3)),
        "TranslateX": lambda: image_ops.translate_x(image, chance.sign * (level * 100)),
        "TranslateY": lambda: image_ops.translate_y(image, chance.sign * (level * 100)),
        "Cutout": lambda: image_ops.cutout(image, int(level * 40), chance.row, chance.column),
        "SolarizeAdd": lambda: image_ops.solarize_add(image, int(level * 110)),
    }
    if name not in table:
        raise ConfigError(f"no operation {name!r}; allowed: {', '.join(NAMES)}")
    return table[name]()


def _below(count: Any, uniform: Any) -> Any:
    """Return a whole number from 0 up to, not including, `count`, from a uniform number in [0, 1)."""
    return tf.cast(uniform * tf.cast(count, tf.float32), tf.int32)


def _check(image: Any, layers: int, magnitude: float, operations: str) -> None:
    if image.dtype != tf.uint8 or image.shape.rank != 3 or image.shape[-1] != 3:
        raise ConfigError(f"RandAugment needs an image of uint8 (H, W, 3), received {image.dtype.name} {image.shape}")
    if layers < 0:
        raise ConfigError(f"layers must be 0 or more, received {layers}")
    if not 0 <= magnitude < math.inf:
        raise ConfigError(f"magnitude must be 0 or more, received {magnitude}")
    if operations not in get_args(Operations):
        raise ConfigError(f"operations must be {' or '.join(get_args(Operations))}, received {operations!r}")
