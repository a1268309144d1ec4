"""The workers of a download: several connections that fill one partial file, the lowest missing ranges first.

Takes an object's URL, the first response and a folder; produces blocks on disk that a reader can wait for.
"""

from __future__ import annotations

import errno
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import google_crc32c
import requests

from rszoo.errors import FILE_SYSTEM_ERRORS, NetworkError, OutputError
from rszoo.net.http import Opened, new_session, open_range
from rszoo.net.partial import PartialFile
from rszoo.net.retry import OutOfPatienceError, Patience, TransientError
from rszoo.net.urls import Version, public_url
from rszoo.terminal import progress_bar

_CONNECTIONS = 4
# Delay between opening connections: an object that arrives within this time does not need a second connection.
_STAGGER_S = 0.3
_BLOCK = 1 << 20
# Size of one request: long enough to hide the latency between requests, short enough that the reader rarely waits.
_RUN_BLOCKS = 32
# The read size grows up to a block, so that a connection that breaks early costs little.
_FIRST_PIECE = 64 << 10
# After this many bytes, the failure count restarts.
_PROGRESS = 256 << 10
_MAX_OPENINGS = 10
# How far an object without a size is fetched ahead of its reader, who may find that it should have ended.
_MAX_AHEAD = 64 << 20
_JOIN_S = 0.5


class OverlongError(NetworkError):
    """An object that does not end where it should."""


@dataclass
class _Run:
    """Bytes that one worker fetches: the remaining ones are [position, stop); `stop` None means up to the end."""

    position: int
    stop: int | None
    crc: google_crc32c.Checksum = field(default_factory=google_crc32c.Checksum)


class Fetcher:
    """Fetches an object into a `PartialFile` in the folder `parent`, from construction until `close`.

    `first` is the response to a request for the object's first byte; from a server without ranges, the whole object.
    `size` is in bytes, None until the server sends it. `limit`: how many bytes an object without a size may have.

    Raises:
        OutputError: `parent` cannot be written.
    """

    def __init__(self, url: str, parent: Path, first: Opened, limit: int | None = None) -> None:
        self.url = url
        self._limit = limit
        self.size = first.version.size
        self._version = first.version
        self._ranged = first.ranged
        self._changed = threading.Condition()
        self._wanted = 0
        self._error: BaseException | None = None
        self._stopped = False
        self._claimed: set[int] = set()
        self.partial, files = _open_partial(parent, url, self._version)
        arrived = min(len(self.partial.done) * _BLOCK, self.size or 0)
        self._bar = progress_bar(f"downloading {PurePosixPath(urlsplit(url).path).name}", self.size, "B", arrived)
        self._threads = self._start(first, files)

    def wait_for(self, position: int) -> bool:
        """Wait until the block that starts at `position` is on disk; return False if the object ends there.

        Raises:
            NetworkError: it cannot be fetched. RemoteChangedError: the object was replaced during the download.
            OverlongError: it has no size, and more than `limit` bytes.
            OutputError: it cannot be stored.
        """
        with self._changed:
            self._wanted = position
            self._changed.notify_all()
            while True:
                if position == self.size:
                    return False
                if position // _BLOCK in self.partial.done:
                    return True
                if self._error is not None:
                    raise self._error
                self._changed.wait()

    def look_again(self) -> None:
        """Wake the workers to look for missing blocks, because a block is no longer `done`."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Stop. A worker that waits for the network ends when the network answers."""
        self._fail(NetworkError(f"the download of {public_url(self.url)} was stopped"))
        deadline = time.monotonic() + _JOIN_S
        for thread in self._threads:
            thread.join(max(0, deadline - time.monotonic()))
        self.partial.close()
        self._bar.close()

    def _start(self, first: Opened, files: list[FileIO]) -> list[threading.Thread]:
        missing = 1 if self.size is None else -(-self.size // _BLOCK) - len(self.partial.done)
        count = min(_CONNECTIONS, -(-missing // _RUN_BLOCKS)) if self._ranged else 1
        if self._ranged:
            first.close()
        opened = None if self._ranged else first
        self._working = max(count, 1)
        # Daemon threads: an interrupted program must not wait for a silent server.
        used, surplus = files[: self._working], files[self._working :]
        for file in surplus:
            file.close()
        waits = (number * _STAGGER_S for number in range(len(used)))
        workers = zip(used, waits, strict=True)
        threads = [threading.Thread(target=self._work, args=(opened, *given), daemon=True) for given in workers]
        for thread in threads:
            thread.start()
        return threads

    def _work(self, opened: Opened | None, file: FileIO, wait_s: float) -> None:
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped, wait_s)
            # The first answer is closed here too: a download that stops before its first run never reads it.
            with new_session() as session, file as data, opened or nullcontext():
                while (run := self._claim()) is not None:
                    self._fetch(session, data, run, opened)
                    opened = None
        except OutOfPatienceError as error:
            # A server may refuse some of the connections and serve the others.
            with self._changed:
                self._working -= 1
                last = self._working == 0
                self._changed.notify_all()
            if last:
                self._fail(error)
        except NetworkError as error:
            self._fail(error)
        except OSError as error:
            self._fail(_explain_disk(error, self.partial.folder))
        except BaseException as error:  # the reader raises it
            self._fail(error)

    def _claim(self) -> _Run | None:
        """Return the lowest missing run that no other worker fetches; None when the download is stopped."""
        with self._changed:
            while not self._stopped:
                run = self._next_run()
                if run is not None:
                    return run
                # A block whose checksum is wrong may become missing again.
                self._changed.wait()
            return None

    def _next_run(self) -> _Run | None:
        count = None if self.size is None else -(-self.size // _BLOCK)
        taken = self._claimed | self.partial.done.keys()
        start = next(block for block in range(len(taken) + 1) if block not in taken)
        if (self._claimed and not self._ranged) or (count is not None and start >= count):
            return None
        if count is None:
            self._claimed.add(start)
            return _Run(start * _BLOCK, None)
        stop = start + 1
        while stop < count and stop not in taken and (stop - start < _RUN_BLOCKS or not self._ranged):
            stop += 1
        self._claimed.update(range(start, stop))
        return _Run(start * _BLOCK, min(stop * _BLOCK, self.size or 0))

    def _fetch(self, session: requests.Session, data: FileIO, run: _Run, opened: Opened | None) -> None:
        """Fetch a run, resuming where the connection broke, until it is complete or there were too many failures."""
        patience = Patience()
        # The host has already answered once.
        patience.renew()
        blocks = set(range(run.position // _BLOCK, -(-(run.stop or run.position + 1) // _BLOCK)))
        try:
            while not self._stopped:
                try:
                    with opened or open_range(session, self.url, run.position, run.stop) as answer:
                        self._receive(answer, data, run, patience)
                    return
                except TransientError as error:
                    opened = None
                    patience.endure(error)
        finally:
            with self._changed:
                self._claimed -= blocks

    def _receive(self, answer: Opened, data: FileIO, run: _Run, patience: Patience) -> None:
        self._version.check_same(answer.version, self.url)
        self._skip(answer, run.position - answer.start)
        if run.stop is None and answer.version.size is not None:
            self._learn_size(answer.version.size, run, data)
        data.seek(run.position)
        renewed_at = run.position
        size = min(_FIRST_PIECE, _BLOCK)
        while run.position != run.stop and not self._stopped:
            end = (run.position // _BLOCK + 1) * _BLOCK
            end = end if run.stop is None else min(end, run.stop)
            piece = answer.read(min(size, end - run.position))
            if not piece:
                self._end(run, data)
                return
            if run.stop is None and self._limit is not None and run.position + len(piece) > self._limit:
                raise OverlongError(
                    f"{public_url(self.url)} sends more than the {self._limit} bytes that it may have; get it elsewhere"
                )
            _write_all(data, piece)
            run.crc.update(piece)
            run.position += len(piece)
            size = min(2 * size, _BLOCK)
            if run.position == end:
                self._commit(run)
            if run.position - renewed_at >= _PROGRESS:
                patience.renew()
                renewed_at = run.position

    def _skip(self, answer: Opened, count: int) -> None:
        """Skip the bytes that are already on disk if the server sends everything from the start."""
        if count and self._ranged:
            raise TransientError(f"{public_url(self.url)} answered with the whole file instead of the requested range")
        while count and not self._stopped:
            piece = answer.read(min(_BLOCK, count))
            if not piece:
                raise TransientError(f"{public_url(self.url)} ended before the position that was already received")
            count -= len(piece)

    def _end(self, run: _Run, data: FileIO) -> None:
        """Handle the end of a response: the end of an object of unknown length, or a truncated response."""
        if run.stop is not None:
            raise TransientError(f"{public_url(self.url)} ended after {run.position} of {self.size} bytes")
        self._learn_size(run.position, run, data)
        if run.position % _BLOCK:
            self._commit(run)

    def _learn_size(self, size: int, run: _Run, data: FileIO) -> None:
        """Store a size that the first response did not contain."""
        # An earlier attempt may have stored a longer object.
        data.truncate(size)
        with self._changed:
            self.size = run.stop = size
            self._changed.notify_all()

    def _commit(self, run: _Run) -> None:
        block = (run.position - 1) // _BLOCK
        crc = int.from_bytes(run.crc.digest(), "big")
        run.crc = google_crc32c.Checksum()
        with self._changed:
            if not self._stopped:
                self.partial.commit(block, crc)
                self._claimed.discard(block)
                self._bar.update(run.position - block * _BLOCK)
                self._changed.notify_all()
                if run.stop is None:
                    self._changed.wait_for(lambda: self._stopped or run.position - self._wanted <= _MAX_AHEAD)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._stopped = True
            self._error = self._error or error
            self._changed.notify_all()


def _open_partial(
    parent: Path, url: str, version: Version, attempts: int = _MAX_OPENINGS
) -> tuple[PartialFile, list[FileIO]]:
    """Return the partial file, and its data opened once for each worker.

    Opened here because another process may finish the same download and delete the files before a worker starts.
    """
    try:
        partial = PartialFile(parent, url, version, _BLOCK)
        files = [partial.open() for _ in range(_CONNECTIONS)]
    except OSError as error:
        # Just deleted by another process.
        if isinstance(error, FileNotFoundError) and attempts > 1:
            return _open_partial(parent, url, version, attempts - 1)
        raise _explain_disk(error, parent) from error
    if version.size is None:
        # Without the size, a short last block cannot be distinguished from a complete one.
        partial.done.clear()
    return partial, files


def _explain_disk(error: OSError, folder: Path) -> Exception:
    if error.errno not in (*FILE_SYSTEM_ERRORS, errno.ENOENT):
        return error
    return OutputError(
        f"cannot store the download in {folder}: {error.strerror}; free some space or set RSZOO_CACHE to a "
        "writable folder. The bytes received so far are kept, and the next run resumes from them"
    )


def _write_all(data: FileIO, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[data.write(view) :]
