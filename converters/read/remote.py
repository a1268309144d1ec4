"""An archive at a URL while it is converted, from the first mirror that has the right one.

It is converted while it arrives. What has arrived is kept under the cache's `downloads/` until the conversion is done,
so that after an interruption, of the network or of the program, neither begins at the start.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from converters.read.archive import read_archive
from converters.read.files import CheckpointFiles
from rszoo.disk.paths import downloads_folder, kept_archive
from rszoo.disk.temporary import temporary_file
from rszoo.errors import ArchiveError, CheckpointError, IntegrityError, NetworkError, RszooError
from rszoo.folder.model_folder import WeightSet
from rszoo.net.download import DamagedError, Download, check_hash
from rszoo.net.fetcher import OverlongError
from rszoo.net.urls import RemoteChangedError, Version, check_online, mirrors_of, public_url
from rszoo.registry.entry import PretrainedEntry
from rszoo.registry.trust import Record, check_archive, check_version, largest_size, new_record, remember

log = logging.getLogger("rszoo")


class RemoteArchive:
    """The archive at `url`; `entry` is its registered pair, or None for a URL of the user's.

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

    def read(self, spool_folder: Path, wanted: WeightSet | None) -> CheckpointFiles:
        """Download the archive, unless that was done, and return the checkpoint in it, as `read_archive`.

        Raises:
            NetworkError: no mirror can be reached, or has it whole.
            IntegrityError: a mirror has it, but it is not the archive that is known.
            ArchiveError, CheckpointError, OutputError: as `read_archive`.
        """
        failures: list[RszooError] = []
        for url in mirrors_of(self._url):
            try:
                return self._read_from(url, spool_folder, wanted)
            except (NetworkError, ArchiveError, CheckpointError) as error:
                failures.append(error)
        if len(failures) == 1:
            raise failures[0]
        reasons = "; ".join(map(str, failures))
        raise NetworkError(f"none of the mirrors in RSZOO_GCS_ENDPOINT can be used: {reasons}") from failures[0]

    def __enter__(self) -> RemoteArchive:
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

    def _read_from(self, url: str, spool_folder: Path, wanted: WeightSet | None) -> CheckpointFiles:
        try:
            return self._attempt(url, spool_folder, wanted)
        except IntegrityError:
            raise
        except (RemoteChangedError, DamagedError, ArchiveError) as error:
            log.warning("%s; downloading it once more from the start", error)
        return self._attempt(url, spool_folder, wanted)

    def _attempt(self, url: str, spool_folder: Path, wanted: WeightSet | None) -> CheckpointFiles:
        limit = None if self._entry is None else largest_size(self._entry)
        download = Download(url, self._downloads(spool_folder), lambda version: self._accept(version, url), limit)
        try:
            with download:
                files = read_archive(
                    download, public_url(url), spool_folder, keep=wanted, report=_ignore, with_md5=True
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

    def _check(self, files: CheckpointFiles, download: Download) -> None:
        version = download.version
        try:
            check_hash(download.url, "MD5", version.md5, files.archive_md5)
            if self._entry is not None:
                received = replace(version, size=files.archive_size)
                self._found = new_record(self._entry, public_url(download.url), received, files.archive_sha256)
                check_archive(self._entry, self._found)
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


def _ignore(_: int) -> None:
    """Progress is shown of what arrives, not of what is read."""
