"""What has arrived of a download, on disk: one file filled block by block, and a journal of the blocks that are whole.

Each line of the journal has the CRC32C of its block, so nothing that is on disk needs to be believed: a block that a
power cut lost reads back with another CRC32C and counts as missing. Several processes may fill the same folder at once
(as they do where file locks are absent or lie): it belongs to one version of the object, so they write the same bytes.
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
    """The blocks of one version of an object that have arrived, `block_bytes` each but the last.

    `done` maps the blocks that are whole to their CRC32C.

    Raises:
        OSError: the folder cannot be made or written.
    """

    def __init__(self, parent: Path, url: str, version: Version, block_bytes: int) -> None:
        self.block_bytes = block_bytes
        label = _label(url)
        identity = json.dumps([public_url(url), *vars(version).values(), block_bytes])
        self.folder = parent / f"{label}-{_digest(identity)}"
        self.folder.mkdir(parents=True, exist_ok=True)
        # What is left of other versions can never be completed.
        for other in parent.iterdir():
            if re.fullmatch(rf"{re.escape(label)}-[0-9a-f]{{{_HASH_DIGITS}}}", other.name) and other != self.folder:
                shutil.rmtree(other, ignore_errors=True)
        self.path = self.folder / "data"
        self.path.touch()
        self._journal = (self.folder / "journal").open("a+b", buffering=0)
        self._data = self.open()
        self.done = self._read_journal()

    def open(self) -> FileIO:
        """Open the data for reading and writing, once more for each thread, since a file has one position."""
        return self.path.open("r+b", buffering=0)

    def commit(self, block: int, crc: int) -> None:
        """Note that a block has been written in full."""
        self.done[block] = crc
        facts = f"{block} {crc:08x}"
        # It begins with the line's end: what an interrupted process may have left there must not spoil this one.
        self._journal.write(f"\n{facts} {google_crc32c.value(facts.encode()):08x}\n".encode())

    def read(self, block: int, size: int) -> bytes | None:
        """Return a block of `size` bytes, or None if it is not what was committed; then it is no longer `done`."""
        self._data.seek(block * self.block_bytes)
        content = b""
        while len(content) < size and (piece := self._data.read(size - len(content))):
            content = content + piece if content else piece
        if len(content) == size and google_crc32c.value(content) == self.done[block]:
            return content
        del self.done[block]
        return None

    def discard(self) -> None:
        """Remove the folder."""
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
    """Return the part of the folder's name that tells objects apart, whichever mirror they come from."""
    path = urlsplit(url).path
    name = re.sub(r"[^\w.-]", "_", PurePosixPath(path).name, flags=re.ASCII)[:80]
    return f"{name}-{_digest(path)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]
