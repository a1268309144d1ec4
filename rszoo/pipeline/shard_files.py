"""Single TFRecord files: counts their records by the headers, copies them to a cache, and checks that they open.

A file is records of: length uint64, masked CRC-32C of it uint32, data, masked CRC-32C of the data uint32, little-endian
(tensorflow/core/lib/io/record_writer.h).
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import shutil
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rszoo.disk.crc32c import masked_crc32c
from rszoo.disk.regular import LFS_REMEDY, is_lfs_pointer
from rszoo.disk.temporary import temporary_file
from rszoo.errors import FILE_SYSTEM_ERRORS, OutputError, SourceNotFoundError, UsageError
from rszoo.terminal import progress_bar

#: Bytes of a record in addition to its data.
RECORD_OVERHEAD = 16

_HEADER = struct.Struct("<QI")
_THREADS = 16
# Enough to tell what a file is.
_START_BYTES = 64
# What TensorFlow writes with a compression_type, how that begins, and what to do.
_PACKED = {
    "gzip": ((b"\x1f\x8b",), "unpack each file with gunzip"),
    "zlib": (
        (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda"),
        'read them with tf.data.TFRecordDataset(files, compression_type="ZLIB"), and write them again without',
    ),
}
_CHUNK = 1 << 24


def size_of(path: str) -> int:
    """Return a file's size after reading one byte, so that an unreadable file is detected early.

    Raises:
        SourceNotFoundError: it cannot be read.
    """
    import tensorflow as tf

    try:
        with tf.io.gfile.GFile(os.fsencode(path), "rb") as opened:
            opened.read(1)
            return opened.size()
    except tf.errors.OpError as error:
        raise SourceNotFoundError(f"cannot be read: {error.message.splitlines()[0]}") from error


def check_unpacked(path: str) -> None:
    """Refuse a file that is no TFRecords as a whole, but has them or stands for them: packed, or not fetched.

    One whose beginning is damaged passes: it is a fault of this file alone.

    Raises:
        SourceNotFoundError: it cannot be read.
        UsageError: it is not as TFRecords are read.
    """
    import tensorflow as tf

    try:
        with tf.io.gfile.GFile(os.fsencode(path), "rb") as opened:
            start = opened.read(_START_BYTES)
    except tf.errors.OpError as error:
        raise SourceNotFoundError(f"{path} cannot be read: {error.message.splitlines()[0]}") from error
    if len(start) >= _HEADER.size and masked_crc32c(start[:8]) == _HEADER.unpack_from(start)[1]:
        return
    if is_lfs_pointer(start):
        raise UsageError(f"{path} is {LFS_REMEDY}")
    for kind, (beginnings, remedy) in _PACKED.items():
        if start.startswith(beginnings):
            raise UsageError(f"{path} is packed with {kind}, and only plain TFRecords can be resumed in; {remedy}")


def count_records(files: Sequence[int], local: Callable[[int], str]) -> tuple[int, ...]:
    """Return the number of records in each file, by their headers; for a damaged file those before the damage.

    Args:
        files: the numbers of the files.
        local: maps a file's number to its path.

    Raises:
        SourceNotFoundError: a file cannot be read.
        OutputError: the cache cannot be written.
    """
    with ThreadPoolExecutor(_THREADS) as pool, progress_bar("counting images", len(files), "files") as bar:
        counts = []
        for count in pool.map(lambda file: _count(local(file)), files):
            counts.append(count)
            bar.update()
    return tuple(counts)


def _count(path: str) -> int:
    import tensorflow as tf

    size, start, count = size_of(path), 0, 0
    opened: Any
    with tf.io.gfile.GFile(os.fsencode(path), "rb") if "://" in path else open(path, "rb") as opened:
        while start + RECORD_OVERHEAD <= size:
            opened.seek(start)
            header = opened.read(_HEADER.size)
            length, checksum = _HEADER.unpack(header)
            start += RECORD_OVERHEAD + length
            if masked_crc32c(header[:8]) != checksum or start > size:
                break
            count += 1
    return count


def cached_copy(path: str, cache: Path) -> str:
    """Return the path of a file's copy in a cache; copy it if there is no copy with the same size.

    Raises:
        SourceNotFoundError: the file cannot be read.
        OutputError: the cache cannot be written.
    """
    # Files of different data sets may have the same names.
    folder = cache / hashlib.sha256(os.fsencode(posixpath.dirname(path))).hexdigest()[:16]
    copy, size = folder / posixpath.basename(path), size_of(path)
    if copy.is_file() and copy.stat().st_size == size:
        return str(copy)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary_file(copy) as temporary:
            _copy(path, temporary, size)
            temporary.replace(copy)
    except OSError as error:
        if isinstance(error, SourceNotFoundError) or error.errno not in FILE_SYSTEM_ERRORS:
            raise
        raise OutputError(
            f"cannot copy {path} to the cache {cache}: {os.strerror(error.errno)}; choose another --cache, or none"
        ) from error
    return str(copy)


def _copy(path: str, copy: Path, size: int) -> None:
    import tensorflow as tf

    try:
        with tf.io.gfile.GFile(os.fsencode(path), "rb") as opened, copy.open("xb") as written:
            shutil.copyfileobj(opened, written, _CHUNK)
            if written.tell() != size:
                raise SourceNotFoundError(f"{path} changed while it was copied: {written.tell()} bytes of {size}")
    except tf.errors.OpError as error:
        raise SourceNotFoundError(f"cannot read {path}: {error.message}") from error
