"""From elements of a source to cropped pixels: those of `rszoo.inference.reader`, or a named fault.

TensorFlow itself decodes whole RGB and gray JPEGs, of which it decodes only the box, and PNGs; both are detected by
their first bytes, not by file name. What it decodes otherwise than the reader, or not at all, the reader decodes in
Python: slower, but in several threads. TensorFlow's errors cannot be caught in a graph, but a dataset of one element
that ignores errors is then empty.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from rszoo.disk.regular import read_regular
from rszoo.errors import ConfigError, ImageError
from rszoo.inference import jpeg
from rszoo.inference.reader import MAX_FILE_BYTES, MAX_PIXELS, PNG_MAGIC, decode
from rszoo.pipeline.faults import Faults
from rszoo.pipeline.sources import Source

#: Maps an image's shape, int32 (2,), to the wanted box, int32 (4,).
Box = Callable[[tf.Tensor], tf.Tensor]

#: The published layout counts classes from 1.
FIRST_LABEL = 1
_FEATURES = {
    "image/encoded": tf.io.FixedLenFeature([], tf.string, ""),
    "image/class/label": tf.io.FixedLenFeature([], tf.int64, FIRST_LABEL - 1),
}
# The marker before a sequential JPEG's frame header, which is looked for in the first bytes: an image whose header is
# longer, such as one with a large thumbnail, is brought to the reader.
_SEQUENTIAL, _SEARCHED = b"\xff\xc0", 1 << 15
# From its fourth byte on, a frame header has height, width, the number of components, and three bytes for each, the
# second of them its sampling across and down. Each row gives one of these numbers, the last the sampling of all three.
_FRAME = np.zeros((4, 4 + 1 + 3 * 3), np.int32)
_FRAME[[0, 0, 1, 1, 2, 3, 3, 3], [0, 1, 2, 3, 4, 6, 9, 12]] = [1 << 8, 1, 1 << 8, 1, 1, 1 << 16, 1 << 8, 1]
# 4:4:4, 4:2:2, 4:2:0, 4:4:0 and 4:1:1.
_SAMPLINGS = (0x111111, 0x211111, 0x221111, 0x121111, 0x411111)
# Where a PNG's header has width and height (4 bytes each), bits of a sample, and the type of its colours.
_PNG_HEADER, _PNG_HEADER_LENGTH = 16, 10
_BYTES_OF_NUMBER = (1 << 24, 1 << 16, 1 << 8, 1)
# TensorFlow interpolates the colours of a crop's first and last column without those beside the crop.
_COLUMNS_BEFORE, _COLUMNS_AFTER = 1, 2


@dataclass(frozen=True)
class Decoder:
    """Decodes elements of a source; labels must be below `num_classes`, if that is known."""

    source: Source
    num_classes: int | None
    faults: Faults

    def crop(self, element: dict[str, tf.Tensor], box: Box) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the box's pixels, uint8 (H, W, 3), and the label, int32 from 0.

        An unusable element has no pixels (H is 0) and is noted as a fault. A label of 0 in a TFRecord ends the
        reading.
        """

        def fast(content: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            encoded, own_label = self._read(content, label)
            return _decode_box(encoded, box), own_label

        def slow() -> tuple[tf.Tensor, tf.Tensor]:
            inputs = [element["content"], element["label"], element["file"], element["record"]]
            pixels, own_label = tf.numpy_function(self._decode_slowly, inputs, (tf.uint8, tf.int64))
            pixels.set_shape([None, None, 3])
            own_label.set_shape([])
            return self._cut_or_note(pixels, box, element), own_label

        if self.source.content == "image":
            # Created by rszoo and never broken: catching errors would cost more than the decoding.
            pixels = _cut(tf.io.decode_png(element["content"], channels=3), box)
            return pixels, tf.cast(element["label"], tf.int32)
        failed = (tf.zeros([0, 0, 3], tf.uint8), tf.constant(-1, tf.int64))
        pixels, label = _attempt(fast, (element["content"], element["label"]), failed)
        usable = (tf.size(pixels) > 0) & (label >= 0)
        if self.num_classes is not None:
            usable &= label < self.num_classes
        pixels, label = tf.cond(usable, lambda: (pixels, label), slow)
        pixels.set_shape([None, None, 3])
        return pixels, tf.cast(label, tf.int32)

    def bytes_of(self, content: bytes, label: int) -> tuple[bytes, int]:
        """Return an element's encoded image and its label, in Python.

        Raises:
            ImageError: it cannot be read, or its label is not one of the classes.
            ConfigError: labels count from 0, so every other label is wrong too.
        """
        if self.source.content == "example":
            content, label = _parse_example(content)
            if label == -FIRST_LABEL:
                raise self.faults.stop(_wrong_count(self.source))
        elif self.source.content == "path":
            content = _read_file(os.fsdecode(content))
        allowed = self.num_classes
        if label < 0 or (allowed is not None and label >= allowed):
            first = FIRST_LABEL if self.source.content == "example" else 0
            last = "" if allowed is None else f" to {allowed - 1 + first}"
            raise ImageError(f"its label is {label + first}, allowed: {first}{last}")
        return content, label

    def note(self, file: int, record: int, error: Exception) -> None:
        """Count an element as broken. Raises as `Faults.note` does."""
        self.faults.note(self.source.name_of(int(file), int(record)), str(error).splitlines()[0])

    def _cut_or_note(self, pixels: tf.Tensor, box: Box, element: dict[str, tf.Tensor]) -> tf.Tensor:
        def note(file: np.int64, record: np.int64) -> np.ndarray:
            self.note(int(file), int(record), ImageError("too small to crop"))
            return np.zeros((0, 0, 3), np.uint8)

        def cut() -> tf.Tensor:
            crop = _cut(pixels, box)
            noted = [element["file"], element["record"]]
            return tf.cond(tf.size(crop) > 0, lambda: crop, lambda: tf.numpy_function(note, noted, tf.uint8))

        return tf.cond(tf.size(pixels) > 0, cut, lambda: pixels)

    def _read(self, content: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if self.source.content == "path":
            return tf.io.read_file(content), label
        parsed = tf.io.parse_single_example(content, _FEATURES)
        return parsed["image/encoded"], parsed["image/class/label"] - FIRST_LABEL

    def _decode_slowly(self, content: bytes, label: int, file: int, record: int) -> tuple[np.ndarray, np.int64]:
        try:
            encoded, own_label = self.bytes_of(content, int(label))
            return decode(encoded).pixels, np.int64(own_label)
        except ImageError as error:
            self.note(file, record, error)
            return np.zeros((0, 0, 3), np.uint8), np.int64(-1)


def _attempt(
    function: Callable[..., tuple[tf.Tensor, ...]], inputs: tuple[tf.Tensor, ...], otherwise: tuple[tf.Tensor, ...]
) -> tuple[tf.Tensor, ...]:
    """Return the function's result, or `otherwise` if one of its ops fails."""
    tried = tf.data.Dataset.from_tensors(inputs).map(function).ignore_errors()
    return tried.concatenate(tf.data.Dataset.from_tensors(otherwise)).take(1).get_single_element()


def _decode_box(encoded: tf.Tensor, box: Box) -> tf.Tensor:
    """Return the box's pixels if TensorFlow decodes such a file as the reader does, else none (H is 0)."""
    whole_jpeg = (_part(encoded, 0, jpeg.MAGIC) == jpeg.MAGIC) & (_part(encoded, -len(jpeg.END), jpeg.END) == jpeg.END)
    png = _part(encoded, 0, PNG_MAGIC) == PNG_MAGIC
    pixels = tf.cond(
        whole_jpeg,
        lambda: _decode_jpeg_box(encoded, box),
        lambda: tf.cond(png, lambda: _decode_png_box(encoded, box), _nothing),
    )
    pixels.set_shape([None, None, 3])
    return pixels


def _decode_jpeg_box(encoded: tf.Tensor, box: Box) -> tf.Tensor:
    shape = tf.image.extract_jpeg_shape(encoded)

    def decode_box() -> tf.Tensor:
        top, left, rows, columns = tf.unstack(box(shape[:2]))
        before, after = tf.minimum(left, _COLUMNS_BEFORE), tf.minimum(shape[1] - left - columns, _COLUMNS_AFTER)
        wider = [top, left - before, rows, before + columns + after]
        return tf.image.decode_and_crop_jpeg(encoded, wider, channels=3)[:, before : before + columns]

    return tf.cond(_is_usual(encoded, shape) & _is_small(shape[0], shape[1]), decode_box, _nothing)


def _is_usual(encoded: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """Whether a JPEG of this shape (height, width, components) is sequential, and gray or of a usual sampling.

    Of CMYK and of other samplings simplejpeg does not decode all, and TensorFlow's libjpeg-turbo, an older one, smooths
    a progressive JPEG otherwise if its last scans are missing.
    """
    start = tf.strings.substr(encoded, 0, _SEARCHED)
    # tf.strings.split makes a ragged tensor of it, for longer than the search takes.
    after = tf.raw_ops.StringSplitV2(input=[start], sep=_SEQUENTIAL).values[-1]
    header = tf.io.decode_raw(tf.strings.substr(after, 3, _FRAME.shape[1]), tf.uint8)
    frame = tf.linalg.matvec(_FRAME, tf.cast(header, tf.int32))
    # Of several frame headers, a thumbnail's for example, the image's is the one with its size.
    same = tf.reduce_all(frame[:3] == shape)
    return same & ((shape[2] == 1) | ((shape[2] == 3) & tf.reduce_any(frame[3] == _SAMPLINGS)))


def _decode_png_box(encoded: tf.Tensor, box: Box) -> tf.Tensor:
    header = tf.io.decode_raw(tf.strings.substr(encoded, _PNG_HEADER, _PNG_HEADER_LENGTH), tf.uint8)
    header = tf.cast(header, tf.int64)
    width, height = (tf.reduce_sum(header[at : at + 4] * _BYTES_OF_NUMBER) for at in (0, 4))
    deep_gray = (header[8] == 16) & ((header[9] == 0) | (header[9] == 4))
    return tf.cond(
        ~deep_gray & _is_small(height, width), lambda: _cut(tf.io.decode_png(encoded, channels=3), box), _nothing
    )


def _part(encoded: tf.Tensor, start: int, like: bytes) -> tf.Tensor:
    return tf.strings.substr(encoded, start, len(like))


def _is_small(height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    return tf.cast(height, tf.int64) * tf.cast(width, tf.int64) <= MAX_PIXELS


def _nothing() -> tf.Tensor:
    return tf.zeros([0, 0, 3], tf.uint8)


def _cut(pixels: tf.Tensor, box: Box) -> tf.Tensor:
    top, left, height, width = tf.unstack(box(tf.shape(pixels)[:2]))
    return pixels[top : top + height, left : left + width]


def _wrong_count(source: Source) -> ConfigError:
    return ConfigError(
        f"{source.title}, {source.split}: labels count from 0 (image/class/label is 0), the published layout counts "
        f"from {FIRST_LABEL}; write the TFRecords again, with 1 added to each label, or from a folder of images with "
        "`rszoo tfrecords`"
    )


def _parse_example(record: bytes) -> tuple[bytes, int]:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        features = tf.train.Example.FromString(record).features.feature
    except DecodeError as error:
        raise ImageError("the record is not a tf.train.Example") from error
    encoded, labels = features["image/encoded"].bytes_list.value, features["image/class/label"].int64_list.value
    if not encoded or not labels:
        raise ImageError("the record lacks image/encoded or image/class/label")
    return encoded[0], labels[0] - FIRST_LABEL


def _read_file(path: str) -> bytes:
    try:
        if "://" not in path:
            return read_regular(Path(path), MAX_FILE_BYTES)
        with tf.io.gfile.GFile(os.fsencode(path), "rb") as opened:
            return opened.read()
    except (OSError, tf.errors.OpError) as error:
        raise ImageError(f"cannot be read ({getattr(error, 'strerror', None) or error})") from error
