"""Local files and folders and others that TensorFlow can read (`gs://`), with rszoo's errors.

A folder is listed once, and its files are neither opened nor asked about. Local ones are listed by Python, which learns
from the listing which of the names are folders; object stores mark folders with a slash.
"""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from rszoo.disk.regular import open_regular, read_regular
from rszoo.errors import SourceNotFoundError
from rszoo.pipeline.file_kinds import IMAGE_SUFFIXES, MAGIC_BYTES, is_known, never_data, nfc, split_name

#: How files are counted that cannot be read as such.
BROKEN_LINK, NO_FILE = "broken links", "pipes or devices"


class Entries(NamedTuple):
    """What is in a folder: names of files and folders, sorted; `left` counts by kind what is never data."""

    files: list[str]
    folders: list[str]
    left: Counter[str]


def is_local(path: str) -> bool:
    """Whether a path is one of this machine's, and not a URL of an object store."""
    return "://" not in path


def list_root(folder: str) -> Entries:
    """Return what is in the folder of a data set.

    Raises:
        SourceNotFoundError: there is no such folder, or it cannot be read.
    """
    import tensorflow as tf

    try:
        if not (os.path.isdir(folder) if is_local(folder) else tf.io.gfile.isdir(folder)):
            raise SourceNotFoundError(f"no folder at {folder}; give the folder of the data, or `digits`")
    except tf.errors.OpError as error:
        raise SourceNotFoundError(f"cannot read {folder}: {error.message}") from error
    return list_folder(folder)


def list_folder(folder: str) -> Entries:
    """Return what is in a folder that exists.

    Raises:
        SourceNotFoundError: it cannot be read.
    """
    return _list_local(folder) if is_local(folder) else _list_remote(folder)


def _list_local(folder: str) -> Entries:
    files, folders, left = [], [], Counter[str]()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if kind := never_data(entry.name):
                    left[kind] += 1
                # A broken link to an image is a fault when it is read.
                elif entry.is_symlink() and split_name(entry.name)[1] in IMAGE_SUFFIXES and not _exists(entry):
                    files.append(entry.name)
                elif entry.is_dir():
                    folders.append(entry.name)
                elif entry.is_file():
                    files.append(entry.name)
                else:
                    left[BROKEN_LINK if entry.is_symlink() else NO_FILE] += 1
    except OSError as error:
        raise SourceNotFoundError(f"cannot read {folder}: {error.strerror or error}") from error
    return _sorted(files, folders, left)


def _exists(entry: os.DirEntry[str]) -> bool:
    return os.path.exists(entry.path)


def _list_remote(folder: str) -> Entries:
    import tensorflow as tf

    try:
        # Stores may list a folder in itself.
        listed = [name for name in tf.io.gfile.listdir(folder) if name.strip("/")]
        marked = any(name.endswith("/") for name in listed)
        files, folders, left = [], [], Counter[str]()
        for name in listed:
            plain = name.rstrip("/")
            # Where no name has a slash, folders may not be marked. A known suffix makes a file without a request.
            unsure = not marked and not is_known(split_name(plain)[1])
            if kind := never_data(plain):
                left[kind] += 1
            elif name.endswith("/") or (unsure and tf.io.gfile.isdir(posixpath.join(folder, plain))):
                folders.append(plain)
            else:
                files.append(plain)
    except tf.errors.OpError as error:
        raise SourceNotFoundError(f"cannot read {folder}: {error.message}") from error
    return _sorted(files, folders, left)


def _sorted(files: Iterable[str], folders: Iterable[str], left: Counter[str]) -> Entries:
    return Entries(sorted(set(files), key=nfc), sorted(set(folders), key=nfc), left)


def read_start(path: str) -> bytes | None:
    """Return the first bytes of a file, as many as `looks_like_image` needs; None if it cannot be read."""
    import tensorflow as tf

    try:
        if is_local(path):
            with open_regular(Path(path)) as opened:
                return opened.read(MAGIC_BYTES)
        with tf.io.gfile.GFile(os.fsencode(path), "rb") as remote:
            start: bytes = remote.read(MAGIC_BYTES)
            return start
    except (OSError, tf.errors.OpError):
        return None


def read_text(path: str) -> str | None:
    """Return a small file's text; None if there is no such file.

    Raises:
        SourceNotFoundError: it exists but cannot be read.
    """
    import tensorflow as tf

    try:
        if is_local(path):
            return read_regular(Path(path)).decode("utf-8", errors="replace")
        with tf.io.gfile.GFile(path, "rb") as opened:
            return opened.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SourceNotFoundError(f"cannot read {path}: {error.strerror or error}") from error
    except tf.errors.NotFoundError:
        return None
    except tf.errors.OpError as error:
        raise SourceNotFoundError(f"cannot read {posixpath.basename(path)}: {error.message}") from error
