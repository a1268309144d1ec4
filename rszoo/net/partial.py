"""The received part of a download, on disk: one file filled block by block, and a journal of the complete blocks.

Each line of the journal has the CRC32C of its block, so data on disk is never trusted blindly: a block that a power cut
damaged has another CRC32C and counts as missing. Several processes may fill the same folder at once (if file locks are
missing or unreliable): the folder belongs to one version of the object, so they write the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from io import FileIO
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import google_crc32c

from rszoo.net.urls import Version, public_url

_LINE = re.compile(r"(?P<facts>(?P<block>[0-9]{1,9}) (?P<crc>[0-9a-f]{8})) (?P<check>[0-9a-f]{8})")
_HASH_DIGITS = 16


class PartialFile:
    """The received blocks of one version of an object, `block_bytes` each except the last.

    `done` maps the complete blocks to their CRC32C.

    Raises:
        OSError: the folder cannot be created or written.
    """

    def __init__(self, parent: Path, url: str, version: Version, block_bytes: int) -> None:
        self.block_bytes = block_bytes
        label = _label(url)
        identity = json.dumps([public_url(url), *vars(version).values(), block_bytes])
        self.folder = parent / f"{label}-{_digest(identity)}"
        self.folder.mkdir(parents=True, exist_ok=True)
        # Leftovers of other versions can never be completed.
        for other in parent.iterdir():
            if re.fullmatch(rf"{re.escape(label)}-[0-9a-f]{{{_HASH_DIGITS}}}", other.name) and other != self.folder:
                shutil.rmtree(other, ignore_errors=True)
        self.path = self.folder / "data"
        self.path.touch()
        self._journal = (self.folder / "journal").open("a+b", buffering=0)
        self._data = self.open()
        self.done = self._read_journal()

    def open(self) -> FileIO:
        """Open the data for reading and writing; each thread needs its own file object, which has its own position."""
        return self.path.open("r+b", buffering=0)

    def commit(self, block: int, crc: int) -> None:
        """Record that a block has been written completely."""
        self.done[block] = crc
        facts = f"{block} {crc:08x}"
        # Starts with a newline, so that a partial line of an interrupted process does not damage this one.
        self._journal.write(f"\n{facts} {google_crc32c.value(facts.encode()):08x}\n".encode())

    def read(self, block: int, size: int) -> bytes | None:
        """Return a block of `size` bytes, or None if its checksum is wrong; then it is no longer `done`."""
        self._data.seek(block * self.block_bytes)
        content = b""
        while len(content) < size and (piece := self._data.read(size - len(content))):
            content = content + piece if content else piece
        if len(content) == size and google_crc32c.value(content) == self.done[block]:
            return content
        del self.done[block]
        return None

    def discard(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Close the files."""
        self._data.close()
        self._journal.close()

    def _read_journal(self) -> dict[int, int]:
        self._journal.seek(0)
        lines = self._journal.read().decode("ascii", "replace").splitlines()
        return {
            int(match["block"]): int(match["crc"], 16)
            for match in filter(None, map(_LINE.fullmatch, lines))
            if google_crc32c.value(match["facts"].encode()) == int(match["check"], 16)
        }


def _label(url: str) -> str:
    """Return the part of the folder's name that identifies the object, independent of the mirror."""
    path = urlsplit(url).path
    name = re.sub(r"[^\w.-]", "_", PurePosixPath(path).name, flags=re.ASCII)[:80]
    return f"{name}-{_digest(path)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]
