"""Which files make up a checkpoint: an index and its data shards, or one file of another kind.

An index and its shards are recognized by name; the text file `checkpoint` is never relied on, since the larger
published archives lack it. A single file is recognized by the formats themselves.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol, Self

from converters.formats import list_formats
from converters.formats.format import FileReader, Format, Reader
from converters.tensorbundle.bundle import Bundle
from converters.tensorbundle.layout import Ranges
from converters.tensorbundle.sstable import MAGIC
from rszoo.disk.paths import to_text
from rszoo.disk.regular import LFS_REMEDY, is_lfs_pointer
from rszoo.errors import CheckpointError, SourceNotFoundError, summarize
from rszoo.folder.model_folder import sha256_of

_SHARD = re.compile(r"(?P<prefix>.+)\.data-(?P<number>\d{5})-of-(?P<count>\d{5})", re.ASCII)
_INDEX_SUFFIX = ".index"
# macOS writes such a file beside each, with what the other file system cannot hold of it.
_APPLE_DOUBLE = "._"
#: Largest index that is read into memory. The 420's is 0.5 MB.
MAX_INDEX_BYTES = 16 << 20


class OpenCheckpoint(Protocol):
    """A checkpoint in any kind of file. A context manager that closes it.

    `source` is what the weights' metadata will name: a base name or URL, never a path. `prefix` is the checkpoint's
    name within it. Size and hashes are those of the archive or file, or None where there are several files. `proof`:
    what the file is known by, in words for the account, where it is a copy of a published one.
    """

    prefix: str
    source: str
    archive_sha256: str | None
    archive_size: int | None
    archive_md5: bytes | None
    proof: str | None

    @property
    def reader(self) -> Reader:
        """Its tensors. Raises CheckpointError if they are damaged."""

    def formats(self) -> list[Format]:
        """Return the formats that come in files of this kind."""

    def holds(self, name: str) -> bool:
        """Whether the bytes of a tensor are there; from an archive, only the wanted ones may have been kept."""

    def integrity_checks(self) -> list[str]:
        """Return what reading it checks by itself, in words for the account."""

    def content_hash(self) -> dict[str, str]:
        """Return, by its name in the weights' metadata, a SHA-256 that depends on every tensor and on no path."""

    def close(self) -> None:
        """Close what is open."""

    def __enter__(self) -> Self:
        """Return itself."""

    def __exit__(self, *_: object) -> None:
        """Close what is open."""


@dataclass
class CheckpointFiles:
    """One of TensorFlow's checkpoints: its index in memory, its shards open for reading. See `OpenCheckpoint`.

    `kept` has the byte ranges of the only shard that were kept, None if all was.
    """

    prefix: str
    index: bytes
    shards: dict[int, BinaryIO]
    kept: Ranges | None = None
    source: str = ""
    archive_sha256: str | None = None
    archive_size: int | None = None
    archive_md5: bytes | None = None
    proof: str | None = None

    @functools.cached_property
    def reader(self) -> Bundle:
        """Its tensors. Raises CheckpointError if the index is damaged."""
        return Bundle(self.index, self.shards, self.prefix)

    def formats(self) -> list[Format]:
        """Return the formats that come in TensorFlow's checkpoints."""
        return [known for known in list_formats() if known.open_file is None]

    def holds(self, name: str) -> bool:
        """Whether the bytes of a tensor were kept."""
        entry = self.reader.entries[name]
        return self.kept is None or (not entry.slices and (entry.offset, entry.offset + entry.size) in self.kept)

    def integrity_checks(self) -> list[str]:
        """Return what `Bundle` checks."""
        return ["CRC32C of the index and of every tensor read"]

    def content_hash(self) -> dict[str, str]:
        """Return the archive's SHA-256, or else that of the index, which has the CRC32C of every tensor."""
        if self.archive_sha256:
            return {"source_sha256": self.archive_sha256}
        return {"source_index_sha256": hashlib.sha256(self.index).hexdigest()}

    def close(self) -> None:
        """Close the shards."""
        for shard in self.shards.values():
            shard.close()

    def __enter__(self) -> CheckpointFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class SingleFile:
    """A checkpoint that is one file, of a kind that some format opens with `open_file`. See `OpenCheckpoint`."""

    path: Path
    reader: FileReader
    open_file: Callable[[Path], FileReader | None]
    prefix: str = ""
    archive_md5: bytes | None = None
    proof: str | None = None

    def __post_init__(self) -> None:
        self.source = to_text(self.path.resolve().name)
        self.archive_size: int | None = self.path.stat().st_size
        self.archive_sha256: str | None = sha256_of(self.path)

    def formats(self) -> list[Format]:
        """Return the formats that come in files of this kind."""
        return [known for known in list_formats() if known.open_file == self.open_file]

    def holds(self, name: str) -> bool:
        """Whether the bytes of a tensor are there, which they always are."""
        return name in self.reader.entries

    def integrity_checks(self) -> list[str]:
        """Return nothing: that depends on the kind of file."""
        return []

    def content_hash(self) -> dict[str, str]:
        """Return the file's SHA-256."""
        return {"source_sha256": str(self.archive_sha256)}

    def close(self) -> None:
        """Close the file."""
        self.reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class Collector:
    """Takes the files of one place one by one, and makes a checkpoint of them or says why it cannot."""

    place: str
    _indexes: dict[str, bytes] = field(default_factory=dict)
    _shards: dict[str, dict[int, BinaryIO]] = field(default_factory=dict)
    _others: list[str] = field(default_factory=list)
    _old_format: list[str] = field(default_factory=list)
    _opened: ExitStack = field(default_factory=ExitStack)

    def add_index(self, name: str, data: bytes) -> None:
        """Take an index file."""
        self._indexes[name.removesuffix(_INDEX_SUFFIX)] = data

    def add_shard(self, name: str, shard: BinaryIO) -> None:
        """Take a data shard; it is closed with the checkpoint, or at once if none comes about."""
        match = _SHARD.fullmatch(name)
        if match is None:
            raise ValueError(f"{name!r} is not the name of a data shard")
        self._shards.setdefault(match["prefix"], {})[int(match["number"])] = self._opened.enter_context(shard)

    def add_other(self, name: str, tail: bytes) -> None:
        """Take note of any other file, given its last bytes."""
        self._others.append(name)
        if tail.endswith(MAGIC):
            self._old_format.append(name)

    def close(self) -> None:
        """Close every shard that was taken."""
        self._opened.close()

    def finish(self) -> CheckpointFiles:
        """Return the one checkpoint that the files make up.

        Raises:
            CheckpointError: there is none, several, or one in TensorFlow's old format (V1).
        """
        if len(self._indexes) > 1:
            raise CheckpointError(
                f"{self.place} holds several checkpoints: {summarize(sorted(self._indexes), 5)}; "
                "give the prefix of one, such as --ckpt FOLDER/model.ckpt"
            )
        if not self._indexes:
            raise CheckpointError(self._why_no_index())
        prefix, index = next(iter(self._indexes.items()))
        shards = self._shards.get(prefix, {})
        for other, unused in self._shards.items():
            if other != prefix:
                for shard in unused.values():
                    shard.close()
        if not shards:
            raise CheckpointError(f"{self.place} holds {prefix}.index but no {prefix}.data-00000-of-00001 beside it")
        return CheckpointFiles(prefix, index, shards)

    def _why_no_index(self) -> str:
        if self._old_format:
            return (
                f"{self.place} holds {self._old_format[0]!r}, a checkpoint in TensorFlow's old V1 format, which is not "
                "read; load it in TensorFlow and save it again with tf.compat.v1.train.Saver()"
            )
        found = sorted([*self._others, *(f"{prefix}.data-*" for prefix in self._shards)])
        held = summarize([repr(name) for name in found], 5) or "nothing"
        return f"{self.place} holds no checkpoint: a file *.index is needed, found {held}"


def role(name: str) -> str:
    """Return a file's role in a checkpoint, by its base name: `index`, `shard` or `other`."""
    if name.startswith(_APPLE_DOUBLE):
        return "other"
    if _SHARD.fullmatch(name):
        return "shard"
    return "index" if name.endswith(_INDEX_SUFFIX) and name != _INDEX_SUFFIX else "other"


def open_single(path: Path) -> SingleFile | None:
    """Open a file that some format recognizes by its first bytes, or return None.

    Raises:
        CheckpointError: it is of that kind, but damaged.
    """
    for known in list_formats() if path.is_file() else ():
        if known.open_file is not None and (reader := known.open_file(path)) is not None:
            return SingleFile(path, reader, known.open_file)
    return None


def open_folder(path: Path) -> CheckpointFiles:
    """Open the one checkpoint in a folder. Raises as `Collector.finish` does."""
    files = _open(sorted(child for child in path.iterdir() if child.is_file()), str(path))
    files.source = to_text(path.resolve().name)
    return files


def open_prefix(path: Path) -> CheckpointFiles:
    """Open the checkpoint of a prefix such as `folder/model.ckpt`, or of any one of its files.

    Raises:
        SourceNotFoundError: no file begins with that prefix.
        CheckpointError: as `Collector.finish`.
    """
    shard = _SHARD.fullmatch(path.name)
    prefix = shard["prefix"] if shard else re.sub(r"\.(index|meta)$", "", path.name)
    if not path.parent.is_dir():
        raise SourceNotFoundError(f"no folder {path.parent}; give an existing archive, folder or checkpoint prefix")
    siblings = [child for child in sorted(path.parent.iterdir()) if child.is_file()]
    mine = [child for child in siblings if child.name == prefix or child.name.startswith(f"{prefix}.")]
    if not mine:
        there = summarize([child.name for child in siblings], 5) or "nothing"
        raise SourceNotFoundError(f"no checkpoint {path}; in {path.parent} there is: {there}")
    files = _open(mine, str(path))
    files.source = to_text(prefix)
    return files


def _open(paths: list[Path], place: str) -> CheckpointFiles:
    collector = Collector(place)
    try:
        for path in paths:
            kind = role(path.name)
            if kind == "shard":
                collector.add_shard(path.name, path.open("rb"))
            elif kind == "index" and path.stat().st_size <= MAX_INDEX_BYTES:
                index = path.read_bytes()
                if is_lfs_pointer(index):
                    raise CheckpointError(f"{path} is {LFS_REMEDY}")
                collector.add_index(path.name, index)
            else:
                with path.open("rb") as opened:
                    opened.seek(max(0, path.stat().st_size - len(MAGIC)))
                    collector.add_other(path.name, opened.read())
        return collector.finish()
    except BaseException:
        collector.close()
        raise
