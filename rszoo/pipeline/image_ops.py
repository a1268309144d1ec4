"""RandAugment's 16 operations on one image, in TensorFlow: uint8 (H, W, 3) in, the same shape and type out.

Facts: tensorflow/tpu `models/official/efficientnet/autoaugment.py` and the kernels of `tf.contrib.image` that it calls.
Apparent mistakes here are the published arithmetic, with which the networks were trained. docs/randaugment.md
lists these quirks; `rszoo.pipeline.randaugment` chooses among the operations.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

#: The gray level that fills holes.
FILL = 128

# The smoothing kernel (1 1 1; 1 5 1; 1 1 1) / 13, as its two float32 values.
_SMOOTH_SIDE, _SMOOTH_CENTER = np.float32(1) / np.float32(13), np.float32(5) / np.float32(13)


def autocontrast(image: Any) -> Any:
    """Stretch each channel to 0..255; a constant channel does not change."""
    low, high = (tf.cast(_channels(reduce, image), tf.float32) for reduce in (tf.reduce_min, tf.reduce_max))
    constant = high <= low
    scale = 255.0 / (high - low)
    offset = tf.where(constant, 0.0, -low * scale)
    scale = tf.where(constant, 1.0, scale)
    rows = tf.cast(_rows(image), tf.float32)
    return tf.reshape(_to_bytes(rows * _along_row(scale, image) + _along_row(offset, image)), tf.shape(image))


def equalize(image: Any) -> Any:
    """Equalize each channel's histogram by Pillow's rule; a channel whose step is 0 does not change."""
    bins = tf.cast(_rows(image), tf.int32) + _along_row(tf.constant([0, 256, 512]), image)
    counts = tf.raw_ops.Bincount(arr=tf.reshape(bins, [-1]), size=768, weights=tf.constant([], tf.int32))
    counts = tf.reshape(counts, [3, 256])
    values = tf.range(256)
    highest = tf.reduce_max(tf.where(counts > 0, values, 0), axis=1, keepdims=True)
    step = (tf.reduce_sum(counts, axis=1, keepdims=True) - tf.gather(counts, highest, batch_dims=1)) // 255
    below = tf.cumsum(counts, axis=1, exclusive=True)
    table = tf.minimum((below + step // 2) // tf.maximum(step, 1), 255)
    table = tf.cast(tf.where(step > 0, table, values), tf.uint8)
    return tf.reshape(tf.gather(tf.reshape(table, [-1]), bins), tf.shape(image))


def invert(image: Any) -> Any:
    """Return the negative."""
    return 255 - image


def posterize(image: Any, bits: int) -> Any:
    """Keep the highest `bits` bits of each byte."""
    # The published shift is a uint8: negative values wrap, and TensorFlow treats shifts above 7 as 7.
    shift = min((8 - bits) % 256, 7)
    return tf.bitwise.bitwise_and(image, tf.constant(0xFF >> shift << shift, tf.uint8))


def solarize(image: Any, threshold: int) -> Any:
    """Invert the pixels from `threshold` upward; it wraps at 256: 256 is 0, 384 is 128."""
    flipped = tf.cast(image >= tf.constant(threshold % 256, tf.uint8), tf.uint8)
    return tf.bitwise.bitwise_xor(image, flipped * 255)


def solarize_add(image: Any, addition: int) -> Any:
    """Add to the pixels below 128, up to 255."""
    dark = tf.cast(image < 128, tf.uint8)
    return image + dark * tf.minimum(255 - image, tf.constant(min(addition, 255), tf.uint8))


def color(image: Any, factor: float) -> Any:
    """Blend with the gray image."""
    gray = tf.tile(tf.image.rgb_to_grayscale(image), [1, 1, 3])
    return _blend(tf.cast(gray, tf.float32), image, factor)


def contrast(image: Any, factor: float) -> Any:
    """Blend with one gray level: the image's pixel count / 256, at most 255, independent of the pixel values."""
    level = tf.minimum(tf.size(image) // 3 // 256, 255)
    return _blend(tf.cast(level, tf.float32), image, factor)


def brightness(image: Any, factor: float) -> Any:
    """Blend with black."""
    return _blend(0.0, image, factor)


def sharpness(image: Any, factor: float) -> Any:
    """Blend with the image smoothed over 3x3 pixels; the border of one pixel does not change."""
    height, width = tf.unstack(tf.shape(image)[:2])
    pixels = tf.cast(image, tf.float32)
    side, center = pixels * _SMOOTH_SIDE, pixels * _SMOOTH_CENTER
    # Summed row by row as in TensorFlow's own kernel: its convolution with oneDNN gives bytes that differ by one on
    # some machines. The sum is written as a negated difference because the graph optimizer may reorder a sum.
    negated = (pixels * -_SMOOTH_SIDE)[: height - 2, : width - 2]
    for row, column in [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]:
        weighted = center if row == column == 1 else side
        negated -= weighted[row : height - 2 + row, column : width - 2 + column]
    smooth = tf.floor(tf.minimum(-negated, 255.0))
    inner = _blend(smooth, image[1:-1, 1:-1], factor)
    middle = tf.concat([image[1:-1, :1], inner, image[1:-1, -1:]], axis=1)
    return tf.concat([image[:1], middle, image[-1:]], axis=0)


def rotate(image: Any, degrees: Any) -> Any:
    """Rotate around the center by a float32 scalar; positive is counterclockwise."""
    radians = degrees * np.float32(math.pi / 180)
    cos, sin = tf.cos(radians), tf.sin(radians)
    bottom, right = (tf.cast(size - 1, tf.float32) for size in tf.unstack(tf.shape(image)[:2]))
    x_offset = (right - (cos * right - sin * bottom)) / 2
    y_offset = (bottom - (sin * right + cos * bottom)) / 2
    return _transform(image, [cos, -sin, x_offset, sin, cos, y_offset])


def shear_x(image: Any, level: Any) -> Any:
    """Move each row left by `level` (a float32 scalar) times its number, counted from the top."""
    return _transform(image, [1.0, level, 0.0, 0.0, 1.0, 0.0])


def shear_y(image: Any, level: Any) -> Any:
    """Move each column up by `level` (a float32 scalar) times its number, counted from the left."""
    return _transform(image, [1.0, 0.0, 0.0, level, 1.0, 0.0])


def translate_x(image: Any, pixels: Any) -> Any:
    """Move left by `pixels`, a float32 scalar."""
    return _transform(image, [1.0, 0.0, pixels, 0.0, 1.0, 0.0])


def translate_y(image: Any, pixels: Any) -> Any:
    """Move up by `pixels`, a float32 scalar."""
    return _transform(image, [1.0, 0.0, 0.0, 0.0, 1.0, pixels])


def cutout(image: Any, half: int, row: Any, column: Any) -> Any:
    """Fill rows `row - half` up to, not including, `row + half`, and columns likewise, clipped to the image."""
    height, width = tf.unstack(tf.shape(image)[:2])
    rows, columns = tf.range(height)[:, None], tf.repeat(tf.range(width), 3)
    in_rows = tf.cast((rows >= row - half) & (rows < row + half), tf.uint8)
    in_columns = tf.cast((columns >= column - half) & (columns < column + half), tf.uint8)
    inside = in_rows * in_columns
    return tf.reshape(_rows(image) * (1 - inside) + inside * FILL, tf.shape(image))


def _transform(image: Any, coefficients: list[Any]) -> Any:
    """Take each pixel (x, y) from the pixel nearest to (a x + b y + c, d x + e y + f), with x to the right, y down."""
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=tf.stack([*coefficients, 0.0, 0.0])[None],
        output_shape=tf.shape(image)[:2],
        interpolation="NEAREST",
        fill_mode="CONSTANT",
        fill_value=float(FILL),
    )
    return moved[0]


def _blend(degenerate: Any, image: Any, factor: float) -> Any:
    """Interpolate from `degenerate` (float32, whole numbers) to the image; extrapolate if `factor` is above 1."""
    return _to_bytes(degenerate + np.float32(factor) * (tf.cast(image, tf.float32) - degenerate))


def _to_bytes(values: Any) -> Any:
    return tf.cast(tf.clip_by_value(values, 0.0, 255.0), tf.uint8)


def _rows(image: Any) -> Any:
    """Return (H, 3 W): TensorFlow broadcasts along a whole row several times faster than along three channels."""
    return tf.reshape(image, [tf.shape(image)[0], -1])


def _along_row(values: Any, image: Any) -> Any:
    """Repeat the values of three channels for each pixel of a row of `_rows`."""
    return tf.tile(values, [tf.shape(image)[1]])


def _channels(reduce: Any, image: Any) -> Any:
    """Reduce each channel, over rows first, because `_rows` makes that faster too."""
    return reduce(tf.reshape(reduce(_rows(image), axis=0), [-1, 3]), axis=0)
