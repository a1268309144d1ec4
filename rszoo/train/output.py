"""Failures to write: what a full disk makes of safetensors, TensorFlow and Python in, rszoo's error out.

Each of them reports the same full disk in its own way, at every file that a training writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from rszoo.disk.temporary import temporary_path
from rszoo.errors import OutputError, RszooError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """While the block writes to a path, turn what fails into an OutputError.

    Raises:
        OutputError: it cannot be written.
    """
    # Loaded already: the pipeline is TensorFlow's.
    from tensorflow import errors

    try:
        yield
    except RszooError:
        raise
    except (OSError, SafetensorError, errors.OpError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise OutputError(
            f"cannot write {path}: {reason}; make room for it, or mend what is wrong there. What was saved before is "
            "whole: the same command goes on from there"
        ) from error


def check_writable(folder: Path) -> None:
    """Write a file of a byte to a folder, or to what there is of its parents, and remove it.

    Raises:
        OutputError: that fails.
    """
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    probe = temporary_path(place / "probe")
    try:
        probe.write_bytes(b"0")
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror}; choose another --output") from error
    finally:
        with suppress(OSError):
            probe.unlink()
