"""What `--ckpt` may name - an archive, a folder, a prefix, a URL, a registered model - opened as checkpoint files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from converters.read.archive import read_archive
from converters.read.files import Checkpoint, CheckpointFiles, open_folder, open_prefix, open_single
from rszoo.disk.paths import expand_user, kept_archive
from rszoo.errors import ArchiveError, CheckpointError, SourceNotFoundError, UnknownModelError, UsageError
from rszoo.folder.model_folder import WeightSet
from rszoo.net.urls import Version, is_url
from rszoo.registry.entry import PretrainedEntry
from rszoo.registry.manifest import get_entry, list_models
from rszoo.registry.trust import check_archive, new_record
from rszoo.terminal import progress_bar

if TYPE_CHECKING:
    from converters.read.remote import RemoteArchive

#: Opens a checkpoint: takes the folder for temporary files and, as `read_archive`, which weights to keep.
Opener = Callable[[Path, WeightSet | None], Checkpoint]

_ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar")


@contextmanager
def locate(source: str, *, keep_archive: bool = False) -> Iterator[Opener]:
    """Find a checkpoint wherever it is, and yield the function that opens it, as often as need be.

    `source`: an http(s) URL of an archive, a registered name (`./name` means a folder of that name), an existing
    `.tar.gz`, a folder with a checkpoint in it, or a prefix such as `folder/model.ckpt`. `keep_archive`: what had to be
    downloaded stays in the cache.

    Raises:
        SourceNotFoundError: it is none of these.
        NetworkError: it must be downloaded, and that is forbidden or fails.
        ArchiveError, CheckpointError, OutputError: as `read_archive` and `open_prefix`.
    """
    if entry := _named(source):
        with _locate_published(entry, keep_archive) as opener:
            yield opener
    elif is_url(source):
        with _remote(source, None, keep_archive) as remote:
            yield remote.read
    else:
        yield _find_local(source)


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


def _find_local(source: str) -> Opener:
    path = expand_user(source)
    if path.is_dir():
        return lambda _folder, _keep: open_folder(path)
    if path.is_file() and _is_archive(path):
        return lambda folder, keep: _open_archive(path, folder, keep)
    if path.is_file() or Path(f"{path}.index").is_file():
        return lambda _folder, _keep: open_single(path) or open_prefix(path)
    if path.parent == Path(".") and not path.suffix:
        get_entry(source)  # raises, and names the nearest models
    raise SourceNotFoundError(_not_found(source))


def find_entry(source: str) -> PretrainedEntry | None:
    """Return the pair that a source says it is by its base name, or None if it names none.

    `resnet-rs-152` as a name means the largest resolution; as the name of a file or URL it tells no resolution.
    """
    if entry := _named(source):
        return entry
    try:
        location = urlsplit(source).path if is_url(source) else source
    except ValueError as error:
        raise UsageError(f"{source!r} is not a URL: {error}") from error
    base = location.rstrip("/").rpartition("/")[2]
    for suffix in _ARCHIVE_SUFFIXES:
        base = base.removesuffix(suffix)
    base = base.lower().replace("_", "-")
    return get_entry(base) if base in list_models() else None


def _named(source: str) -> PretrainedEntry | None:
    """Return the pair of a registered name, or of the URL where its archive is published."""
    for entry in map(get_entry, list_models()):
        if entry.source.url == source:
            return entry
    try:
        return get_entry(source)
    except UnknownModelError:
        return None


def _not_found(source: str) -> str:
    return (
        f"no checkpoint at {source}: give an existing .tar.gz, a folder, a prefix such as folder/model.ckpt, a URL, or "
        f"a model's name such as {list_models()[0]}"
    )


def _is_archive(path: Path) -> bool:
    # By name too, so that a damaged archive is reported as that and not as a strange checkpoint.
    with path.open("rb") as opened:
        return opened.read(2) == b"\x1f\x8b" or path.name.endswith(_ARCHIVE_SUFFIXES)


def _open_archive(path: Path, spool_folder: Path, keep: WeightSet | None) -> CheckpointFiles:
    with path.open("rb") as opened, progress_bar("reading archive", path.stat().st_size, "B") as bar:
        files = read_archive(opened, str(path), spool_folder, keep=keep, report=bar.update)
    files.source = path.name
    return files


def _remote(url: str, entry: PretrainedEntry | None, keep_archive: bool) -> RemoteArchive:
    # Imported here: converting a file needs no HTTP client.
    from converters.read.remote import RemoteArchive

    return RemoteArchive(url, entry, keep_archive)
