"""TensorFlow graph functions: crop boxes, the resize, and normalization.

Boxes are int32 (4,): top, left, height, width in pixels. `rszoo.inference.images` has the same in numpy, and names the
sources.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from rszoo.recipes.recipe import AugmentSettings
from rszoo.registry.preprocessing import Preprocessing

_MIN_COVERED = 0.1
_ATTEMPTS = 10


def center_box(shape: tf.Tensor, settings: Preprocessing, *, at_least: int = 0) -> tf.Tensor:
    """Return the evaluation's box in an image of this shape, int32 (2,).

    `at_least` is the smallest side: the formula gives 0 for an image of one pixel.
    """
    if settings.interpolation == "bilinear":
        exact = np.float32(settings.crop) * tf.cast(tf.reduce_min(shape), tf.float32)
        side = tf.maximum(tf.cast(exact, tf.int32), at_least)
        # The offsets are of the side before it is truncated.
        offsets = tf.cast((tf.cast(shape, tf.float32) - exact) / 2.0, tf.int32)
        return tf.concat([offsets, [side, side]], 0)
    padding = round(settings.image_size * (1 / settings.crop - 1))
    # float32 and truncated: another rounding moves the crop by a pixel for some sizes.
    ratio = np.float32(settings.image_size / (settings.image_size + padding))
    side = tf.cast(ratio * tf.cast(tf.reduce_min(shape), tf.float32), tf.int32)
    side = tf.maximum(side, at_least)
    return tf.stack([(shape[0] - side + 1) // 2, (shape[1] - side + 1) // 2, side, side])


def random_box(shape: tf.Tensor, seed: tf.Tensor, augment: AugmentSettings, settings: Preprocessing) -> tf.Tensor:
    """Return a box of random area and aspect ratio; the evaluation's box if none of ten attempts fits.

    The box follows from `seed`, int64 (2,).
    """
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.concat([shape, [3]], 0),
        tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        seed=seed,
        min_object_covered=_MIN_COVERED,
        aspect_ratio_range=augment.crop_aspect_ratio,
        area_range=augment.crop_area,
        max_attempts=_ATTEMPTS,
    )
    # The op returns the whole image if all attempts fail.
    gave_up = tf.reduce_all(size[:2] == shape)
    return tf.where(gave_up, center_box(shape, settings, at_least=1), tf.concat([begin[:2], size[:2]], 0))


def shifted_box(shape: tf.Tensor, seed: tf.Tensor, augment: AugmentSettings, settings: Preprocessing) -> tf.Tensor:
    """Return the evaluation's box moved by up to `augment.shift` pixels in each direction, within the image."""
    box = center_box(shape, settings, at_least=1)
    moved = box[:2] + tf.random.stateless_uniform([2], seed, -augment.shift, augment.shift + 1, tf.int32)
    return tf.concat([tf.clip_by_value(moved, 0, shape - box[2:]), box[2:]], 0)


def resize(pixels: tf.Tensor, settings: Preprocessing) -> tf.Tensor:
    """Return uint8 (H, W, 3) resized to float32 (size, size, 3); legacy bicubic values may exceed 0 to 255."""
    images, size = pixels[None], [settings.image_size] * 2
    if settings.interpolation == "bilinear":
        return tf.raw_ops.ResizeBilinear(images=images, size=size, half_pixel_centers=True)[0]
    return tf.raw_ops.ResizeBicubic(images=images, size=size)[0]


def normalize(image: tf.Tensor, settings: Preprocessing) -> tf.Tensor:
    """Return an image with values from 0 to 255 as the network's input, float32."""
    mean, std = (np.asarray(values, np.float32) * np.float32(255) for values in (settings.mean, settings.std))
    return (image - mean) / std
