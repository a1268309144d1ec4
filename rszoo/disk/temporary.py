"""Temporary names that identify their process, so that leftovers of killed processes can be recognized and removed.

File locks would do as well, but some cluster file systems have none, or unreliable ones.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NAME = re.compile(r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}\.tmp")
# After this long without a change, what a process of another machine left counts as abandoned.
_ABANDONED_S = 24 * 3600


def temporary_path(path: Path) -> Path:
    """Return a hidden path beside `path`, unique and this process's, for what will be renamed to it."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def write_whole(path: Path, text: str, *, replace: bool = True) -> bool:
    """Write a file that appears complete or not at all; return False if it exists and `replace` is off.

    Raises:
        OSError: it cannot be written; what was there is still there.
    """
    for left in abandoned(path.parent):
        remove(left)
    with temporary_file(path) as temporary:
        with temporary.open("x", encoding="utf-8") as written:
            written.write(text)
            written.flush()
            os.fsync(written.fileno())
        if replace:
            temporary.replace(path)
            return True
        return _link(temporary, path)


@contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` for a file that the block renames to it; what is left there afterwards is removed."""
    temporary = temporary_path(path)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def temporary_folder(path: Path, is_needed: Callable[[Path], bool] = lambda _: False) -> Iterator[Path]:
    """Yield an empty folder beside `path` that the block renames to it; what is left there afterwards is removed.

    `is_needed`: whether it must be left as it is, since it has what was there before.
    """
    temporary = temporary_path(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
    finally:
        if not is_needed(temporary):
            remove(temporary)


def remove_folder(folder: Path) -> None:
    """Remove a folder; renamed first, so that nobody opens half of it, then its files as far as possible.

    Raises:
        OSError: it cannot be renamed.
    """
    aside = temporary_path(folder)
    folder.rename(aside)
    remove(aside)


def intended_path(temporary: Path) -> Path:
    """Return the path that a temporary one was made for."""
    match = _NAME.fullmatch(temporary.name)
    return temporary.with_name(match["name"] if match else temporary.name)


def abandoned(folder: Path) -> list[Path]:
    """Return the temporary files and folders in a folder whose process has ended."""
    try:
        return [path for path in sorted(folder.iterdir()) if _is_abandoned(path)]
    except OSError:
        return []


def remove(path: Path) -> bool:
    """Remove a file or a folder with all that is in it, as far as possible; return whether it is gone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
    return not os.path.lexists(path)


def _link(temporary: Path, path: Path) -> bool:
    """Give a file its final name unless that is taken, and return whether it was free."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:
        # A file system without links: of several processes at once, the last one wins.
        if path.exists():
            return False
        temporary.replace(path)
    return True


def _is_abandoned(path: Path) -> bool:
    match = _NAME.fullmatch(path.name)
    if match is None:
        return False
    if match["host"] == _host():
        return not _runs(int(match["pid"]))
    with suppress(OSError):
        newest: float = max(item.lstat().st_mtime for item in (path, *(path.rglob("*") if path.is_dir() else ())))
        return time.time() - newest > _ABANDONED_S
    return False


def _runs(pid: int) -> bool:
    if os.name == "nt":
        # Signal 0 would end the process there.
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    # A process that ended and whose parent has not asked yet: its state, after the name in parentheses, is Z.
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    return True


@functools.cache
def _host() -> str:
    """Return a hash of the machine and container, within which process numbers are unique."""
    namespace = Path("/proc/self/ns/pid")
    identity = f"{socket.gethostname()} {namespace.stat().st_ino if namespace.exists() else ''}"
    return hashlib.sha256(identity.encode()).hexdigest()[:8]
