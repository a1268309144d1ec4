"""Results that appear whole or not at all: built in a temporary folder beside their place, then renamed into it.

A place that cannot be renamed gets its files from a temporary folder inside it, see `rszoo.disk.inside`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rszoo.disk.inside import PLACE, complete, contents, is_fixed, is_stuck, put_inside, unfinished, was_begun
from rszoo.disk.temporary import abandoned, intended_path, remove, temporary_folder
from rszoo.errors import FILE_SYSTEM_ERRORS, OutputError


@dataclass(frozen=True)
class ResultKind:
    """A kind of folder that a command writes.

    `command`: which does, for error texts. `is_one`: whether a folder, which has just these names, is a former result
    that `--overwrite` may replace. `last`: the file without which it is none.
    """

    command: str
    is_one: Callable[[Path, set[str]], bool]
    last: str = ""


def check_place(output: Path, kind: ResultKind, *, overwrite: bool) -> None:
    """Raise as `staged_folder` does, before time is spent on what will be written there."""
    with suppress(_NotYetError), staged_folder(output, kind, overwrite=overwrite):
        raise _NotYetError


class _NotYetError(Exception):
    """Ends a block that writes nothing."""


@contextmanager
def staged_folder(output: Path, kind: ResultKind, *, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder that becomes `output` when the block ends well, and vanishes when it does not.

    An existing `output` is replaced only if `overwrite` is set and it is a former result of the same kind; it stays in
    place until the new one is complete. A link to a folder stays a link.

    Raises:
        OutputError: `output` is in the way, or cannot be written.
    """
    given = output
    # A link that leads nowhere is in the way.
    output = output.resolve() if output.is_dir() else output.absolute()
    if output.is_dir():
        sweep(output)
    _check_free(output, kind, overwrite, given)
    # What a failure must remove: folders above the output that were not there before.
    created = [folder for folder in output.parents if not folder.exists()]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        inside = output.is_dir() and is_fixed(output)
        sweep(output.parent)
        with temporary_folder(output / PLACE if inside else output, was_begun) as staging:
            content = staging / "new"
            content.mkdir()
            yield content
            _check_free(output, kind, overwrite, given)
            write_through(content)
            if inside:
                _put_inside(staging, output, kind.last)
            else:
                _put_in_place(content, output, staging / "old")
            sync_folder(output if inside else output.parent)
        created = []
    except OSError as error:
        if isinstance(error, OutputError) or error.errno not in FILE_SYSTEM_ERRORS:
            raise
        raise OutputError(f"cannot write {given}: {os.strerror(error.errno)}; choose another --output") from error
    finally:
        for folder in created:
            with suppress(OSError):
                folder.rmdir()


def sweep(folder: Path) -> None:
    """Remove what killed processes left in a folder; restore what one of them had moved aside."""
    stuck: list[Path] = []
    with suppress(OSError):
        stuck += [staging for staging in unfinished(folder) if is_stuck(staging)]
    for staging in dict.fromkeys([*abandoned(folder), *stuck]):
        output, old = intended_path(staging), staging / "old"
        with suppress(OSError):
            if was_begun(staging):
                complete(staging)
            elif old.exists() and not output.exists():
                old.rename(output)
            remove(staging)


def _put_inside(staging: Path, output: Path, last: str) -> None:
    try:
        put_inside(staging, output, last)
    except FileNotFoundError as error:
        raise OutputError(f"another process writes to {output}, too; run the command again") from error


def _put_in_place(content: Path, output: Path, old: Path) -> None:
    """Rename `content` to `output`; a former one goes to `old`, and comes back if that fails or is interrupted."""
    try:
        if output.exists() and any(output.iterdir()):
            output.rename(old)
        # An empty folder gives way to it.
        content.rename(output)
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


def _check_free(output: Path, kind: ResultKind, overwrite: bool, given: Path) -> None:
    if not os.path.lexists(output):
        return
    names = contents(output) if output.is_dir() else None
    if names == set():
        return
    if names is not None and not kind.is_one(output, names) and unfinished(output):
        raise OutputError(f"{given} is being written by another process, or one was killed; try again in 10 minutes")
    if names is None or not kind.is_one(output, names):
        raise OutputError(f"{given} exists and is not a result of {kind.command}; choose another --output")
    if not overwrite:
        raise OutputError(
            f"{given} exists; add --overwrite (in Python overwrite=True) to replace it, or choose another --output"
        )
