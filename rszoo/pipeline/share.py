"""Which part of the data a process reads, and its position in the stream. Does not import TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Share:
    """Reader `index` of `count`, counted from 0; together they read everything once per epoch."""

    index: int = 0
    count: int = 1


class Position(NamedTuple):
    """A position in a reader's stream of training images: epoch, group of files in the epoch, image in the group.

    All count from 0. A stream that starts at a position equals the uninterrupted stream from there.
    """

    epoch: int = 0
    group: int = 0
    image: int = 0
