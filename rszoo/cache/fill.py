"""The cache: how a registered name becomes a model folder on this machine, once, whoever asks at the same time.

`models/NAME-WEIGHTS-HASH/` are model folders, each complete or absent, named by the SHA-256 of their weights file;
`lock/` has the hashes of archives (`rszoo.registry.trust`); `downloads/` what has arrived of unfinished ones;
`archives/` those that were to be kept; `busy/` the files by which processes wait for each other.

A folder is found by its name alone: no lock, no request, nothing written. Nothing depends on the locks either, which
only spare the work of doing a thing twice: a result is built under a name of its own, and whoever is first to rename it
has made the folder.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from rszoo.disk import temporary
from rszoo.disk.paths import busy_folder, cache_folder, downloads_folder, kept_archive, models_folder
from rszoo.disk.temporary import temporary_folder
from rszoo.errors import (
    FILE_SYSTEM_ERRORS,
    ConfigError,
    NetworkError,
    NewerFormatError,
    OutputError,
    SourceNotFoundError,
    WeightsError,
)
from rszoo.folder.model_folder import ModelFolder, WeightSet, looks_like_folder, read_folder
from rszoo.hub.address import parse_address
from rszoo.net.urls import is_hub_name, offline_variable
from rszoo.registry.entry import PretrainedEntry
from rszoo.registry.manifest import get_entry

#: How much of the weights file's SHA-256 a folder's name has.
HASH_DIGITS = 16
_POLL_S = 0.2
# A process that holds the lock for this long and downloads nothing hangs; the others do without it.
_HUNG_S = 600


def find_folder(model: str | os.PathLike[str]) -> ModelFolder:
    """Return the model folder of a path or of a name: a registered one's or one's on the Hub, fetched now if need be.

    Of a registered name: the cached one, that of the repository the manifest pins, or the published archive converted.

    Raises:
        UnknownModelError, SourceNotFoundError: there is no such model or folder.
        NetworkError: its archive must be downloaded and cannot be.
        HubError: the Hub does not have it, or does not give it.
        IntegrityError: what was downloaded is not the archive that is known.
        OutputError: the cache cannot be written.
    """
    if not isinstance(model, str):
        return read_folder(model)
    if is_hub_name(model):
        from rszoo.hub.pull import find_model

        return find_model(parse_address(model)).fetch_weights()
    if looks_like_folder(model):
        return read_folder(model)
    entry = get_entry(model)
    if (found := find_cached(entry)) or entry.converted.hub is None:
        return found or fill_cache(entry)
    from rszoo.hub.pull import find_pinned

    pinned = find_pinned(entry)
    return fill_cache(entry) if pinned is None else pinned.fetch_weights(entry.converted.sha256)


def find_cached(entry: PretrainedEntry, weights: WeightSet = "ema") -> ModelFolder | None:
    """Return the model folder in the cache, or None. Of several, the one the manifest names, or else the newest."""
    folders = cached_folders(entry.name, weights)
    pinned = (entry.converted.sha256 or "")[:HASH_DIGITS] if weights == "ema" else ""
    folders.sort(key=lambda folder: (bool(pinned) and folder.name.endswith(pinned), _changed_at(folder)))
    return next(filter(None, map(open_cached, reversed(folders))), None)


def open_cached(path: Path) -> ModelFolder | None:
    """Return a model folder of the cache, or None if it is gone, lacks a file, or is of a version that is to come."""
    try:
        folder = read_folder(path)
        return folder if folder.weights_path else None
    except (SourceNotFoundError, ConfigError, NewerFormatError, WeightsError):
        return None


def cached_folders(name: str | None = None, weights: WeightSet | None = None) -> list[Path]:
    """Return the model folders in the cache, of one model and set or of all."""
    wanted = ["[a-z0-9-]+" if name is None else re.escape(name), "(ema|raw)" if weights is None else weights]
    pattern = re.compile(rf"{wanted[0]}-{wanted[1]}-[0-9a-f]{{{HASH_DIGITS}}}")
    try:
        return sorted(path for path in models_folder().iterdir() if pattern.fullmatch(path.name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise OutputError(
            f"{models_folder()} cannot be read ({error.strerror}); set RSZOO_CACHE to a folder of yours"
        ) from error


def parse_folder_name(folder: Path) -> tuple[str, WeightSet]:
    """Return which model and set a folder in the cache has."""
    name, weights, _ = folder.name.rsplit("-", 2)
    return name, "raw" if weights == "raw" else "ema"


def fill_cache(entry: PretrainedEntry, weights: WeightSet = "ema", *, keep_archive: bool = False) -> ModelFolder:
    """Download, check and convert a registered model into the cache, unless another process does it meanwhile.

    Raises as `find_folder` does.
    """
    local = entry.source.path or kept_archive(str(entry.source.url), entry.name)
    if not local.is_file() and (variable := offline_variable()):
        raise NetworkError(
            f"{entry.name} is not in the cache {cache_folder()}, and {variable} forbids the network; on a machine that "
            f"has one, run `rszoo prefetch {entry.name} --output FOLDER`, copy FOLDER here and set RSZOO_CACHE to it"
        )
    try:
        models_folder().mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(entry, lambda: find_cached(entry, weights) is not None):
            return find_cached(entry, weights) or _convert(entry, weights, keep_archive)
    except OSError as error:
        # NetworkError is one, too.
        if not isinstance(error, OutputError) and error.errno not in (*FILE_SYSTEM_ERRORS, errno.ENOENT):
            raise
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise OutputError(
            f"{entry.name} is not in the cache, and {cache_folder()} cannot be written: {cause.strerror or error}; set "
            "RSZOO_CACHE to a folder of yours, on a disk with room"
        ) from error


def _convert(entry: PretrainedEntry, weights: WeightSet, keep_archive: bool) -> ModelFolder:
    from converters.convert import convert_into
    from converters.read.source import locate
    from rszoo.disk.staging import sweep, sync_folder, write_through

    sweep(models_folder())
    with temporary_folder(models_folder() / f"{entry.name}-{weights}") as scratch:
        # A download is kept until the result is safe on the disk, and gone when it has its name: behind a model that is
        # found, nobody would clear it away.
        with locate(entry.name, keep_archive=keep_archive) as open_files:
            report = convert_into(scratch, open_files, entry, weights)
            write_through(scratch)
        target = models_folder() / f"{entry.name}-{weights}-{report['result']['sha256'][:HASH_DIGITS]}"
        _put_in_place(scratch, target)
        sync_folder(models_folder())
        return read_folder(target)


def _put_in_place(scratch: Path, target: Path) -> None:
    """Rename a folder; one of that name that can be opened is the work of another process, and as good."""
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
    """Put a model of the repository and commit that the manifest pins into this cache; None if it cannot be had.

    Raises:
        OSError: this cache cannot be written.
    """
    if entry.converted.hub is None or entry.converted.sha256 is None:
        return None
    from rszoo.hub.pull import copy_model, find_pinned

    model, sha256 = find_pinned(entry), entry.converted.sha256
    if model is None:
        return None
    return _copy(f"{entry.name}-ema-{sha256[:HASH_DIGITS]}", lambda scratch: copy_model(model, scratch, sha256))


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
    """Hold a lock, or go on without it: where there is none, and as soon as another process has done the work."""
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
        # No locks on this file system, or the lock of another user.
        pass
    try:
        yield
    finally:
        with suppress(OSError):
            lock.release()


def _progress_of(entry: PretrainedEntry) -> float:
    """Return when a block of a model's download last arrived, by the clock of whoever wrote it."""
    archive = PurePosixPath(entry.source.url or "").name
    return max(map(_changed_at, downloads_folder().glob(f"{archive}-*/journal")), default=0)


def _changed_at(path: Path) -> float:
    """Return when a file or folder was changed; long ago if it is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0


def remove_folder(folder: Path) -> None:
    """Take a model folder out of the cache: first its name, so that nobody opens half of it, then its files.

    Raises:
        OutputError: it cannot be removed.
    """
    try:
        temporary.remove_folder(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"cannot remove {folder}: {error.strerror}; it may belong to another user") from error
