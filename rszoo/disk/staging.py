"""Results that appear whole or not at all: built in a temporary folder beside their place, then renamed into it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rszoo.disk.temporary import abandoned, intended_path, remove, temporary_folder
from rszoo.errors import FILE_SYSTEM_ERRORS, OutputError


@contextmanager
def staged_folder(output: Path, *, overwrite: bool, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield an empty folder that becomes `output` when the block ends well, and vanishes when it does not.

    An existing `output` is replaced only if `overwrite` is set and `is_ours` knows it for a former result; it stays in
    place until the new one is complete.

    Raises:
        OutputError: `output` is in the way, or cannot be written.
    """
    _check_free(output, overwrite, is_ours)
    # What a failure must remove: folders above the output that were not there before.
    created = [folder for folder in output.absolute().parents if not folder.exists()]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        sweep(output.parent)
        with temporary_folder(output) as staging:
            content = staging / "new"
            content.mkdir()
            yield content
            _check_free(output, overwrite, is_ours)
            write_through(content)
            _put_in_place(content, output, staging / "old")
        created = []
    except OSError as error:
        if isinstance(error, OutputError) or error.errno not in FILE_SYSTEM_ERRORS:
            raise
        raise OutputError(f"cannot write {output}: {os.strerror(error.errno)}; choose another --output") from error
    finally:
        for folder in created:
            with suppress(OSError):
                folder.rmdir()


def sweep(folder: Path) -> None:
    """Remove what killed processes left in a folder; restore what one of them had moved aside."""
    for staging in abandoned(folder):
        output, old = intended_path(staging), staging / "old"
        with suppress(OSError):
            if old.exists() and not output.exists():
                old.rename(output)
        remove(staging)


def _put_in_place(content: Path, output: Path, old: Path) -> None:
    """Rename `content` to `output`; a former one goes to `old`, and comes back if that fails or is interrupted."""
    try:
        if output.exists():
            output.rename(old)
        content.rename(output)
        sync_folder(output.parent)
    except BaseException:
        if old.exists() and not output.exists():
            old.rename(output)
        raise


def write_through(folder: Path) -> None:
    """Have the system write a folder's files to the disk, so that a power cut after the renaming finds them."""
    for path in folder.iterdir():
        sync_file(path)
    sync_folder(folder)


def sync_file(path: Path) -> None:
    """Have the system write a file's content."""
    with path.open("r+b") as written:
        os.fsync(written.fileno())


def sync_folder(folder: Path) -> None:
    """Have the system write a folder's list of names. Not every system can open a folder."""
    with suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _check_free(output: Path, overwrite: bool, is_ours: Callable[[Path], bool]) -> None:
    if not os.path.lexists(output):
        return
    if output.is_dir() and not output.is_symlink() and not any(output.iterdir()):
        return
    if output.is_symlink() or not output.is_dir() or not is_ours(output):
        raise OutputError(f"{output} exists and is not a result of rszoo-convert; choose another --output")
    if not overwrite:
        raise OutputError(
            f"{output} exists; add --overwrite (in Python overwrite=True) to replace it, or choose another --output"
        )
