"""Results in folders that cannot be renamed, as mounts: files are moved in, by a list that survives a kill.

A folder is replaced in one step by a renaming. Where that is impossible the new files are complete and on the disk
before the first is moved, and a list says what belongs to the former result and what to the new one. Whoever finds the
list after a kill ends what it began.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from rszoo.disk.regular import read_regular_text
from rszoo.disk.temporary import intended_path, write_whole

# What a file system puts into its topmost folder.
_OF_THE_SYSTEM = "lost+found"
_LIST = "moves.json"
_NEW, _OLD = "new", "old"


def is_fixed(folder: Path) -> bool:
    """Whether an existing folder, whose links are resolved, cannot be renamed: a mount, or in a closed folder."""
    above = folder.parent
    if os.path.ismount(folder) or os.fsencode(folder) in _mount_points() or (folder / _OF_THE_SYSTEM).exists():
        return True
    if not os.access(above, os.W_OK | os.X_OK):
        return True
    # There, as in /tmp, a folder is renamed by its owner only.
    there = above.stat()
    return bool(there.st_mode & stat.S_ISVTX) and os.geteuid() not in (0, there.st_uid, folder.stat().st_uid)


def contents(folder: Path) -> set[str]:
    """Return the names in a folder but those of the file system and of results that are being written."""
    names = (child.name for child in folder.iterdir() if intended_path(child) == child)
    return {name for name in names if name != _OF_THE_SYSTEM}


def put_inside(staging: Path, folder: Path, last: str) -> None:
    """Move the files in `staging/new` into `folder`, and those of the former result out.

    `last`: the file without which a folder is no result. It is the first that goes and the last that comes.
    """
    lists = {"old": _ordered(contents(folder), last)[::-1], "new": _ordered({*os.listdir(staging / _NEW)}, last)}
    write_whole(staging / _LIST, json.dumps(lists))
    (staging / _OLD).mkdir()
    try:
        _move(staging, folder, **lists)
    except BaseException:
        _move_back(staging, folder, **lists)
        (staging / _LIST).unlink()
        raise


def was_begun(staging: Path) -> bool:
    """Whether a killed process had begun to move the files in its temporary folder to where that is."""
    return (staging / _LIST).exists()


def complete(staging: Path) -> None:
    """End it. Raises OSError: a file cannot be moved; what is left is still in the temporary folder."""
    lists = json.loads(read_regular_text(staging / _LIST))
    (staging / _OLD).mkdir(exist_ok=True)
    _move(staging, staging.parent, lists["old"], lists["new"])


def _move(staging: Path, folder: Path, old: Sequence[str], new: Sequence[str]) -> None:
    """Move the files that are not moved yet, so that it may begin anew after a kill."""
    for name in old:
        arrived = name in new and not (staging / _NEW / name).exists()
        if not arrived and os.path.lexists(folder / name):
            (folder / name).rename(staging / _OLD / name)
    for name in new:
        if (staging / _NEW / name).exists():
            (staging / _NEW / name).rename(folder / name)


def _move_back(staging: Path, folder: Path, old: Sequence[str], new: Sequence[str]) -> None:
    for name in reversed(new):
        if not (staging / _NEW / name).exists():
            (folder / name).rename(staging / _NEW / name)
    for name in reversed(old):
        if (staging / _OLD / name).exists():
            (staging / _OLD / name).rename(folder / name)


def _ordered(names: set[str], last: str) -> list[str]:
    return sorted(names, key=lambda name: (name == last, name))


def _mount_points() -> set[bytes]:
    """Return where file systems are mounted. `os.path.ismount` knows none that is a folder of the same file system."""
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return set()
    # Spaces and the like are written as a backslash and three octal digits.
    return {re.sub(rb"\\(\d{3})", lambda code: bytes([int(code[1], 8)]), line.split()[4]) for line in lines}
