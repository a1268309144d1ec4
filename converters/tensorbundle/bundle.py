"""TensorFlow's checkpoint format ("V2", TensorBundle), read and written with no TensorFlow.

Reads the bytes of `*.index` and the open data shards to entries and numpy arrays, and writes them.
Source: tensorflow `core/protobuf/tensor_bundle.proto`, `core/util/tensor_bundle/tensor_bundle.cc`,
`core/util/saved_tensor_slice_util.cc` (keys of partitioned variables), `core/lib/strings/ordered_code.cc`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from converters.tensorbundle.sstable import read_table, write_table
from converters.tensorbundle.wire import read_message, read_varint, signed, varint, write_field, write_fixed32
from rszoo.disk.crc32c import masked_crc32c
from rszoo.errors import CheckpointError, nearest

# DataType of tensorflow/core/framework/types.proto -> name, dtype of the stored bytes.
_DTYPES: dict[int, tuple[str, str]] = {
    1: ("float32", "<f4"),
    2: ("float64", "<f8"),
    3: ("int32", "<i4"),
    4: ("uint8", "|u1"),
    5: ("int16", "<i2"),
    6: ("int8", "|i1"),
    8: ("complex64", "<c8"),
    9: ("int64", "<i8"),
    10: ("bool", "|b1"),
    11: ("qint8", "|i1"),
    12: ("quint8", "|u1"),
    13: ("qint32", "<i4"),
    14: ("bfloat16", "<u2"),
    15: ("qint16", "<i2"),
    16: ("quint16", "<u2"),
    17: ("uint16", "<u2"),
    18: ("complex128", "<c16"),
    19: ("float16", "<f2"),
    22: ("uint32", "<u4"),
    23: ("uint64", "<u8"),
}
_NOT_NUMERIC = {7: "string", 20: "resource", 21: "variant"}
_STRING = 7
_DTYPE_NUMBERS = {name: number for number, (name, _) in _DTYPES.items()}
# numpy 1's limit; TensorFlow allows 254, and no network has such a tensor.
_MAX_RANK = 32
_MAX_VALUES = 1 << 48
# A tensor is read as a whole. The largest published has 9.4 MB; a classifier of a million classes would have 8 GB.
_MAX_TENSOR_BYTES = 1 << 30
# The graph of all objects of a trainer of ResNet-RS-350 has 2 MB.
_MAX_STRING_BYTES = 64 << 20
_CRC_BYTES = 4


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint: where its bytes are. `slices` has the parts of a partitioned variable.

    A slice is one (start, length) per dimension; length -1 means the whole dimension.
    """

    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc32c: int
    slices: tuple[tuple[tuple[int, int], ...], ...] = ()


class Bundle:
    """A checkpoint opened for reading: `entries` by name, and `read` for the values of one.

    Args:
        index: the bytes of the `.index` file.
        shards: the data shards by number, as seekable files.
        prefix: what the checkpoint is called, for formats that it tells something.

    Raises:
        CheckpointError: the index is damaged, or of a kind that is not read.
    """

    def __init__(self, index: bytes, shards: Mapping[int, BinaryIO], prefix: str = "") -> None:
        self.prefix = prefix
        self._shards = shards
        self._locks = {number: threading.Lock() for number in shards}
        table = read_table(index)
        key, header = next(table, (None, b""))
        if key != b"":
            raise CheckpointError("the checkpoint's index has no header; is it a TensorFlow V2 checkpoint?")
        self._check_header(header)
        self.entries: dict[str, Entry] = {}
        self._parts: dict[bytes, Entry] = {}
        for key, value in table:
            if key.startswith(b"\0"):
                self._parts[key] = _parse_entry(repr(key), value)
                continue
            try:
                name = key.decode("utf-8")
            except UnicodeDecodeError as error:
                raise CheckpointError(f"the checkpoint's index is damaged: the name {key!r} is not UTF-8") from error
            self.entries[name] = _parse_entry(name, value)

    def read(self, name: str) -> np.ndarray:
        """Return a tensor, its bytes checked by their CRC32C. bfloat16 comes as float32, which holds it exactly.

        Raises:
            CheckpointError: there is no such tensor, it is not numeric, or its bytes are damaged or missing.
        """
        if name not in self.entries:
            likely = ", ".join(nearest(name, self.entries)) or "nothing like it"
            raise CheckpointError(f"the checkpoint has no tensor {name!r}; it has: {likely}")
        entry = self.entries[name]
        if not entry.slices:
            return self._read_whole(name, entry)
        parts = [self._find_part(name, entry, part) for part in entry.slices]
        held, wanted = sum(math.prod(stored.shape) for stored in parts), math.prod(entry.shape)
        if held != wanted:
            raise CheckpointError(f"the parts of the partitioned {name!r} hold {held} values, not {wanted}")
        # Of the same bytes there may be any number of parts.
        _check_size(name, sum(stored.size for stored in parts))
        values = [self._read_whole(name, stored) for stored in parts]
        whole, filled = np.zeros(entry.shape, values[0].dtype), np.zeros(entry.shape, bool)
        for part, stored, held_values in zip(entry.slices, parts, values, strict=True):
            box = tuple(slice(start, start + size) for (start, _), size in zip(part, stored.shape, strict=True))
            whole[box] = held_values
            filled[box] = True
        if not filled.all():
            raise CheckpointError(f"the checkpoint's index is damaged: the parts of {name!r} overlap")
        return whole

    def read_string(self, name: str) -> bytes:
        """Return a string without axes, checked by its CRC32C.

        Raises:
            CheckpointError: there is no such string, or its bytes are damaged or missing.
        """
        entry = self.entries.get(name)
        if entry is None or (entry.dtype, entry.shape) != (_NOT_NUMERIC[_STRING], ()):
            raise CheckpointError(f"the checkpoint has no string {name!r}")
        if entry.size > _MAX_STRING_BYTES:
            raise CheckpointError(f"{name!r} has {entry.size} bytes; at most {_MAX_STRING_BYTES} are accepted")
        data = self._read_bytes(name, entry)
        length, start = read_varint(data, 0)
        start += _CRC_BYTES
        if start + length != len(data) or _string_crc(data[start - _CRC_BYTES :], length) != entry.crc32c:
            raise CheckpointError(f"the checkpoint is damaged: CRC32C mismatch in the string {name!r}; get it again")
        return data[start:]

    def _check_header(self, header: bytes) -> None:
        fields = {field: value for field, value in read_message(header) if isinstance(value, int)}
        if fields.get(2, 0):
            raise CheckpointError("the checkpoint is big-endian, which is not read; re-save it on another machine")
        count = fields.get(1, 0)
        if count != len(self._shards) or any(number >= count for number in self._shards):
            raise CheckpointError(
                f"the checkpoint has {count} data shards, found {sorted(self._shards)}; give all *.data-NNNNN-of-NNNNN"
            )

    def _find_part(self, name: str, entry: Entry, part: tuple[tuple[int, int], ...]) -> Entry:
        key = _slice_key(name, part)
        stored = self._parts.get(key)
        shape = tuple(size if length == -1 else length for (_, length), size in zip(part, entry.shape, strict=False))
        inside = all(start + length <= size for (start, _), length, size in zip(part, shape, entry.shape, strict=False))
        if stored is None or len(part) != len(entry.shape) or stored.shape != shape or not inside:
            raise CheckpointError(f"the checkpoint's index is damaged: part {part} of {name!r} is missing or misshapen")
        if stored.dtype != entry.dtype:
            raise CheckpointError(f"the checkpoint's index is damaged: part {part} of {name!r} is {stored.dtype}")
        return stored

    def _read_whole(self, name: str, entry: Entry) -> np.ndarray:
        itemsize, stored = _storage(name, entry)
        if entry.size != math.prod(entry.shape) * itemsize:
            raise CheckpointError(f"{name!r} of shape {entry.shape} {entry.dtype} cannot have {entry.size} bytes")
        data = self._read_bytes(name, entry)
        if masked_crc32c(data) != entry.crc32c:
            raise CheckpointError(
                f"the checkpoint is damaged: CRC32C mismatch in the {entry.size} bytes of {name!r}; get it again"
            )
        values = np.ndarray(entry.shape, stored, data)
        return (values.astype(np.uint32) << 16).view(np.float32) if entry.dtype == "bfloat16" else values

    def _read_bytes(self, name: str, entry: Entry) -> bytes:
        shard = self._shards.get(entry.shard)
        if shard is None:
            raise CheckpointError(f"the checkpoint's index is damaged: {name!r} lies in data shard {entry.shard}")
        # Checked against the shard's length first: a hostile size must not decide how much memory is taken.
        with self._locks[entry.shard]:
            if entry.offset + entry.size > shard.seek(0, 2):
                raise CheckpointError(f"the checkpoint is truncated: {name!r} lies beyond the end of its data shard")
            _check_size(name, entry.size)
            shard.seek(entry.offset)
            return shard.read(entry.size)


def write_files(folder: Path, prefix: str, names: Iterable[str], read: Callable[[str], np.ndarray | bytes]) -> None:
    """Write a checkpoint of one shard into a folder, and the file by which `tf.train.latest_checkpoint` finds it.

    `read` returns the values of a name; it is called once for each.
    """
    # The order of TensorFlow's own Saver, and of the table in the index.
    ordered = sorted(names, key=lambda name: name.encode("utf-8"))
    with (folder / f"{prefix}.data-00000-of-00001").open("wb") as data:
        index = write_bundle(((name, read(name)) for name in ordered), data)
    (folder / f"{prefix}.index").write_bytes(index)
    state = f'model_checkpoint_path: "{prefix}"\nall_model_checkpoint_paths: "{prefix}"\n'
    (folder / "checkpoint").write_text(state, encoding="utf-8")


def write_bundle(tensors: Iterable[tuple[str, np.ndarray | bytes]], data: BinaryIO) -> bytes:
    """Write a checkpoint of one shard: the values to `data`, and return the bytes of its `.index` file.

    `tensors` must come sorted by name in byte order, as TensorFlow's Saver writes them, and are consumed one at a time.
    Bytes become a string without axes.

    Raises:
        CheckpointError: a name is out of order or a dtype has no TensorFlow type.
    """
    items = [(b"", write_field(1, 1) + write_field(3, write_field(1, 1)))]
    offset = 0
    for name, values in tensors:
        key = name.encode("utf-8")
        if key <= items[-1][0]:
            raise CheckpointError(f"tensors must be written in sorted order, {name!r} is not")
        number, shape, encoded, crc32c = _encode(name, values)
        data.write(encoded)
        sizes = b"".join(write_field(2, write_field(1, size)) for size in shape)
        entry = write_field(1, number) + write_field(2, sizes) + write_field(4, offset)
        items.append((key, entry + write_field(5, len(encoded)) + write_fixed32(6, crc32c)))
        offset += len(encoded)
    return write_table(items)


def _encode(name: str, values: np.ndarray | bytes) -> tuple[int, tuple[int, ...], bytes, int]:
    """Return a tensor's type, shape, stored bytes and CRC32C."""
    if isinstance(values, bytes):
        length = len(values)
        stored = masked_crc32c(length.to_bytes(4, "little")).to_bytes(_CRC_BYTES, "little") + values
        return _STRING, (), varint(length) + stored, _string_crc(stored, length)
    number = _DTYPE_NUMBERS.get(values.dtype.name)
    if number is None:
        raise CheckpointError(f"{name!r} is {values.dtype}, which a checkpoint cannot hold")
    # tobytes gives C order whatever the strides; a memoryview of a transposed view would not.
    encoded = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    return number, values.shape, encoded, masked_crc32c(encoded)


def _string_crc(stored: bytes, length: int) -> int:
    """Return the CRC32C of a string: over its length as 4 bytes, and what is stored behind the length."""
    return masked_crc32c((length & 0xFFFFFFFF).to_bytes(4, "little") + stored)


def _check_size(name: str, size: int) -> None:
    if size > _MAX_TENSOR_BYTES:
        raise CheckpointError(f"{name!r} has {size} bytes; at most {_MAX_TENSOR_BYTES} are accepted")


def _storage(name: str, entry: Entry) -> tuple[int, str]:
    """Return the size of an item and the numpy dtype of the stored bytes."""
    number = _DTYPE_NUMBERS.get(entry.dtype)
    if number is None:
        raise CheckpointError(f"{name!r} is of type {entry.dtype}, which is not numeric or not read")
    stored = _DTYPES[number][1]
    return np.dtype(stored).itemsize, stored


def _parse_entry(name: str, data: bytes) -> Entry:
    numbers = {1: 0, 3: 0, 4: 0, 5: 0, 6: 0}
    shape: tuple[int, ...] = ()
    slices = []
    for field, value in read_message(data):
        if field in numbers and isinstance(value, int):
            numbers[field] = value
        elif field == 2 and isinstance(value, bytes):
            shape = _parse_shape(name, value)
        elif field == 7 and isinstance(value, bytes):
            slices.append(_parse_slice(value))
    dtype = _DTYPES[numbers[1]][0] if numbers[1] in _DTYPES else _NOT_NUMERIC.get(numbers[1], f"type {numbers[1]}")
    return Entry(dtype, shape, numbers[3], numbers[4], numbers[5], numbers[6], tuple(slices))


def _parse_shape(name: str, data: bytes) -> tuple[int, ...]:
    sizes = []
    for field, value in read_message(data):
        if field == 3 and value:
            raise CheckpointError(f"the checkpoint's index is damaged: {name!r} has no rank")
        if field == 2 and isinstance(value, bytes):
            size = dict(read_message(value)).get(1, 0)
            sizes.append(signed(size) if isinstance(size, int) else -1)
    # Zeros left out, for numpy refuses an empty array too whose other dimensions overflow.
    if len(sizes) > _MAX_RANK or min(sizes, default=0) < 0 or math.prod(filter(None, sizes)) > _MAX_VALUES:
        raise CheckpointError(f"the checkpoint's index is damaged: {name!r} has shape {sizes[:8]}")
    return tuple(sizes)


def _parse_slice(data: bytes) -> tuple[tuple[int, int], ...]:
    extents = []
    for field, value in read_message(data):
        if field == 1 and isinstance(value, bytes):
            numbers = {key: signed(number) for key, number in read_message(value) if isinstance(number, int)}
            extents.append((max(0, numbers.get(1, 0)), numbers.get(2, -1)))
    return tuple(extents)


def _slice_key(name: str, part: tuple[tuple[int, int], ...]) -> bytes:
    """Return the key under which a part's entry is stored (EncodeTensorNameSlice)."""
    key = _ordered_number(0) + _ordered_string(name.encode("utf-8")) + _ordered_number(len(part))
    return key + b"".join(_ordered_signed(start) + _ordered_signed(length) for start, length in part)


def _ordered_number(value: int) -> bytes:
    digits = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes([len(digits)]) + digits


def _ordered_string(value: bytes) -> bytes:
    # The code would escape 0xff too; UTF-8 has none.
    return value.replace(b"\0", b"\0\xff") + b"\0\x01"


def _ordered_signed(value: int) -> bytes:
    """OrderedCode's signed number: n bytes carry 7n-1 bits; the leading bits of the first say how many bytes follow."""
    magnitude = ~value if value < 0 else value
    length = magnitude.bit_length() // 7 + 1
    if length > 8:
        raise CheckpointError(f"the checkpoint's index is damaged: a slice at {value}")
    header = ((1 << length) - 1) << (8 * length - length)
    encoded = magnitude | header
    if value < 0:
        encoded = ~encoded & ((1 << 8 * length) - 1)
    return encoded.to_bytes(length, "big")
