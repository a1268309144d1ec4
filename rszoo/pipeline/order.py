"""Undecoded elements of a source, in the order for training and evaluation.

An element: "content" (string), "label" (int64, -1 if the content has it), "file" and "record" (int64: the number of the
file in its split, and of the record in the file), and for training "position" (int64 (3,)). All random values follow
from a seed and these numbers, not from state, so a stream can start anywhere.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from rszoo.errors import UsageError
from rszoo.pipeline.faults import Faults, iterate
from rszoo.pipeline.shard_records import ShardReader
from rszoo.pipeline.share import Position, Share
from rszoo.pipeline.sources import ImageSource, ShardSource, Source

#: Files that are read in turns, and undecoded images that are mixed; a group's files are read once per epoch.
FILES_IN_GROUP = 16
SHUFFLED_RECORDS = 4096
# With at least this many files for each reader, files are divided among readers; shares may differ by one file.
_FILES_EACH = 16
_EPOCHS = 2**28
# Not 0, which `shuffle` cannot distinguish from an unset seed in a tensor.
_SHUFFLE_SEED = 1
# The purposes of random numbers, see `seed_of`.
_ORDER_OF_FILES, _ORDER_OF_RECORDS, _IMAGE = range(3)


def seed_of(purpose: int, seed: int, epoch: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    """Return a seed, int64 (2,), different for each purpose, seed (below 2**31), epoch (below 2**28) and number."""
    first = tf.bitwise.left_shift(tf.cast(epoch, tf.int64), 34) + (purpose << 31 | seed)
    return tf.stack([first, tf.cast(number, tf.int64)])


def image_seed(seed: int, element: dict[str, tf.Tensor]) -> tf.Tensor:
    """Return the seed of an image in an epoch, int64 (2,), the same for every reader."""
    number = tf.bitwise.left_shift(element["file"], 32) + element["record"]
    return seed_of(_IMAGE, seed, element["position"][0], number)


def training_stream(source: Source, seed: int, share: Share, position: Position, faults: Faults) -> tf.data.Dataset:
    """Return a reader's endless stream of shuffled elements, starting at a position.

    Each epoch is a sequence of groups: groups of files, or one group with the whole share of a listed source.

    Raises:
        UsageError: there are fewer images than readers.
        RszooError: as `rszoo.pipeline.faults.reading`.
    """
    if isinstance(source, ShardSource):
        groups, open_group = _shard_groups(source, seed, share, faults)
    elif isinstance(source, ImageSource):
        groups, open_group = _listed_groups(source, seed, share)
    start = position.epoch * groups + position.group

    def open_numbered(number: tf.Tensor) -> tf.data.Dataset:
        epoch, group = number // groups, number % groups
        skipped = tf.where(number == start, tf.constant(position.image, tf.int64), tf.constant(0, tf.int64))

        def place(image: tf.Tensor, element: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            return {**element, "position": tf.stack([epoch, group, image])}

        return open_group(epoch, group).enumerate().skip(skipped).map(place)

    # One group at a time; opening groups ahead keeps the stream from pausing while a group's buffer fills.
    return tf.data.Dataset.range(start, _EPOCHS * groups).interleave(
        open_numbered, cycle_length=1, num_parallel_calls=1, deterministic=True
    )


OpenGroup = Callable[[tf.Tensor, tf.Tensor], tf.data.Dataset]


def _listed_groups(source: ImageSource, seed: int, share: Share) -> tuple[int, OpenGroup]:
    total = len(source.names)
    if total < share.count:
        raise UsageError(f"{source.title} has {total} images for {share.count} processes; start {total} at most")
    contents, labels = _tables(source)

    def open_group(epoch: tf.Tensor, group: tf.Tensor) -> tf.data.Dataset:
        order = _permutation(total, seed, epoch)
        return tf.data.Dataset.from_tensor_slices(order[share.index :: share.count]).map(
            lambda index: _listed_element(contents, labels, index)
        )

    return 1, open_group


def _tables(source: ImageSource) -> tuple[tf.Tensor, tf.Tensor]:
    # Not on a GPU: each image's label would have to be copied from it.
    with tf.device("CPU"):
        return tf.constant(source.contents), tf.constant(source.labels, tf.int64)


def _listed_element(contents: tf.Tensor, labels: tf.Tensor, index: tf.Tensor) -> dict[str, tf.Tensor]:
    return {
        "content": tf.gather(contents, index),
        "label": tf.gather(labels, index),
        "file": index,
        "record": tf.zeros([], tf.int64),
    }


def _shard_groups(source: ShardSource, seed: int, share: Share, faults: Faults) -> tuple[int, OpenGroup]:
    total = len(source.shards)
    by_file = total % share.count == 0 or total >= _FILES_EACH * share.count
    files = len(range(share.index, total, share.count)) if by_file else total
    groups = -(-files // FILES_IN_GROUP)

    reader = ShardReader(source, faults)

    def open_shard(file: tf.Tensor) -> tf.data.Dataset:
        records = reader.records(file)
        if by_file:
            return records
        return records.filter(lambda element: (element["record"] + file) % share.count == share.index)

    # An endless stream without elements would never return.
    own = tf.data.Dataset.range(share.index, total, share.count) if by_file else tf.data.Dataset.range(total)
    first = own.flat_map(open_shard).take(1)
    if not any(True for _ in iterate(first, faults)):
        raise UsageError(f"{source.title} has no image for process {share.index} of {share.count}; start fewer")

    def open_group(epoch: tf.Tensor, group: tf.Tensor) -> tf.data.Dataset:
        # Sets the seed of this function's graph only: shuffling must not depend on TensorFlow's global seed.
        tf.random.set_seed(_SHUFFLE_SEED)
        order = _permutation(total, seed, epoch)
        chosen = order[share.index :: share.count] if by_file else order
        chosen = chosen[group * FILES_IN_GROUP : (group + 1) * FILES_IN_GROUP]
        mixed = tf.data.Dataset.from_tensor_slices(chosen).interleave(
            open_shard, cycle_length=FILES_IN_GROUP, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )
        drawn = tf.random.stateless_uniform(
            [], seed_of(_ORDER_OF_RECORDS, seed, epoch, group), 1, 2**31 - 2, dtype=tf.int64
        )
        return mixed.shuffle(SHUFFLED_RECORDS, seed=drawn, reshuffle_each_iteration=False)

    return groups, open_group


def _permutation(total: int, seed: int, epoch: tf.Tensor) -> tf.Tensor:
    drawn = seed_of(_ORDER_OF_FILES, seed, epoch, tf.zeros([], tf.int64))
    return tf.random.experimental.stateless_shuffle(tf.range(total, dtype=tf.int64), drawn)


def evaluation_stream(source: Source, share: Share, faults: Faults) -> tf.data.Dataset:
    """Return a reader's part of all elements, in order, each with "index" (int64), its number in the split.

    Part r of R has the elements from n * r // R up to n * (r + 1) // R of n.
    """
    if isinstance(source, ShardSource):
        return _shard_range(source, share, faults)
    if isinstance(source, ImageSource):
        start, stop = share_range(len(source.names), share)
        contents, labels = _tables(source)
        return tf.data.Dataset.range(start, stop).map(
            lambda index: {**_listed_element(contents, labels, index), "index": index}
        )
    raise TypeError(source)


def share_range(total: int, share: Share) -> tuple[int, int]:
    """Return the first element of a share, and the one after its last."""
    return total * share.index // share.count, total * (share.index + 1) // share.count


def _shard_range(source: ShardSource, share: Share, faults: Faults) -> tf.data.Dataset:
    ends = np.cumsum(source.record_counts)
    starts = np.concatenate([[0], ends[:-1]])
    start, stop = share_range(int(ends[-1]), share)
    files = np.flatnonzero((starts < stop) & (ends > start))

    reader = ShardReader(source, faults)

    def open_shard(file: tf.Tensor, first: tf.Tensor) -> tf.data.Dataset:
        records = reader.records(file).map(lambda element: {**element, "index": first + element["record"]})
        return records.filter(lambda element: (element["index"] >= start) & (element["index"] < stop))

    return tf.data.Dataset.from_tensor_slices((files.astype(np.int64), starts[files].astype(np.int64))).interleave(
        open_shard, cycle_length=1, num_parallel_calls=1, deterministic=True
    )
