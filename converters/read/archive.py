"""A published `.tar.gz` read safely as a stream: gzip bytes in, the checkpoint's index and data shards out.

One pass: the data shards precede their index, so they are spooled, unpacked, to nameless temporary files, and nothing
is ever extracted by path. Memory does not grow with the archive. ISA-L decompresses and SHA-256 is taken on threads of
their own, so that the whole pass takes little longer than decompression alone.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import itertools
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, Protocol, cast

from isal import igzip_threaded
from isal.isal_zlib import IsalError

from converters.formats import expected_ranges
from converters.read.files import MAX_INDEX_BYTES, CheckpointFiles, Collector, role
from converters.tensorbundle.layout import Ranges
from rszoo.disk.regular import LFS_REMEDY, is_lfs_pointer
from rszoo.errors import FILE_SYSTEM_ERRORS, ArchiveError, OutputError
from rszoo.folder.model_folder import WeightSet

_CHUNK = 1 << 20
# Below the C library's threshold of 128 KiB, above which every allocation would go to the kernel.
_COPY = 64 << 10
# The largest published shard has 2.3 GB, the largest .meta some 60 MB.
_MAX_BYTES = {"shard": 16 << 30, "index": MAX_INDEX_BYTES, "other": 1 << 30}
_MAX_TOTAL = 32 << 30
_MAX_MEMBERS = 1000
# tarfile holds extended headers in memory, whatever size they claim; genuine ones are under 1 KiB.
_TAR_BUFFER = 32 << 10
_HEADER_BUDGET = 2 * _TAR_BUFFER
# What may follow the last member: tar pads with zeros, by 10 KiB or as the tape had it, and gzip may be padded too.
_MAX_REST = 1 << 20
# What is read ahead of what was unpacked: by this module, and by ISA-L 8 MiB packed and a few blocks unpacked. Beyond
# it there are only bytes that unpack to nothing, of which a hostile server has no end.
_AHEAD = 16 << 20
_ONLY_SHARD = ".data-00000-of-00001"
_GZIP = b"\x1f\x8b"
# Where a tar that is not packed says so.
_TAR_MAGIC, _TAR_MAGIC_AT = b"ustar", 257
# What else is found under the name of an archive, and what to do about it.
_UNPACK = "which is not read; unpack it, and give the folder"
_OTHER_KINDS = {
    b"\xfd7zXZ\0": f"is packed with xz, {_UNPACK}",
    b"BZh": f"is packed with bzip2, {_UNPACK}",
    b"\x28\xb5\x2f\xfd": f"is packed with zstd, {_UNPACK}",
    b"PK\3\4": f"is a zip archive, {_UNPACK}",
}


class Readable(Protocol):
    """What an archive comes from: a file or a network stream."""

    def readinto(self, buffer: Any, /) -> int | None:
        """Fill up to all of `buffer`, and return how many bytes; 0 only at the end."""
        ...

    def close(self) -> None:
        """Stop; a `readinto` that waits on another thread fails then."""
        ...


class _HashingReader(io.RawIOBase):
    """Reads a stream ahead by one chunk on a thread of its own, which also takes its SHA-256, and MD5 if wanted.

    `report` is told how many bytes were used.
    """

    def __init__(self, stream: Readable, report: Callable[[int], object], with_md5: bool) -> None:
        self.size = 0
        self._allowed = _AHEAD
        self._limit: int | None = None
        self._stream = stream
        self._report = report
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False) if with_md5 else None
        self._pool = ThreadPoolExecutor(1)
        self._rest = memoryview(b"")
        # Two in turn, allocated once: a new one for each chunk would cost more than the copy out of it.
        self._buffers = itertools.cycle([memoryview(bytearray(_CHUNK)) for _ in range(2)])
        self._next = self._pool.submit(self._fetch)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        if self.size > self._allowed or (self._limit is not None and self.size > self._limit):
            raise ArchiveError("the archive goes on after its last file, with what no genuine one has; it is refused")
        self._refill()
        used = min(len(self._rest), len(buffer))
        buffer[:used] = self._rest[:used]
        self._rest = self._rest[used:]
        self.size += used
        self._report(used)
        return used

    def peek(self, count: int) -> bytes:
        """Return the first bytes that come next, without reading them: up to `count`."""
        self._refill()
        return bytes(self._rest[:count])

    def _refill(self) -> None:
        if not self._rest:
            self._rest = self._next.result()
            if self._rest:
                self._next = self._pool.submit(self._fetch)

    def unpacked(self, count: int) -> None:
        """Let as many more bytes be read as it takes, packed, to unpack so many."""
        # What cannot be packed is stored, 65,535 bytes with 5 more.
        self._allowed += count + count // 1000

    def end_within(self, count: int) -> None:
        """Let at most so many more bytes be read."""
        self._limit = self.size + count

    def finish(self, files: CheckpointFiles) -> None:
        """Read what is left of the stream, and note its size and hashes in `files`."""
        while self.read(_CHUNK):
            pass
        self.close()
        files.archive_size = self.size
        files.archive_sha256 = self._sha256.hexdigest()
        files.archive_md5 = self._md5.digest() if self._md5 else None

    def close(self) -> None:
        """Stop the thread, once it has read what it is reading."""
        self._pool.shutdown()
        super().close()

    def abort(self) -> None:
        """Close the stream under the thread, so that nothing waits for a server that is silent."""
        self._stream.close()

    def _fetch(self) -> memoryview:
        buffer = next(self._buffers)
        chunk = buffer[: self._stream.readinto(buffer) or 0]
        self._sha256.update(chunk)
        if self._md5 is not None:
            self._md5.update(chunk)
        return chunk


class _BudgetReader:
    """The unpacked stream; limits what tarfile may read while it looks for the next member.

    `report` is told how many bytes were read.
    """

    def __init__(self, stream: IO[bytes], report: Callable[[int], object]) -> None:
        self._stream = stream
        self._report = report
        self.budget: int | None = None

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, or raise ArchiveError when the budget is spent."""
        if self.budget is not None:
            self.budget -= size
            if self.budget < 0:
                raise ArchiveError("the archive has a header that no genuine one has, of over 64 KiB; it is refused")
        content = self._stream.read(size)
        self._report(len(content))
        return content


def read_archive(
    stream: Readable,
    place: str,
    spool_folder: Path,
    *,
    keep: WeightSet | None,
    report: Callable[[int], object],
    with_md5: bool = False,
) -> CheckpointFiles:
    """Read a whole `.tar.gz`, or `.tar`, and return the checkpoint in it; the caller closes the result.

    `place` names the archive in errors. `spool_folder` must exist and have room for the unpacked data; no named file
    is left in it, even by a crash. `keep`: the one set of weights that will be read, or None for all; the others are
    not spooled if the shard's size tells where they lie, and the result's `kept` says so. `report` is told how many
    bytes of the archive went by. `with_md5`: also compute its MD5.

    Raises:
        ArchiveError: it is not a gzip or tar archive, is truncated or damaged, or has a hostile member.
        CheckpointError: there is no checkpoint in it, several, or one of TensorFlow's old format.
        OutputError: the spool cannot be written.
        NetworkError, OSError: the stream broke.
    """
    kept: dict[str, Ranges | None] = {}
    source = _HashingReader(stream, report, with_md5)
    collector = Collector(place)
    try:
        with _unpacked(source, place) as unpacked:
            try:
                for name, size, member in _members(place, _BudgetReader(unpacked, source.unpacked)):
                    if role(name) == "shard":
                        # A published checkpoint has one shard; one of several may have its size by chance.
                        kept[name] = expected_ranges(size, keep) if keep and name.endswith(_ONLY_SHARD) else None
                        collector.add_shard(name, _spool(member, size, spool_folder, kept[name]))
                    else:
                        _take(collector, name, member)
                # The gzip trailer, with its CRC32, follows the last member.
                source.end_within(_MAX_REST)
                while unpacked.read(_CHUNK):
                    pass
            except BaseException:
                source.abort()
                raise
        files = collector.finish()
        files.kept = kept.get(files.prefix + _ONLY_SHARD)
        source.finish(files)
        return files
    except BaseException as error:
        collector.close()
        if reason := _why_unreadable(error):
            raise ArchiveError(f"{place} {reason}") from error
        raise
    finally:
        source.close()


def looks_packed(start: bytes) -> bool:
    """Whether a file that begins like this is an archive, of a kind that is read or not, or stands for a file."""
    return start.startswith((_GZIP, *_OTHER_KINDS)) or _is_tar(start) or is_lfs_pointer(start)


def _is_tar(start: bytes) -> bool:
    return start[_TAR_MAGIC_AT : _TAR_MAGIC_AT + len(_TAR_MAGIC)] == _TAR_MAGIC


@contextmanager
def _unpacked(source: _HashingReader, place: str) -> Iterator[IO[bytes]]:
    """Yield the tar in a gzip archive; or what comes, if it is one already: some browsers unpack what they download.

    Raises:
        ArchiveError: it is packed in another way, or no archive.
    """
    start = source.peek(_TAR_MAGIC_AT + len(_TAR_MAGIC))
    if _is_tar(start):
        yield cast(IO[bytes], source)
        return
    if is_lfs_pointer(start):
        raise ArchiveError(f"{place} is {LFS_REMEDY}")
    if start.lstrip()[:1] == b"<":
        raise ArchiveError(f"{place} is a web page, not an archive; get it again, with the login that it needs")
    for magic, what in _OTHER_KINDS.items():
        if start.startswith(magic):
            raise ArchiveError(f"{place} {what}")
    with igzip_threaded.open(source, "rb", threads=1, block_size=_CHUNK) as unpacked:
        yield unpacked


def _why_unreadable(error: BaseException) -> str | None:
    """Return what an error means for the archive, or None if it is not about the archive."""
    # It is the same exception for a file of another kind and for a wrong checksum.
    if isinstance(error, gzip.BadGzipFile) and str(error).startswith("Not a gzipped file"):
        return f"is not a gzip archive ({error}); give a .tar.gz, a folder or a prefix"
    if isinstance(error, (EOFError, IsalError, gzip.BadGzipFile)):
        return f"is damaged or incomplete ({error}); get it again"
    if isinstance(error, tarfile.TarError):
        return f"does not hold an intact tar archive ({error}); get it again"
    return None


def _members(place: str, reader: _BudgetReader) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yield base name, size and content of each regular member; refuse everything that a checkpoint never has."""
    seen: set[str] = set()
    count = total = 0
    try:
        reader.budget = _HEADER_BUDGET
        # mypy's stub asks for more than read(), which is all that tarfile uses of a stream.
        with tarfile.open(fileobj=reader, mode="r|", bufsize=_TAR_BUFFER) as tar:  # type: ignore[call-overload]
            while (member := tar.next()) is not None:
                reader.budget = None
                name = _check_member(place, member)
                count, total = count + 1, total + member.size
                if name in seen or count > _MAX_MEMBERS:
                    raise ArchiveError(f"{place} has {name!r} twice, or over {_MAX_MEMBERS} members; it is refused")
                if total > _MAX_TOTAL:
                    raise ArchiveError(f"{place} unpacks to over {_MAX_TOTAL} bytes; it is refused")
                content = tar.extractfile(member)
                if content is not None:
                    seen.add(name)
                    yield name, member.size, content
                reader.budget = _HEADER_BUDGET
    except (tarfile.TarError, ValueError, LookupError, OverflowError, RecursionError) as error:
        if isinstance(error, ArchiveError):
            raise
        raise ArchiveError(f"{place} does not hold an intact tar archive ({error}); get it again") from error


def _check_member(place: str, member: tarfile.TarInfo) -> str:
    """Return the member's base name, or raise ArchiveError if it is hostile."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or "\0" in member.name:
        raise ArchiveError(f"{place} has a member with the hostile name {member.name!r}; it is refused")
    if member.issparse() or not (member.isreg() or member.isdir()):
        raise ArchiveError(f"{place} has a link, device, sparse or special file {member.name!r}; it is refused")
    limit = _MAX_BYTES[role(path.name)]
    if not 0 <= member.size <= limit:
        raise ArchiveError(f"{place} has {member.name!r} of {member.size} bytes; at most {limit} are accepted")
    return path.name


def _take(collector: Collector, name: str, content: IO[bytes]) -> None:
    if role(name) == "index":
        collector.add_index(name, content.read())
    else:
        tail = b""
        while chunk := content.read(_COPY):
            tail = (tail + chunk)[-8:]
        collector.add_other(name, tail)


def _spool(content: IO[bytes], size: int, folder: Path, kept: Ranges | None) -> BinaryIO:
    """Copy a member, or the ranges to keep at their offsets, to a temporary file without a name."""
    spool: BinaryIO | None = None
    try:
        spool = cast(BinaryIO, tempfile.TemporaryFile(dir=folder, buffering=0))  # noqa: SIM115 - the caller closes it
        position = 0
        wanted = iter(kept or ((0, size),))
        start, end = next(wanted, (size, size))
        while chunk := content.read(_COPY):
            view = memoryview(chunk)
            while start < position + len(chunk):
                spool.seek(max(start, position))
                _write_all(spool, view[max(start - position, 0) : end - position])
                if end > position + len(chunk):
                    break
                start, end = next(wanted, (size, size))
            position += len(chunk)
        spool.truncate(size)
        return spool
    except BaseException as error:
        if spool is not None:
            spool.close()
        if isinstance(error, OSError) and error.errno == errno.EMFILE:
            raise ArchiveError("the archive has more data shards than this process may open files") from error
        # What reading can raise is an OSError too, but has no number of the file system's.
        if isinstance(error, OSError) and error.errno in FILE_SYSTEM_ERRORS:
            raise OutputError(
                f"cannot unpack weights of {size / 1e6:.0f} MB into {folder}: {error.strerror}; free some space, or "
                "give an --output on a larger disk"
            ) from error
        raise


def _write_all(spool: BinaryIO, data: memoryview) -> None:
    while data:
        data = data[spool.write(data) :]
