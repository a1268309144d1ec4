"""Training images: from a source to an endless dataset of augmented, normalized batches."""

from __future__ import annotations

import tensorflow as tf

from rszoo.errors import UsageError
from rszoo.pipeline import crops
from rszoo.pipeline.decoding import Decoder
from rszoo.pipeline.faults import Faults
from rszoo.pipeline.order import image_seed, training_stream
from rszoo.pipeline.randaugment import randaugment
from rszoo.pipeline.share import Position, Share
from rszoo.pipeline.sources import Source
from rszoo.recipes.recipe import Recipe

#: Whether an image is usable, and a dictionary with the image, its label and its position.
Prepared = tuple[tf.Tensor, dict[str, tf.Tensor]]

_START = Position()


def training_dataset(
    source: Source,
    recipe: Recipe,
    *,
    share: Share,
    batch_size: int,
    position: Position = _START,
    faults: Faults,
) -> tf.data.Dataset:
    """Return an endless dataset of batches of this reader's images.

    Elements: "image" float32 (B, S, S, 3), normalized RGB; "label" int32 (B,), from 0; "position" int64 (B, 3), each
    image's own. They depend only on `recipe.train.seed`, the share and the data. The stream from a position equals the
    rest of the uninterrupted stream; positions of broken images are missing. To resume after an image, start at its
    position with `image + 1`.

    Raises:
        UsageError: the data have other classes than the recipe's model, or fewer images than readers.
        RszooError: as `rszoo.pipeline.faults.reading`, of the first file.
    """
    classes = recipe.model.num_classes
    if source.num_classes not in (None, classes):
        raise UsageError(
            f"{source.title} has {source.num_classes} classes, the recipe's model {classes}; "
            f"set model.num_classes={source.num_classes}"
        )
    if source.num_images is not None:
        # If all of them are broken, an endless stream would never return an image.
        faults.lower_limit(source.num_images - 1)
    decoder = Decoder(source, classes, faults)
    # There is no Python control flow to convert, and trying takes longer than the rest of the start-up.
    prepare = tf.autograph.experimental.do_not_convert(lambda element: _prepare(element, decoder, recipe))
    images = (
        training_stream(source, recipe.train.seed, share, position, faults)
        .map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
        .scan(tf.zeros([], tf.int64), lambda row, image: _end_row(row, image, faults))
        .filter(lambda usable, element: usable)
        .map(lambda usable, element: element)
    )
    return with_options(
        images.batch(batch_size, drop_remainder=True, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    )


def with_options(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Return a dataset whose order does not depend on timing, and which no strategy shards again."""
    options = tf.data.Options()
    options.deterministic = True
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.with_options(options)


def _prepare(element: dict[str, tf.Tensor], decoder: Decoder, recipe: Recipe) -> Prepared:
    """Return whether an element is usable, and its image, label and position."""
    settings, augment = recipe.data.preprocessing, recipe.augment
    seeds = tf.random.experimental.stateless_split(image_seed(recipe.train.seed, element), 3)
    make_box = crops.shifted_box if augment.shift else crops.random_box
    pixels, label = decoder.crop(element, lambda shape: make_box(shape, seeds[0], augment, settings))
    usable = tf.size(pixels) > 0

    def finish() -> tf.Tensor:
        return crops.normalize(_augment(crops.resize(pixels, settings), seeds, recipe), settings)

    size = settings.image_size
    image = tf.cond(usable, finish, lambda: tf.zeros([size, size, 3]))
    return usable, {"image": tf.ensure_shape(image, [size, size, 3]), "label": label, "position": element["position"]}


def _end_row(row: tf.Tensor, image: Prepared, faults: Faults) -> tuple[tf.Tensor, Prepared]:
    """Count unusable images in a row; an endless stream of nothing else would never return."""
    row = tf.where(image[0], tf.zeros_like(row), row + 1)
    row = tf.cond(
        row < faults.longest_row, lambda: row, lambda: tf.numpy_function(lambda _: faults.end_row(), [row], tf.int64)
    )
    return tf.ensure_shape(row, []), image


def _augment(image: tf.Tensor, seeds: tf.Tensor, recipe: Recipe) -> tf.Tensor:
    augment = recipe.augment
    if augment.flip:
        image = tf.image.stateless_random_flip_left_right(image, seeds[1])
    if augment.randaugment_layers == 0:
        return image
    levels = tf.cast(tf.clip_by_value(image, 0.0, 255.0), tf.uint8)
    augmented = randaugment(
        levels,
        seeds[2],
        layers=augment.randaugment_layers,
        magnitude=augment.randaugment_magnitude,
        operations=augment.randaugment_operations,
    )
    return tf.cast(augmented, tf.float32)
