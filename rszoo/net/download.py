"""An object at a URL as a checked stream: fetched over several connections, resumed where it stopped, read in order.

A `Fetcher` collects the object while `readinto` returns the bytes that have arrived, so the reader need not wait for
the whole object. Length and CRC32C (`x-goog-hash`) are checked before the end is reported; MD5 would halve the rate and
is left to the reader. A server without ranges is read over one connection.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c

from rszoo.errors import NetworkError, OutputError
from rszoo.net.fetcher import Fetcher
from rszoo.net.http import Opened, open_alone
from rszoo.net.retry import Patience, TransientError
from rszoo.net.urls import Version, public_url

_MAX_REREADS = 3


class DamagedError(NetworkError):
    """The received bytes do not match the hash that the server sent."""


class Download:
    """A running download, to be read in order. A context manager that stops it; the bytes received so far are kept.

    `parent` is the folder for received data. `accept` is called with the object's version before anything else is
    fetched; an exception from it ends the download. `limit`: how many bytes it may have, if the server sends no size.

    Raises:
        NetworkError: offline mode is on, or the object cannot be fetched.
        OutputError: `parent` cannot be written.
    """

    def __init__(self, url: str, parent: Path, accept: Callable[[Version], object], limit: int | None = None) -> None:
        self.url = url
        self._position = 0
        self._rest = memoryview(b"")
        self._crc = google_crc32c.Checksum()
        first = _probe(url)
        try:
            self.version = first.version
            accept(self.version)
            self._fetcher = Fetcher(url, parent, first, limit)
        except BaseException:
            first.close()
            raise

    @property
    def size(self) -> int | None:
        """Length in bytes, None until the server sends it."""
        return self._fetcher.size

    @property
    def path(self) -> Path:
        """The file that collects the object; complete once `readinto` has returned 0."""
        return self._fetcher.partial.path

    def readinto(self, buffer: Any, /) -> int:
        """Fill up to all of `buffer` and return the number of bytes; 0 only at the end, after length and hash checks.

        Raises:
            NetworkError: the object cannot be fetched completely. DamagedError: its hash is not the server's.
            OverlongError: it has no size, and does not end at `limit`.
            RemoteChangedError: the object was replaced during the download; call `discard` and restart.
            OutputError: it cannot be stored.
        """
        if not self._rest:
            self._rest = memoryview(self._next_block())
        used = min(len(self._rest), len(buffer))
        buffer[:used] = self._rest[:used]
        self._rest = self._rest[used:]
        return used

    def close(self) -> None:
        """Stop the download."""
        self._fetcher.close()

    def discard(self) -> None:
        """Delete the received data."""
        self._fetcher.partial.discard()

    def __enter__(self) -> Download:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next_block(self) -> bytes:
        """Wait for the next block and return it; empty at the end, after hash and length were checked."""
        partial = self._fetcher.partial
        for _ in range(_MAX_REREADS):
            if not self._fetcher.wait_for(self._position):
                check_hash(self.url, "CRC32C", self.version.crc32c, self._crc.digest())
                return b""
            left = partial.block_bytes if self.size is None else self.size - self._position
            content = partial.read(self._position // partial.block_bytes, min(partial.block_bytes, left))
            if content is not None:
                self._position += len(content)
                self._crc.update(content)
                return content
            self._fetcher.look_again()
        raise OutputError(f"{partial.path} does not contain what was written to it; check the disk for errors")


def check_hash(url: str, name: str, expected: str | None, digest: bytes | None) -> None:
    """Compare a hash of the received bytes with the server's, which is in base64; None if either is unknown.

    Raises:
        DamagedError: they differ.
    """
    actual = base64.b64encode(digest).decode() if digest else None
    if None not in (expected, actual) and expected != actual:
        raise DamagedError(
            f"{public_url(url)} arrived damaged: its {name} is {actual}, the server sent {expected}; run the command "
            "again"
        )


def _probe(url: str) -> Opened:
    """Request the first byte; the answer gives size, version and range support, or without ranges the whole object."""
    patience = Patience()
    while True:
        try:
            return open_alone(url, 0, 1)
        except TransientError as error:
            patience.endure(error)
