"""Which part of the data a process reads, and where in its stream it stands. No TensorFlow here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Share:
    """The `index`-th of `count` readers, counted from 0; together they read everything once an epoch."""

    index: int = 0
    count: int = 1


class Position(NamedTuple):
    """A place in a reader's stream of training images: the epoch, the group of files in it, the image in the group.

    All count from 0. A stream that starts at a position gives what the uninterrupted one would give from there on.
    """

    epoch: int = 0
    group: int = 0
    image: int = 0
