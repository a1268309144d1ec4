"""Fills the cache: a registered model becomes a model folder, once, even if several processes ask at the same time.

`models/NAME-WEIGHTS-HASH/` are model folders, each complete or absent, named by the SHA-256 of their weights file;
`lock/` has the hashes of archives (`rszoo.registry.trust`); `downloads/` what has arrived of unfinished ones;
`archives/` those that were to be kept; `busy/` the files by which processes wait for each other.

Nothing depends on the locks, which only avoid double work: a result is built under a temporary name, and the first
process to rename its own has made the folder.
"""

from __future__ import annotations

import errno
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from rszoo.cache.cached import HASH_DIGITS, changed_at, find_cached, open_cached, remove_folder
from rszoo.disk.paths import busy_folder, cache_folder, downloads_folder, kept_archive, models_folder
from rszoo.disk.temporary import temporary_folder
from rszoo.errors import FILE_SYSTEM_ERRORS, NetworkError, OutputError, WeightsError
from rszoo.folder.model_folder import ModelFolder, WeightSet, read_folder
from rszoo.hub.pull import copy_model, find_pinned
from rszoo.net.urls import offline_variable
from rszoo.registry.entry import PretrainedEntry
from rszoo.weights.auditing import audit_folder

log = logging.getLogger("rszoo")

_POLL_S = 0.2
# A process that holds the lock for this long and downloads nothing hangs; the others continue without it.
_HUNG_S = 600


def fill_cache(
    entry: PretrainedEntry, weights: WeightSet = "ema", *, keep_archive: bool = False, allow_weak_source: bool = False
) -> ModelFolder:
    """Download, check and convert a registered model into the cache, unless another process does it first.

    Where its archive is gone, the copies of other publishers are tried; `allow_weak_source`: also one that no hash
    proves.

    Raises as `rszoo.cache.find.find_folder` does.
    """
    local = [place.source.path or kept_archive(str(place.source.url), place.name) for place in entry.places]
    if not any(path.is_file() for path in local) and (variable := offline_variable()):
        raise NetworkError(
            f"{entry.name} is not in the cache {cache_folder()}, and {variable} forbids the network; on a machine that "
            f"has one, run `rszoo prefetch {entry.name} --output FOLDER`, copy FOLDER here and set RSZOO_CACHE to it"
        )
    try:
        models_folder().mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(entry, lambda: find_cached(entry, weights) is not None):
            return find_cached(entry, weights) or _convert(entry, weights, keep_archive, allow_weak_source)
    except OSError as error:
        # NetworkError is an OSError.
        if not isinstance(error, OutputError) and error.errno not in (*FILE_SYSTEM_ERRORS, errno.ENOENT):
            raise
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise OutputError(
            f"{entry.name} is not in the cache, and {cache_folder()} cannot be written: {cause.strerror or error}; set "
            "RSZOO_CACHE to a folder of yours, on a disk with room"
        ) from error


def _convert(entry: PretrainedEntry, weights: WeightSet, keep_archive: bool, allow_weak: bool) -> ModelFolder:
    from converters.convert import convert_into
    from converters.read.source import locate
    from rszoo.disk.staging import sweep, sync_folder, write_through

    sweep(models_folder())
    with temporary_folder(models_folder() / f"{entry.name}-{weights}") as scratch:
        # A download is kept until the result is safe on the disk, and deleted before the result gets its name: nobody
        # would delete it once the model is found.
        with locate(entry, keep_archive=keep_archive, allow_weak=allow_weak) as open_files:
            report = convert_into(scratch, open_files, [entry], weights)
            write_through(scratch)
        target = models_folder() / f"{entry.name}-{weights}-{report['result']['sha256'][:HASH_DIGITS]}"
        _put_in_place(scratch, target)
        sync_folder(models_folder())
        return read_folder(target)


def _put_in_place(scratch: Path, target: Path) -> None:
    """Rename a folder; one of that name that can be opened was made by another process, and is kept."""
    if target.is_dir() and open_cached(target) is None:
        remove_folder(target)
    try:
        scratch.rename(target)
    except OSError:
        # A folder that is not empty is never replaced.
        if not target.is_dir():
            raise


def copy_cached(folder: ModelFolder) -> ModelFolder:
    """Copy a model folder of another cache into this one.

    Raises:
        OSError: this cache cannot be written.
    """
    return _copy(folder.path.name, lambda scratch: shutil.copytree(folder.path, scratch, dirs_exist_ok=True))


def copy_pinned(entry: PretrainedEntry) -> ModelFolder | None:
    """Copy a model from the repository and commit that the manifest pins into this cache; None if there is none.

    None also if it is not what its account says; then use the published archive.

    Raises:
        OSError: this cache cannot be written.
    """
    if entry.converted.hub is None or entry.converted.sha256 is None:
        return None
    model, sha256 = find_pinned(entry), entry.converted.sha256
    if model is None:
        return None

    def fill(scratch: Path) -> None:
        copy_model(model, scratch, sha256)
        audit_folder(read_folder(scratch))

    try:
        return _copy(f"{entry.name}-ema-{sha256[:HASH_DIGITS]}", fill)
    except WeightsError as error:
        log.warning("%s: cannot use %s (%s); using the published archive", entry.name, model.address, error)
        return None


def _copy(name: str, fill: Callable[[Path], object]) -> ModelFolder:
    from rszoo.disk.staging import write_through

    target = models_folder() / name
    with temporary_folder(target) as scratch:
        fill(scratch)
        write_through(scratch)
        _put_in_place(scratch, target)
    return read_folder(target)


@contextmanager
def _one_at_a_time(entry: PretrainedEntry, done: Callable[[], bool]) -> Iterator[None]:
    """Hold a lock; continue without it where there are no locks, and once another process has done the work."""
    # Imported here: a model that is cached needs no lock.
    from filelock import FileLock, Timeout

    path = busy_folder() / entry.name
    lock = FileLock(path, fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        seen, seen_at = _progress_of(entry), time.monotonic()
        while not done() and time.monotonic() - seen_at < _HUNG_S:
            with suppress(Timeout):
                lock.acquire(timeout=_POLL_S)
                break
            if (now := _progress_of(entry)) != seen:
                seen, seen_at = now, time.monotonic()
    except (OSError, NotImplementedError):
        # OSError: the lock of another user. NotImplementedError: filelock's, for a file system without locks.
        pass
    try:
        yield
    finally:
        with suppress(OSError):
            lock.release()


def _progress_of(entry: PretrainedEntry) -> float:
    """Return when a block of a model's download last arrived, by the clock of the machine that wrote it."""
    names = [PurePosixPath(place.source.url or "").name for place in entry.places]
    journals = [path for name in names for path in downloads_folder().glob(f"{name}-*/journal")]
    return max(map(changed_at, journals), default=0)
