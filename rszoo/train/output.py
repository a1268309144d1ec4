"""Write errors of safetensors, TensorFlow and Python, which each report a full disk differently, as rszoo's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from rszoo.disk.temporary import temporary_path
from rszoo.errors import OutputError, RszooError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of a block that writes to a path into an OutputError.

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
            f"cannot write {path}: {reason}; free some space or fix the cause. What was saved before is "
            "complete: the same command resumes from there"
        ) from error


def check_writable(folder: Path) -> None:
    """Write and delete a one-byte file in a folder, or in its nearest parent that exists.

    Raises:
        OutputError: the folder is not writable.
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
