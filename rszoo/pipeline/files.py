"""Local files and folders and others that TensorFlow can read (`gs://`), with rszoo's errors."""

from __future__ import annotations

import posixpath

from rszoo.errors import SourceNotFoundError


def list_folder(folder: str) -> list[str]:
    """Return the sorted names in a folder, except those that start with a dot.

    Raises:
        SourceNotFoundError: there is no such folder, or it cannot be read.
    """
    import tensorflow as tf

    try:
        if not tf.io.gfile.isdir(folder):
            raise SourceNotFoundError(f"no folder at {folder}; give the folder of the data, or `digits`")
        # Object stores list folders with a trailing slash, and may list a folder in itself.
        names = {name.rstrip("/") for name in tf.io.gfile.listdir(folder)}
    except tf.errors.OpError as error:
        raise SourceNotFoundError(f"cannot read {folder}: {error.message}") from error
    return sorted(name for name in names if name and not name.startswith("."))


def is_folder(path: str) -> bool:
    """Whether the folder exists."""
    import tensorflow as tf

    return tf.io.gfile.isdir(path)


def read_text(path: str) -> str | None:
    """Return a small file's text; None if there is no such file.

    Raises:
        SourceNotFoundError: it exists but cannot be read.
    """
    import tensorflow as tf

    try:
        with tf.io.gfile.GFile(path, "rb") as opened:
            return opened.read().decode("utf-8", errors="replace")
    except tf.errors.NotFoundError:
        return None
    except tf.errors.OpError as error:
        raise SourceNotFoundError(f"cannot read {posixpath.basename(path)}: {error.message}") from error
