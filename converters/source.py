"""What `--ckpt` may name - an archive, a folder, a prefix, a URL, a registered model - opened as checkpoint files."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from tqdm import tqdm

from converters.archive import read_archive
from converters.files import CheckpointFiles, open_folder, open_prefix
from rszoo.errors import ArchiveError, SourceNotFoundError, UnknownModelError
from rszoo.folder import WeightSet
from rszoo.registry import PretrainedEntry, get_entry, list_models

_ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar")


def open_source(source: str, spool_folder: Path, keep: WeightSet | None = None) -> CheckpointFiles:
    """Open a checkpoint wherever it is; the caller closes the result.

    `source`: an http(s) URL of an archive, a registered name (`./name` means a folder of that name), an existing
    `.tar.gz`, a folder with a checkpoint in it, or a prefix such as `folder/model.ckpt`. `spool_folder` takes temporary
    files. `keep`: as `read_archive`.

    Raises:
        SourceNotFoundError: it is none of these.
        ArchiveError, CheckpointError, NetworkError, OutputError: as `read_archive` and `open_prefix`.
    """
    if _is_url(source):
        return _open_url(source, spool_folder, keep)
    if entry := _named(source):
        return open_published(entry, spool_folder, keep)
    path = Path(source).expanduser()
    if path.is_dir():
        return open_folder(path)
    if path.is_file() and _is_archive(path):
        return _open_archive(path, spool_folder, keep)
    if path.is_file() or Path(f"{path}.index").is_file():
        return open_prefix(path)
    if path.parent == Path(".") and not path.suffix:
        get_entry(source)  # raises, and names the nearest models
    raise SourceNotFoundError(_not_found(source))


def open_published(entry: PretrainedEntry, spool_folder: Path, keep: WeightSet | None = None) -> CheckpointFiles:
    """Open the archive of a registered pair: the embedded one, or the published one by its URL.

    Raises:
        ArchiveError: it is damaged, or is not the one whose SHA-256 the manifest knows; else as `open_source`.
    """
    embedded = entry.source.path
    if embedded is not None:
        files = _open_archive(embedded, spool_folder, keep)
    else:
        files = _open_url(str(entry.source.url), spool_folder, keep)
    if entry.source.sha256 not in (None, files.archive_sha256):
        with files:
            raise ArchiveError(
                f"{files.source} has SHA-256 {files.archive_sha256}, but the manifest knows {entry.name} as "
                f"{entry.source.sha256}: it was replaced or damaged; get it again"
            )
    return files


def find_entry(source: str) -> PretrainedEntry | None:
    """Return the pair that a source says it is by its base name, or None if it names none.

    `resnet-rs-152` as a name means the largest resolution; as the name of a file or URL it tells no resolution.
    """
    if entry := _named(source):
        return entry
    location = urlsplit(source).path if _is_url(source) else source
    base = location.rstrip("/").rpartition("/")[2]
    for suffix in _ARCHIVE_SUFFIXES:
        base = base.removesuffix(suffix)
    base = base.lower().replace("_", "-")
    return get_entry(base) if base in list_models() else None


def _named(source: str) -> PretrainedEntry | None:
    try:
        return get_entry(source)
    except UnknownModelError:
        return None


def _is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


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
    with path.open("rb") as opened, _progress(path.stat().st_size) as bar:
        files = read_archive(opened, str(path), spool_folder, keep=keep, report=bar.update)
    files.source = path.name
    return files


def _open_url(url: str, spool_folder: Path, keep: WeightSet | None) -> CheckpointFiles:
    from rszoo.download import RemoteFile

    with RemoteFile(url) as remote, _progress(remote.size) as bar:
        files = read_archive(remote, url, spool_folder, keep=keep, report=bar.update)
    # Without user, password, query: they are secrets or change from day to day, and the source ends up in the weights.
    parts = urlsplit(url)
    files.source = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    return files


def _progress(size: int | None) -> tqdm:
    # disable=None: only on a terminal.
    return tqdm(total=size, desc="reading archive", unit="B", unit_scale=True, disable=None, leave=False)
