"""A checkpoint at a URL while it is converted, from the first mirror that has the right one.

An archive is converted while it arrives, a file of another kind once it is there. What has arrived is kept under the
cache's `downloads/` until the conversion is done, so that after an interruption, of the network or of the program,
neither begins at the start.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from converters.read.archive import read_archive
from converters.read.files import OpenCheckpoint, SingleFile, open_single
from converters.read.local import check_known
from rszoo.disk.paths import downloads_folder, kept_archive
from rszoo.disk.temporary import temporary_file
from rszoo.errors import ArchiveError, CheckpointError, IntegrityError, NetworkError, RszooError
from rszoo.folder.model_folder import WeightSet
from rszoo.net.download import DamagedError, Download, check_hash
from rszoo.net.fetcher import OverlongError
from rszoo.net.urls import RemoteChangedError, SourceGoneError, Version, check_online, mirrors_of, public_url
from rszoo.refs import FILE_SUFFIXES
from rszoo.registry.entry import PretrainedEntry
from rszoo.registry.trust import Record, check_version, largest_size, remember

# No file of one network has so many: a 420 with an optimizer's state has 2.5 GB.
_MAX_SINGLE_BYTES = 8 << 30
_PIECE_BYTES = 1 << 20

log = logging.getLogger("rszoo")


class RemoteCheckpoint:
    """The archive or file at `url`; `entry` is its registered pair, or None for a URL of the user's.

    A context manager. Left in good order, it takes away what was downloaded, or with `keep` moves it to the cache's
    `archives/`; left by an error, it keeps what the next run can resume from.

    Raises:
        NetworkError: offline mode is on.
    """

    def __init__(self, url: str, entry: PretrainedEntry | None, keep: bool) -> None:
        check_online(url)
        self._url = url
        self._entry = entry
        self._keep = keep
        self._scratch = ExitStack()
        self._done: Download | None = None
        self._found: Record | None = None

    def read(self, spool_folder: Path, wanted: WeightSet | None) -> OpenCheckpoint:
        """Download it, unless that was done, and return the checkpoint in it, of an archive as `read_archive`.

        Raises:
            SourceGoneError: no mirror can be reached, or has it. NetworkError: none has it whole.
            IntegrityError: a mirror has it, but it is not the archive that is known.
            ArchiveError, CheckpointError, OutputError: as `read_archive`.
        """
        failures: list[RszooError] = []
        for url in mirrors_of(self._url):
            try:
                return self._read_from(url, spool_folder, wanted)
            except (NetworkError, ArchiveError, CheckpointError) as error:
                failures.append(error)
        kind = SourceGoneError if all(map(_is_gone, failures)) else NetworkError
        reasons = "; ".join(map(str, failures))
        if len(failures) > 1:
            raise kind(f"none of the mirrors in RSZOO_GCS_ENDPOINT can be used: {reasons}") from failures[0]
        if kind is SourceGoneError:
            raise kind(reasons) from failures[0]
        raise failures[0]

    def __enter__(self) -> RemoteCheckpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._scratch:
            if kind is None and self._done is not None:
                self._finish(self._done)

    def _finish(self, download: Download) -> None:
        """Trust the archive, now that it was converted, and put it away."""
        if self._entry is not None and self._found is not None:
            remember(self._entry, self._found)
        if self._keep:
            target = kept_archive(self._url, None if self._entry is None else self._entry.name)
            try:
                _move(download.path, target)
            except OSError as error:
                # Not an error: the model is made. Another process may have kept the same archive.
                log.warning("the archive cannot be kept as %s: %s", target, error.strerror or error)
            else:
                log.info("kept %s", target)
        download.discard()

    def _read_from(self, url: str, spool_folder: Path, wanted: WeightSet | None) -> OpenCheckpoint:
        try:
            return self._attempt(url, spool_folder, wanted)
        except IntegrityError:
            raise
        except (RemoteChangedError, DamagedError, ArchiveError) as error:
            log.warning("%s; downloading it once more from the start", error)
            wrong = error
        try:
            return self._attempt(url, spool_folder, wanted)
        except NetworkError as error:
            # What was wrong is not gone, and no other source may take its place.
            raise wrong if _is_gone(error) else error from error

    def _attempt(self, url: str, spool_folder: Path, wanted: WeightSet | None) -> OpenCheckpoint:
        single = urlsplit(url).path.lower().endswith(FILE_SUFFIXES)
        limit = (_MAX_SINGLE_BYTES if single else None) if self._entry is None else largest_size(self._entry)
        download = Download(url, self._downloads(spool_folder), lambda version: self._accept(version, url), limit)
        try:
            with download:
                place = public_url(url)
                files: OpenCheckpoint = (
                    _receive(download, place)
                    if single
                    else read_archive(download, place, spool_folder, keep=wanted, report=_ignore, with_md5=True)
                )
            self._check(files, download)
        except (RemoteChangedError, DamagedError, OverlongError, ArchiveError, CheckpointError):
            download.discard()
            raise
        self._done = download
        files.source = public_url(self._url)
        return files

    def _accept(self, version: Version, url: str) -> None:
        if self._entry is not None:
            check_version(self._entry, version, url)

    def _check(self, files: OpenCheckpoint, download: Download) -> None:
        try:
            check_hash(download.url, "MD5", download.version.md5, files.archive_md5)
            if self._entry is not None:
                self._found = check_known(self._entry, files, public_url(download.url), download.version)
        except BaseException:
            files.close()
            raise

    def _downloads(self, spool_folder: Path) -> Path:
        """Return the folder for what has arrived; where the cache cannot be written, one that does not outlive this."""
        folder = downloads_folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK | os.X_OK):
                return folder
        except OSError:
            pass
        log.warning("%s cannot be written: an interrupted download will restart from the beginning", folder)
        # Beside the spool and not in it, since that may become the result.
        return Path(self._scratch.enter_context(tempfile.TemporaryDirectory(dir=spool_folder.parent)))


def _move(path: Path, target: Path) -> None:
    """Move a file, to another disk if need be; it appears whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary_file(target) as temporary:
        shutil.move(path, temporary)
        temporary.replace(target)


def _receive(download: Download, place: str) -> SingleFile:
    """Receive a file that is no archive, and open it; `place` names it in errors.

    Raises:
        ArchiveError: it is of no kind that is read; else as `open_single`.
    """
    md5 = hashlib.md5(usedforsecurity=False)
    buffer = memoryview(bytearray(_PIECE_BYTES))
    while count := download.readinto(buffer):
        md5.update(buffer[:count])
    try:
        found = open_single(download.path)
    except RszooError as error:
        # The name of the place where it was put says nothing.
        raise type(error)(str(error).replace(str(download.path), place)) from error
    if found is None:
        raise ArchiveError(f"{place} is no file of Keras 2's and no state dict of PyTorch's")
    found.archive_md5 = md5.digest()
    return found


def _is_gone(error: RszooError) -> bool:
    """Whether an error says that nothing is there, and not that what is there is wrong."""
    wrong = (DamagedError, RemoteChangedError, OverlongError)
    return isinstance(error, NetworkError) and not isinstance(error, wrong)


def _ignore(_: int) -> None:
    """Progress is shown of what arrives, not of what is read."""
