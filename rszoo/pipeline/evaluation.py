"""Evaluation images: from a source to a finite dataset with each image exactly once, for any share and batch size."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from rszoo.errors import ImageError
from rszoo.folder.evaluations import Transform
from rszoo.inference.reader import decode_by_pillow
from rszoo.pipeline import crops
from rszoo.pipeline.decoding import Decoder
from rszoo.pipeline.faults import Faults
from rszoo.pipeline.order import evaluation_stream, share_range
from rszoo.pipeline.share import Share
from rszoo.pipeline.sources import ShardSource, Source
from rszoo.pipeline.training import with_options
from rszoo.registry.preprocessing import Preprocessing


def evaluation_dataset(
    source: Source,
    preprocessing: Preprocessing,
    *,
    share: Share,
    batch_size: int,
    faults: Faults,
    transform: Transform = "published",
) -> tf.data.Dataset:
    """Return the batches of this reader's share of all images, in the order of their files.

    Elements: "image" float32 (B, S, S, 3), normalized RGB; "label" int32 (B,), from 0; "weight" float32 (B,), 0 for a
    broken image and for the padding of the last batch; "index" int64 (B,), the image's number in the split, -1 for
    padding. All shares have the same number of batches. `transform` "timm" is timm's, for the same input size, by
    Pillow, JPEGs too: their pixels are not those of "published".

    Raises:
        SourceNotFoundError: TFRecords cannot be counted because a file cannot be read.
        OutputError: the cache cannot be written.
    """
    total = sum(source.record_counts) if isinstance(source, ShardSource) else source.num_images or 0
    batches = math.ceil(max(_length(total, Share(i, share.count)) for i in range(share.count)) / batch_size)
    decoder = Decoder(source, source.num_classes, faults)
    prepare = _prepare_published if transform == "published" else _prepare_timm

    def weigh(element: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        size = preprocessing.image_size
        usable, image, label = prepare(element, decoder, preprocessing)
        return {
            "image": tf.ensure_shape(image, [size, size, 3]),
            "label": tf.where(usable, label, 0),
            "weight": tf.cast(usable, tf.float32),
            "index": element["index"],
        }

    images = evaluation_stream(source, share, faults).map(weigh, num_parallel_calls=tf.data.AUTOTUNE)
    filled = images.concatenate(tf.data.Dataset.from_tensors(_padding(preprocessing)).repeat())
    return with_options(
        filled.batch(batch_size, drop_remainder=True, num_parallel_calls=tf.data.AUTOTUNE)
        .take(batches)
        .prefetch(tf.data.AUTOTUNE)
    )


def _length(total: int, share: Share) -> int:
    start, stop = share_range(total, share)
    return stop - start


def _padding(preprocessing: Preprocessing) -> dict[str, tf.Tensor]:
    size = preprocessing.image_size
    return {
        "image": tf.zeros([size, size, 3]),
        "label": tf.zeros([], tf.int32),
        "weight": tf.zeros([]),
        "index": tf.constant(-1, tf.int64),
    }


def _prepare_published(
    element: dict[str, tf.Tensor], decoder: Decoder, preprocessing: Preprocessing
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    pixels, label = decoder.crop(element, lambda shape: crops.center_box(shape, preprocessing))
    usable, size = tf.size(pixels) > 0, preprocessing.image_size
    image = tf.cond(
        usable,
        lambda: crops.normalize(crops.resize(pixels, preprocessing), preprocessing),
        lambda: tf.zeros([size, size, 3]),
    )
    return usable, image, label


def _prepare_timm(
    element: dict[str, tf.Tensor], decoder: Decoder, preprocessing: Preprocessing
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    size = preprocessing.image_size

    def prepare(content: bytes, label: int, file: int, record: int) -> tuple[np.bool_, np.ndarray, np.int32]:
        try:
            encoded, own_label = decoder.bytes_of(content, int(label))
            return np.bool_(True), timm_transform(decode_by_pillow(encoded), preprocessing), np.int32(own_label)
        except ImageError as error:
            decoder.note(file, record, error)
            return np.bool_(False), np.zeros((size, size, 3), np.float32), np.int32(0)

    inputs = [element["content"], element["label"], element["file"], element["record"]]
    usable, image, label = tf.numpy_function(prepare, inputs, (tf.bool, tf.float32, tf.int32))
    usable.set_shape([])
    label.set_shape([])
    return usable, image, label


def timm_transform(pixels: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Apply timm's evaluation transform to uint8 (H, W, 3); return float32 (size, size, 3), normalized.

    The shorter side is resized to floor(size / crop) with Pillow's antialiased bicubic, the longer one in proportion,
    truncated; then the center is cropped, with offsets rounded to nearest. Facts: timm 1.0.31
    `data/transforms_factory.py` (`transforms_imagenet_eval`, crop mode "center") and torchvision's `Resize` and
    `CenterCrop` for Pillow images.
    """
    from PIL import Image

    size, (height, width) = preprocessing.image_size, pixels.shape[:2]
    short = math.floor(size / preprocessing.crop)
    long = int(short * max(height, width) / min(height, width))
    height, width = (long, short) if height > width else (short, long)
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    top, left = round((height - size) / 2), round((width - size) / 2)
    levels = np.asarray(resized, np.float32)[top : top + size, left : left + size] / np.float32(255)
    return (levels - np.asarray(preprocessing.mean, np.float32)) / np.asarray(preprocessing.std, np.float32)
