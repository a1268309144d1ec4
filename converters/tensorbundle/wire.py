"""The few pieces of wire format that TensorFlow's checkpoints are made of: varints and protocol buffers.

Source: the protocol buffers encoding guide.
"""

from __future__ import annotations

from collections.abc import Iterator

from rszoo.errors import CheckpointError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the varint at `position` (at most 64 bits) and the position after it.

    Raises:
        CheckpointError: it does not end within the data or within ten bytes.
    """
    value = shift = 0
    while position < len(data) and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
        shift += 7
    raise CheckpointError("the checkpoint's index is damaged: a number in it does not end")


def varint(value: int) -> bytes:
    """Encode a number of 0 to 2**64 - 1."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def signed(value: int) -> int:
    """Return a protocol buffer's int64 from its varint."""
    return value - (1 << 64) if value >= 1 << 63 else value


def read_message(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) of a protocol buffer message: numbers as int, the rest as bytes.

    Raises:
        CheckpointError: the message is damaged.
    """
    position = 0
    while position < len(data):
        tag, position = read_varint(data, position)
        wire_type = tag & 7
        if wire_type == _VARINT:
            value, position = read_varint(data, position)
            yield tag >> 3, value
            continue
        if wire_type == _BYTES:
            length, position = read_varint(data, position)
        elif wire_type in (_FIXED32, _FIXED64):
            length = 4 if wire_type == _FIXED32 else 8
        else:
            raise CheckpointError(f"the checkpoint's index is damaged: wire type {wire_type} in an entry")
        if position + length > len(data):
            raise CheckpointError("the checkpoint's index is damaged: an entry ends before its last field")
        chunk = data[position : position + length]
        position += length
        yield tag >> 3, chunk if wire_type == _BYTES else int.from_bytes(chunk, "little")


def write_field(number: int, value: int | bytes) -> bytes:
    """Encode one field, a number as varint, bytes with their length. A number of 0 is left out, as in proto3."""
    if isinstance(value, bytes):
        return varint(number << 3 | _BYTES) + varint(len(value)) + value
    return varint(number << 3 | _VARINT) + varint(value) if value else b""


def write_fixed32(number: int, value: int) -> bytes:
    """Encode a fixed32 field."""
    return varint(number << 3 | _FIXED32) + value.to_bytes(4, "little")
