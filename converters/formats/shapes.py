"""A network read off the shapes of its tensors: what all formats do once they know where a shape is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from rszoo.arch.config import ArchConfig
from rszoo.arch.walk import with_published_widths
from rszoo.errors import ConfigError, ConversionError

Shape = tuple[int, ...]

#: The operations of the TF1 code, of Keras 2's and of timm's: none leaves a trace in shapes.
TF1_NETWORK = ArchConfig((1, 1, 1, 1), activation="relu", strided_padding="symmetric", shortcut_pool="strided")


def count_blocks(kernel: Callable[[int, int], Shape], out_axis: int) -> tuple[list[int], list[int]]:
    """Return blocks and width of each of the four stages, 0 for a stage that has no block.

    `kernel`: from stage (1 to 4) and number of the block, the shape of its 3x3 kernel; () if there is no such block.
    """
    counts, widths = [], []
    for stage in range(1, 5):
        blocks = width = 0
        while len(shape := kernel(stage, blocks)) == 4:
            blocks, width = blocks + 1, shape[out_axis]
        counts.append(blocks)
        widths.append(width)
    return counts, widths


def read_arch(
    known: ArchConfig, blocks: Sequence[int], widths: Sequence[int], stem: Sequence[int], channels: int, classes: int
) -> ArchConfig:
    """Return `known` with these numbers of blocks, these widths of stages and stem, input channels and classes.

    Raises:
        ConversionError: there is no such network.
    """
    try:
        # mypy does not see that there are four of each.
        exact = replace(
            known,
            blocks=tuple(blocks),  # type: ignore[arg-type]
            stage_widths=tuple(widths),  # type: ignore[arg-type]
            stem_widths=tuple(stem),  # type: ignore[arg-type]
            in_chans=channels,
            num_classes=classes,
        )
        return with_published_widths(exact)
    except ConfigError as error:
        raise ConversionError(f"the checkpoint's shapes are impossible: {error}") from error
