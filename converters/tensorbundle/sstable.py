"""LevelDB's table format, in which TensorFlow keeps a checkpoint's index: bytes in, sorted (key, value) pairs out.

A table is blocks of prefix-compressed entries, each followed by a type byte and a masked CRC32C, an index block that
points to them, and a footer. Source: LevelDB `doc/table_format.md`; tensorflow `core/lib/io/table*.cc`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from converters.tensorbundle.wire import read_varint, varint
from rszoo.disk.crc32c import masked_crc32c
from rszoo.errors import CheckpointError
from rszoo.extras import needs

MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
_FOOTER_SIZE = 48
_TRAILER_SIZE = 5
_PLAIN, _SNAPPY = 0, 1
_RESTART_INTERVAL = 16
_BLOCK_SIZE = 256 * 1024
# A few bytes can stand for a long key, a megabyte of blocks or a Python object: without bounds, a hostile index could
# fill the memory or take hours. The 420's has 7,200 items of 0.5 MB in all.
_MAX_ITEMS = 65_536
_MAX_ITEM_BYTES = 4 << 20
_MAX_BLOCK_BYTES = 16 << 20


def read_table(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the (key, value) pairs of a table, in its order.

    Raises:
        CheckpointError: it is not a table, or damaged; every block is checked by its CRC32C.
        MissingPackageError: a block is Snappy-compressed and the package that reads it is not installed.
    """
    if len(table) < _FOOTER_SIZE or not table.endswith(MAGIC):
        raise CheckpointError("the checkpoint's index is damaged: it does not end with a table's footer")
    footer = table[-_FOOTER_SIZE:]
    _, position = _read_handle(footer, 0)
    index_handle, _ = _read_handle(footer, position)
    end = 0
    previous: bytes | None = None
    bounds, index_bounds = _Bounds(), _Bounds()
    for last_key, handle in _read_entries(_read_block(table, index_handle)):
        index_bounds.count(last_key, handle)
        (offset, size), _ = _read_handle(handle, 0)
        if offset < end:
            raise CheckpointError("the checkpoint's index is damaged: a block is there twice or out of order")
        end = offset + size + _TRAILER_SIZE
        for key, value in _read_entries(_read_block(table, (offset, size))):
            bounds.count(key, value)
            if previous is not None and key <= previous:
                raise CheckpointError(f"the checkpoint's index is damaged: {key!r} is there twice or out of order")
            previous = key
            yield key, value


class _Bounds:
    """Counts items and their bytes, and raises CheckpointError if no genuine index has so many."""

    def __init__(self) -> None:
        self._items = self._bytes = 0

    def count(self, key: bytes, value: bytes) -> None:
        self._items += 1
        self._bytes += len(key) + len(value)
        if self._items > _MAX_ITEMS or self._bytes > _MAX_ITEM_BYTES:
            raise CheckpointError("the checkpoint's index is damaged or hostile: it exceeds 4 MiB or 65536 items")


def write_table(items: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the table of (key, value) pairs that come sorted by key, uncompressed as TensorFlow writes it."""
    table = bytearray()
    index: list[tuple[bytes, bytes]] = []
    pending: list[tuple[bytes, bytes]] = []
    size = 0
    for key, value in items:
        pending.append((key, value))
        size += len(key) + len(value)
        if size >= _BLOCK_SIZE:
            index.append((key, _append_block(table, pending)))
            pending, size = [], 0
    if pending:
        index.append((pending[-1][0], _append_block(table, pending)))
    metaindex_handle = _append_block(table, [])
    index_handle = _append_block(table, index)
    return bytes(table) + (metaindex_handle + index_handle).ljust(_FOOTER_SIZE - len(MAGIC), b"\0") + MAGIC


def _read_handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    """Return (offset, size) of a block and the position after the handle."""
    offset, position = read_varint(data, position)
    size, position = read_varint(data, position)
    return (offset, size), position


def _read_block(table: bytes, handle: tuple[int, int]) -> bytes:
    offset, size = handle
    end = offset + size + _TRAILER_SIZE
    if end > len(table) - _FOOTER_SIZE:
        raise CheckpointError("the checkpoint's index is damaged: a block lies outside the file")
    if masked_crc32c(table[offset : end - 4]) != int.from_bytes(table[end - 4 : end], "little"):
        raise CheckpointError(f"the checkpoint's index is damaged: CRC32C mismatch in its block at byte {offset}")
    block, compression = table[offset : offset + size], table[offset + size]
    if compression == _PLAIN:
        return block
    if compression == _SNAPPY:
        return _unsnap(block)
    raise CheckpointError(f"the checkpoint's index has a block of unknown compression {compression}")


def _unsnap(block: bytes) -> bytes:
    """Decompress a raw Snappy block. TensorFlow has written none since 1.2, so the package is optional."""
    with needs("the checkpoint's index is Snappy-compressed; reading it", "cramjam"):
        import cramjam
    length, _ = read_varint(block, 0)
    if length > _MAX_BLOCK_BYTES:
        raise CheckpointError("the checkpoint's index is damaged or hostile: a Snappy block claims over 16 MiB")
    try:
        return bytes(cramjam.snappy.decompress_raw(block))
    except cramjam.DecompressionError as error:
        raise CheckpointError(f"the checkpoint's index is damaged: {error}") from error


def _read_entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    entries_end = len(block) - 4 - 4 * int.from_bytes(block[-4:], "little")
    if entries_end < 0:
        raise CheckpointError("the checkpoint's index is damaged: a block is too small for its restart points")
    position, key = 0, b""
    while position < entries_end:
        shared, position = read_varint(block, position)
        unshared, position = read_varint(block, position)
        value_size, position = read_varint(block, position)
        value_start = position + unshared
        if shared > len(key) or value_start + value_size > entries_end:
            raise CheckpointError("the checkpoint's index is damaged: an entry overruns its block")
        key = key[:shared] + block[position:value_start]
        position = value_start + value_size
        yield key, block[value_start:position]


def _append_block(table: bytearray, items: list[tuple[bytes, bytes]]) -> bytes:
    """Append a block and its trailer; return its handle."""
    block = bytearray()
    restarts = [0]
    previous = b""
    for count, (key, value) in enumerate(items):
        shared = 0
        if count % _RESTART_INTERVAL:
            shared = next((i for i, (a, b) in enumerate(zip(previous, key, strict=False)) if a != b), len(previous))
        elif count:
            restarts.append(len(block))
        block += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        previous = key
    block += struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))
    handle = varint(len(table)) + varint(len(block))
    trailed = bytes(block) + bytes([_PLAIN])
    table += trailed + masked_crc32c(trailed).to_bytes(4, "little")
    return handle
