"""Results in folders that cannot be renamed, as mounts: files are moved in, by a list that survives a kill.

A folder is replaced in one step by a renaming. Where that is impossible the new files are complete and on the disk
before the first is moved, and a list says what belongs to the former result and what to the new one. Whoever finds the
list after a kill ends what it began, unless another result was written since.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import time
from pathlib import Path

from rszoo.disk.regular import read_regular_text
from rszoo.disk.temporary import intended_path, remove, write_whole

#: Temporary folders in a folder are named as for this file in it.
PLACE = "result"
# What a file system puts into its topmost folder.
_OF_THE_SYSTEM = "lost+found"
_LIST = "moves.json"
_NEW, _OLD = "new", "old"
_STUCK_S = 600
# A file by its inode and time of change, which a renaming keeps.
_Marks = dict[str, list[int]]


def is_fixed(folder: Path) -> bool:
    """Whether an existing folder, whose links are resolved, cannot be renamed: a mount, or in a closed folder."""
    above, mounts = folder.parent, _mounts()
    if os.path.ismount(folder) or os.fsencode(folder) in mounts or (folder / _OF_THE_SYSTEM).exists():
        return True
    if not os.access(above, os.W_OK | os.X_OK):
        return True
    if any(folder.iterdir()) and _file_system(folder, mounts) == b"overlay":
        # As in a container: what comes from its image is not renamed. An empty folder is replaced all the same.
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
    old = {name: _mark(folder / name) for name in _ordered(contents(folder), last)[::-1]}
    new = {name: _mark(staging / _NEW / name) for name in _ordered({*os.listdir(staging / _NEW)}, last)}
    write_whole(staging / _LIST, json.dumps({"old": old, "new": new}))
    (staging / _OLD).mkdir()
    try:
        _move(staging, folder, old, new)
    except BaseException:
        # If that fails too the list stays, and with it the files.
        _move_back(staging, folder, old, new)
        (staging / _LIST).unlink()
        raise
    # In this order: without a list, what is in `old` would be taken for a folder that was moved aside.
    remove(staging / _OLD)
    (staging / _LIST).unlink()


def was_begun(staging: Path) -> bool:
    """Whether files in a temporary folder were being moved to the folder that it is in."""
    return os.path.lexists(staging / _LIST)


def unfinished(folder: Path) -> list[Path]:
    """Return the temporary folders in a folder whose files are being moved to it, or were when their process died."""
    return [child for child in sorted(folder.iterdir()) if intended_path(child) != child and was_begun(child)]


def is_stuck(staging: Path) -> bool:
    """Whether moving, which takes milliseconds, began so long ago that it will not end, wherever its process is."""
    return time.time() - (staging / _LIST).lstat().st_mtime > _STUCK_S


def complete(staging: Path) -> None:
    """End what a killed process began, if it was this user's and no other result was written since.

    Raises:
        OSError: a file cannot be moved, or the list is none of rszoo's; what is left is still in the temporary folder.
    """
    old, new = _read_list(staging)
    folder = staging.parent
    for name in contents(folder):
        if _mark(folder / name) not in (old.get(name), new.get(name)):
            return
    (staging / _OLD).mkdir(exist_ok=True)
    _move(staging, folder, old, new)


def _read_list(staging: Path) -> tuple[_Marks, _Marks]:
    """Return the list of a temporary folder. Another user's could name any file, and so could one with paths in it."""
    there = os.lstat(staging)
    if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.geteuid() or intended_path(staging).name != PLACE:
        raise OSError(errno.EPERM, "not a temporary folder of this user", str(staging))
    try:
        lists = json.loads(read_regular_text(staging / _LIST))
        old, new = ({str(name): list(mark) for name, mark in lists[key].items()} for key in ("old", "new"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OSError(errno.EINVAL, f"not a list of rszoo's ({error})", str(staging)) from error
    if any(name != os.path.basename(name) or name in ("", ".", "..") for name in (*old, *new)):
        raise OSError(errno.EINVAL, "not a list of rszoo's: it has paths", str(staging))
    return old, new


def _move(staging: Path, folder: Path, old: _Marks, new: _Marks) -> None:
    """Move the files that are not moved yet, so that it may begin anew after a kill."""
    for name in old:
        arrived = name in new and not (staging / _NEW / name).exists()
        if not arrived and os.path.lexists(folder / name):
            (folder / name).rename(staging / _OLD / name)
    for name in new:
        if (staging / _NEW / name).exists():
            (staging / _NEW / name).rename(folder / name)


def _move_back(staging: Path, folder: Path, old: _Marks, new: _Marks) -> None:
    for name in reversed(new):
        if not (staging / _NEW / name).exists():
            (folder / name).rename(staging / _NEW / name)
    for name in reversed(old):
        if (staging / _OLD / name).exists():
            (staging / _OLD / name).rename(folder / name)


def _mark(path: Path) -> list[int]:
    found = path.lstat()
    return [found.st_ino, found.st_mtime_ns]


def _ordered(names: set[str], last: str) -> list[str]:
    return sorted(names, key=lambda name: (name == last, name))


def _mounts() -> dict[bytes, bytes]:
    """Return the type of the file system by where it is mounted.

    `os.path.ismount` knows no mount that is a folder of the same file system.
    """
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return {}
    mounts = {}
    for line in lines:
        before, _, after = line.partition(b" - ")
        # Spaces and the like are written as a backslash and three octal digits.
        place = re.sub(rb"\\(\d{3})", lambda code: bytes([int(code[1], 8)]), before.split()[4])
        mounts[place] = after.split()[0]
    return mounts


def _file_system(folder: Path, mounts: dict[bytes, bytes]) -> bytes | None:
    places = map(os.fsencode, (folder, *folder.parents))
    return next((mounts[place] for place in places if place in mounts), None)
