"""A registered pair wherever it can be had: its archive, or a copy that others published of the same weights.

The next source is taken when one is gone: not there, not allowed, no route to it. Never when what came is not what the
hashes say.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from converters.formats import get_format
from converters.read.files import OpenCheckpoint
from converters.read.local import open_known
from rszoo.disk.paths import kept_archive
from rszoo.errors import ArchiveError, CheckpointError, NetworkError
from rszoo.extras import check_installed
from rszoo.folder.model_folder import WeightSet
from rszoo.net.urls import SourceGoneError, offline_variable
from rszoo.registry.entry import PretrainedEntry

if TYPE_CHECKING:
    from converters.read.remote import RemoteCheckpoint

log = logging.getLogger("rszoo")


class PublishedPair:
    """The sources of a registered pair, tried in order of trust. A context manager, as `RemoteCheckpoint`.

    `allow_weak`: also take a copy that no hash proves.
    """

    def __init__(self, entry: PretrainedEntry, *, keep_archive: bool = False, allow_weak: bool = False) -> None:
        self._entry, self._keep, self._allow_weak = entry, keep_archive, allow_weak
        self._stack = ExitStack()
        self._chosen: RemoteCheckpoint | None = None

    def read(self, spool_folder: Path, wanted: WeightSet | None) -> OpenCheckpoint:
        """Return the checkpoint of the first source that has it, opened.

        Raises:
            NetworkError: none has it, or it must be downloaded and that is forbidden or fails.
            IntegrityError, ArchiveError, CheckpointError: what a source has is not right.
            MissingPackageError: the only copy that is left needs a package to be read.
        """
        if self._chosen is not None:
            return self._chosen.read(spool_folder, wanted)
        gone: list[str] = []
        for place in self._places(wanted):
            if gone:
                log.warning("%s; taking the copy at %s instead", gone[-1], place.source.url)
            try:
                return self._read_from(place, spool_folder, wanted)
            except SourceGoneError as error:
                gone.append(str(error))
        raise NetworkError("; ".join([*gone, *self._advice(wanted)]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)  # type: ignore[arg-type]

    def _places(self, wanted: WeightSet | None) -> list[PretrainedEntry]:
        # Copies have the averages alone.
        copies = self._entry.copies if wanted == "ema" else ()
        places = [self._entry, *(self._entry.at(copy) for copy in copies if self._allow_weak or not copy.is_weak)]
        # Without a network, a copy that was kept comes before an archive that was not.
        here = [place for place in places if _path_of(place) is not None] if offline_variable() else []
        return here or places

    def _advice(self, wanted: WeightSet | None) -> list[str]:
        weak = [copy for copy in self._entry.copies if copy.is_weak]
        if wanted == "raw" and self._entry.copies:
            return ["the copies that others published have no plain weights"]
        if not weak or self._allow_weak:
            return []
        return [
            f"{weak[0].format} has a copy of which only the first digits of a hash are known, which prove nothing: to "
            "take it, add --allow-weak-source to rszoo prefetch or rszoo-convert"
        ]

    def _read_from(self, place: PretrainedEntry, spool_folder: Path, wanted: WeightSet | None) -> OpenCheckpoint:
        url = str(place.source.url)
        if (path := _path_of(place)) is not None:
            try:
                return open_known(place, path, spool_folder, wanted)
            except (ArchiveError, CheckpointError) as error:
                if path == place.source.path:
                    raise
                raise type(error)(f"{error}. It was kept in the cache: delete {path} to download it again") from error
        if place is not self._entry and (package := get_format(place.name.rpartition(".")[2]).package):
            check_installed(f"reading {url}", package)
        # Imported here: what is embedded or kept needs no HTTP client.
        from converters.read.remote import RemoteCheckpoint

        remote = self._stack.enter_context(RemoteCheckpoint(url, place, self._keep))
        files = remote.read(spool_folder, wanted)
        self._chosen = remote
        return files


def _path_of(place: PretrainedEntry) -> Path | None:
    """Return where a source is on this machine, embedded or kept; None if it must be downloaded."""
    if place.source.path is not None:
        return place.source.path
    kept = kept_archive(str(place.source.url), place.name)
    return kept if kept.is_file() else None
