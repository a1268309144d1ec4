"""The computing cost of a network, derived from its `ArchConfig`."""

from __future__ import annotations

from rszoo.arch.config import ArchConfig, Block


def count_macs(arch: ArchConfig, image_size: int) -> int:
    """Return the multiply-accumulates of convolutions and dense layer for one image of `image_size` pixels square."""
    size, total = image_size, 0
    for conv in arch.iter_stem():
        size = _halved(size, conv.stride)
        total += size**2 * conv.size**2 * conv.in_channels * conv.out_channels
    if arch.stem == "classic":
        size = _halved(size, 2)
    for block in arch.iter_blocks():
        total += _block_macs(block, size)
        size = _halved(size, block.stride)
    return total + arch.num_features * arch.num_classes


def _block_macs(block: Block, size: int) -> int:
    before, after = size**2, _halved(size, block.stride) ** 2
    projection = after * block.in_channels * block.out_channels if block.has_projection else 0
    # Squeeze-excitation computes on one averaged cell.
    squeeze = 2 * block.out_channels * block.se_channels
    return (
        before * block.in_channels * block.width
        + after * 3 * 3 * block.width**2
        + after * block.width * block.out_channels
        + projection
        + squeeze
    )


def _halved(size: int, stride: int) -> int:
    # Rounded up, with either padding, and in the shortcut's pool too.
    return -(-size // stride)
