"""Opens what is named by others: only regular files, and small ones read whole only up to a bound."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

#: More than any text of rszoo's has: the account of a 420 has 0.5 MB.
MAX_BYTES = 64 << 20
#: What to type where `is_lfs_pointer`.
LFS_REMEDY = "a pointer of Git LFS, not the file itself; run `git lfs pull` in its folder"

_LFS = b"version https://git-lfs.github.com/spec/"


class NotRegularError(OSError):
    """What is no regular file, or too large for what it should be."""


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading. A pipe would wait for ever, and a device has no end.

    Raises:
        OSError: it is missing, or no regular file.
    """
    # Without O_NONBLOCK this call itself waits until somebody writes to a pipe.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegularError(errno.EINVAL, "a folder, pipe or device, not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path, most: int = MAX_BYTES) -> bytes:
    """Return the bytes of a file of at most so many.

    Raises:
        OSError: it is missing, no regular file, or has more.
    """
    with open_regular(path) as opened:
        content = opened.read(most + 1)
    if len(content) > most:
        raise NotRegularError(errno.EFBIG, f"larger than {most >> 20} MiB", str(path))
    return content


def is_lfs_pointer(start: bytes) -> bool:
    """Whether a file that begins like this only stands for one that Git LFS has not fetched."""
    return start.startswith(_LFS)


def read_regular_text(path: Path) -> str:
    """Return the text of a small UTF-8 file. Raises UnicodeDecodeError; else as `read_regular`."""
    return read_regular(path).decode("utf-8")
