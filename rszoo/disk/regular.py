"""Opens what is named by others: only regular files, and small ones read whole only up to a bound."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

#: More than any text of rszoo's has: the account of a 420 has 0.5 MB.
MAX_BYTES = 64 << 20


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading. A pipe would wait for ever, and a device has no end.

    Raises:
        OSError: it is missing, or no regular file.
    """
    # Without O_NONBLOCK this call itself waits until somebody writes to a pipe.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "a folder, pipe or device, not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path) -> bytes:
    """Return the bytes of a small file.

    Raises:
        OSError: it is missing, no regular file, or has more than `MAX_BYTES`.
    """
    with open_regular(path) as opened:
        content = opened.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"larger than {MAX_BYTES >> 20} MiB", str(path))
    return content


def read_regular_text(path: Path) -> str:
    """Return the text of a small UTF-8 file. Raises UnicodeDecodeError; else as `read_regular`."""
    return read_regular(path).decode("utf-8")
