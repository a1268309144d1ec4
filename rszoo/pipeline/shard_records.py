"""The records of one TFRecord file as a dataset that never fails: damaged and missing files are noted as faults."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf

from rszoo.errors import ImageError, RszooError, SourceNotFoundError, summarize
from rszoo.pipeline.faults import Faults
from rszoo.pipeline.shard_files import RECORD_OVERHEAD, size_of
from rszoo.pipeline.sources import ShardSource

_LOCAL_BUFFER, _REMOTE_BUFFER = 1 << 20, 1 << 23
# Files that are opened ahead; their ends may come before the end of a long file.
_AHEAD = 100

Pair = tuple[tf.Tensor, tf.Tensor]


@dataclass(eq=False)
class ShardReader:
    """Reads the files of a source for one stream."""

    source: ShardSource
    faults: Faults
    _empty_row: int = field(default=0, init=False)

    def records(self, file: tf.Tensor) -> tf.data.Dataset:
        """Return the elements of the file with this number, in order; see `rszoo.pipeline.order`.

        A file ends where it is damaged.
        """
        path, size = tf.numpy_function(self._open, [file], (tf.string, tf.int64))
        path.set_shape([])
        size.set_shape([])
        # TensorFlow would retry a file that cannot be opened forever.
        paths = tf.boolean_mask(path[None], size[None] > 0)
        buffer = _REMOTE_BUFFER if "://" in self.source.shards[0] and self.source.cache is None else _LOCAL_BUFFER
        records = tf.data.TFRecordDataset(paths, buffer_size=buffer).ignore_errors().enumerate()
        # TensorFlow silently stops reading a file at the first damage; the end shows whether all bytes were read.
        end = tf.data.Dataset.from_tensors((tf.constant(-1, tf.int64), b""))
        zero = tf.zeros([], tf.int64)
        followed = records.concatenate(end).scan((zero, zero), lambda seen, pair: self._follow(file, size, seen, pair))
        return followed.filter(lambda record, content: record >= 0).map(
            lambda record, content: {
                "content": content,
                "label": tf.constant(-1, tf.int64),
                "file": file,
                "record": record,
            }
        )

    def _follow(self, file: tf.Tensor, size: tf.Tensor, seen: Pair, pair: Pair) -> tuple[Pair, Pair]:
        """Count records and their bytes; record -1 marks the end, where the bytes are compared with the file's size."""
        (count, length), (record, content) = seen, pair

        def finish() -> Pair:
            ended = tf.numpy_function(self._end, [file, count, length, size], tf.int64)
            return tf.ensure_shape(ended, []), length

        def advance() -> Pair:
            return count + 1, length + RECORD_OVERHEAD + tf.cast(tf.strings.length(content), tf.int64)

        return tf.cond(record < 0, finish, advance), pair

    def _open(self, file: np.int64) -> tuple[bytes, np.int64]:
        """Return the path to read a file from and its size in bytes, 0 if it cannot be read."""
        try:
            path = self.source.local(int(file))
            return os.fsencode(path), np.int64(size_of(path))
        except SourceNotFoundError as error:
            self.faults.note(self.source.name_of(int(file), 0), str(error))
            return b"", np.int64(0)
        except RszooError as error:
            raise self.faults.stop(error) from error

    def _end(self, file: np.int64, count: np.int64, length: np.int64, size: np.int64) -> np.int64:
        if length != size:
            reason = f"damaged: {count} records of {length} bytes can be read, the file has {size}"
            self.faults.note(self.source.name_of(int(file), int(count)), reason)
        self._empty_row = 0 if count else self._empty_row + 1
        # A file with records comes once per epoch; an endless stream without elements would never return.
        if self._empty_row > 2 * len(self.source.shards) + _AHEAD:
            broken = summarize(self.faults.texts) or "all are empty"
            raise self.faults.stop(ImageError(f"no file of {self.source.title} has readable images: {broken}"))
        return count
