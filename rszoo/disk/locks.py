"""Locks between processes, which the system releases when a process ends, however it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held(path: Path, seconds: float) -> Iterator[bool]:
    """Hold the lock of a file while the block runs; yield False if another process still has it after `seconds`.

    Where a file system has no locks, or the file is another user's, there is no lock and it yields True.
    """
    from filelock import FileLock, Timeout

    lock, free = FileLock(path, fallback_to_soft=False), True
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=seconds)
    except Timeout:
        free = False
    except (OSError, NotImplementedError):
        # A lock only avoids double work, so it is not required. NotImplementedError is filelock's, for a file system
        # without locks.
        pass
    try:
        yield free
    finally:
        lock.release()
