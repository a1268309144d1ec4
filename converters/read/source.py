"""What `--ckpt` may name - an archive, a folder, a prefix, a URL, a registered model - opened as checkpoint files."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from converters.read.archive import looks_packed, read_archive
from converters.read.files import CheckpointFiles, OpenCheckpoint, open_folder, open_prefix, open_single
from rszoo.disk.paths import expand_user, kept_archive
from rszoo.errors import ArchiveError, CheckpointError, SourceNotFoundError, UsageError
from rszoo.folder.model_folder import CONFIG, WeightSet
from rszoo.net.urls import Version
from rszoo.refs import (
    ARCHIVE_SUFFIXES,
    FILE_SUFFIXES,
    Checkpoint,
    Folder,
    Hub,
    Ref,
    Registered,
    Url,
    may_be_repo,
    parse_ref,
)
from rszoo.registry.entry import PretrainedEntry
from rszoo.registry.lookup import lookup
from rszoo.registry.manifest import get_entry, list_models
from rszoo.registry.trust import check_archive, new_record
from rszoo.terminal import progress_bar

if TYPE_CHECKING:
    from converters.read.remote import RemoteArchive

#: Opens a checkpoint: takes the folder for temporary files and, as `read_archive`, which weights to keep.
Opener = Callable[[Path, WeightSet | None], OpenCheckpoint]
#: What a checkpoint is by its name: a registered pair, or a place.
Source = PretrainedEntry | Folder | Checkpoint | Url

# Enough to tell what a file is.
_START_BYTES = 512

log = logging.getLogger("rszoo")


def find_source(source: str | os.PathLike[str] | Ref | Source) -> Source:
    """Return what a text says a checkpoint is: the pair of a registered name or published URL, or else a place.

    Raises:
        UsageError: it is no name, see `rszoo.refs.parse_ref`, or a converted model on the Hub.
    """
    if isinstance(source, PretrainedEntry):
        return source
    ref = parse_ref(source)
    found: Source
    if isinstance(ref, Hub):
        raise UsageError(f"{ref} is a converted model, not a checkpoint; get it with `rszoo pull {ref}`")
    if isinstance(ref, Registered):
        # A bare word that the registry does not have may be a folder or a prefix here.
        found = lookup(ref) or Folder(ref.name)
    elif isinstance(ref, Url):
        found = next((entry for entry in map(get_entry, list_models()) if entry.source.url == ref.url), ref)
    else:
        found = ref
    if found is not source:
        # Seen with logging at DEBUG; the tests count these.
        log.debug("found %s: %s", ref, type(found).__name__)
    return found


@contextmanager
def locate(source: str | os.PathLike[str] | Ref | Source, *, keep_archive: bool = False) -> Iterator[Opener]:
    """Find a checkpoint wherever it is, and yield the function that opens it, as often as need be.

    `source`: what `find_source` returns or takes: an http(s) URL of an archive, a registered name (`./name` means a
    folder of that name), an existing `.tar.gz`, a folder with a checkpoint in it, or a prefix such as
    `folder/model.ckpt`. `keep_archive`: what had to be downloaded stays in the cache.

    Raises:
        SourceNotFoundError: it is none of these.
        NetworkError: it must be downloaded, and that is forbidden or fails.
        ArchiveError, CheckpointError, OutputError: as `read_archive` and `open_prefix`.
    """
    found = find_source(source)
    if isinstance(found, PretrainedEntry):
        with _locate_published(found, keep_archive) as opener:
            yield opener
    elif isinstance(found, Url):
        with _remote(found.url, None, keep_archive) as remote:
            yield remote.read
    else:
        yield _find_local(found)


@contextmanager
def _locate_published(entry: PretrainedEntry, keep_archive: bool) -> Iterator[Opener]:
    """Yield what opens the archive of a registered pair: embedded, kept in the cache, or published."""
    url = str(entry.source.url)
    kept = kept_archive(url, entry.name)
    if entry.source.path is not None:
        yield partial(open_known, entry, entry.source.path)
    elif kept.is_file():
        try:
            yield partial(open_known, entry, kept)
        except (ArchiveError, CheckpointError) as error:
            raise type(error)(f"{error}. It was kept in the cache: delete {kept} to download it again") from error
    else:
        with _remote(url, entry, keep_archive) as remote:
            yield remote.read


def open_known(
    entry: PretrainedEntry, path: Path, spool_folder: Path, keep: WeightSet | None = None
) -> CheckpointFiles:
    """Open a local copy of a registered pair's archive.

    Raises:
        ArchiveError: it is damaged. IntegrityError: it is not the one whose hash is known; else as `locate`.
    """
    files = _open_archive(path, spool_folder, keep)
    try:
        check_archive(entry, new_record(entry, str(path), Version(files.archive_size), files.archive_sha256))
    except BaseException:
        files.close()
        raise
    if entry.source.url:
        files.source = entry.source.url
    return files


def _find_local(place: Folder | Checkpoint) -> Opener:
    path = expand_user(place.path)
    if path.is_dir():
        if (path / "saved_model.pb").is_file() and (path / "variables").is_dir():
            # What `tf.saved_model.save` writes.
            path = path / "variables"
        _check_not_converted(place, path)
        return lambda _folder, _keep: open_folder(path)
    if path.is_file():
        return partial(_open_file, path)
    if Path(f"{path}.index").is_file():
        return lambda _folder, _keep: open_prefix(path)
    if place.path == path.name and not path.suffix:
        get_entry(place.path)  # raises, and names the nearest models
    if not path.exists() and may_be_repo(place.path):
        raise SourceNotFoundError(
            f"no checkpoint at {place.path}; a model on the Hub is hf-hub:{place.path}, which is converted already: "
            f"rszoo pull hf-hub:{place.path}"
        )
    if path.exists():
        raise SourceNotFoundError(f"{place.path} is a pipe or device; save what it gives in a file, and give its path")
    raise SourceNotFoundError(
        f"no checkpoint at {place.path}: give an existing .tar.gz, a folder, a prefix such as folder/model.ckpt, a "
        f"URL, or a model's name such as {list_models()[0]}"
    )


def _check_not_converted(place: Folder | Checkpoint, path: Path) -> None:
    """Raise UsageError for a folder that has a model, but no checkpoint."""
    if (path / CONFIG).is_file() and not any(path.glob("*.index")):
        raise UsageError(
            f"{place} is a model folder already, not a checkpoint; to write it back as one, add --to and a format, "
            "see `rszoo-convert --help`"
        )


def find_entries(source: str | os.PathLike[str] | Ref | Source) -> list[PretrainedEntry]:
    """Return the pairs that a source may be by its base name: one for each format of archives of that name.

    `resnet-rs-152` as a name means the largest resolution; as the name of a file or URL it tells no resolution.
    """
    found = find_source(source)
    if isinstance(found, PretrainedEntry):
        return [found]
    base = str(found).rstrip("/").rpartition("/")[2]
    for suffix in (*ARCHIVE_SUFFIXES, *FILE_SUFFIXES):
        base = base.removesuffix(suffix)
    base = base.lower().replace("_", "-")
    if base not in list_models():
        return []
    named = get_entry(base)
    archive = str(named.source.url).rpartition("/")[2]
    if archive.partition(".")[0] != named.name:
        # A name that only one of them has.
        return [named]
    others = (entry for entry in map(get_entry, list_models()) if entry is not named and entry.source.url)
    return [named, *(entry for entry in others if str(entry.source.url).rpartition("/")[2] == archive)]


def _open_file(path: Path, spool_folder: Path, keep: WeightSet | None) -> OpenCheckpoint:
    # By name too, so that a damaged archive is reported as that and not as a strange checkpoint.
    if path.name.endswith(ARCHIVE_SUFFIXES):
        return _open_archive(path, spool_folder, keep)
    # First: some formats' files are zip archives, as a kind of archive is.
    if (single := open_single(path)) is not None:
        return single
    with path.open("rb") as opened:
        packed = looks_packed(opened.read(_START_BYTES))
    return _open_archive(path, spool_folder, keep) if packed else open_prefix(path)


def _open_archive(path: Path, spool_folder: Path, keep: WeightSet | None) -> CheckpointFiles:
    with path.open("rb") as opened, progress_bar("reading archive", path.stat().st_size, "B") as bar:
        files = read_archive(opened, str(path), spool_folder, keep=keep, report=bar.update)
    files.source = path.name
    return files


def _remote(url: str, entry: PretrainedEntry | None, keep_archive: bool) -> RemoteArchive:
    # Imported here: converting a file needs no HTTP client.
    from converters.read.remote import RemoteArchive

    return RemoteArchive(url, entry, keep_archive)
