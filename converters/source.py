"""What `--ckpt` may name - an archive, a folder, a prefix, a URL, a registered model - opened as checkpoint files."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from converters.archive import read_archive
from converters.files import CheckpointFiles, open_folder, open_prefix
from rszoo.errors import SourceNotFoundError, UnknownModelError
from rszoo.folder import WeightSet
from rszoo.registry import PretrainedEntry, get_entry, list_models

_ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar")


def open_source(source: str, spool_folder: Path, keep: WeightSet | None = None) -> CheckpointFiles:
    """Open a checkpoint wherever it is; the caller closes the result.

    `source`: an existing `.tar.gz`, a folder with a checkpoint in it, a prefix such as `folder/model.ckpt`, an http(s)
    URL of an archive, or a registered name. What exists on disk wins over a name. `spool_folder` takes temporary files.
    `keep`: as `read_archive`.

    Raises:
        SourceNotFoundError: it is none of these.
        ArchiveError, CheckpointError, NetworkError, OutputError: as `read_archive` and `open_prefix`.
    """
    if source.startswith(("http://", "https://")):
        return _open_url(source, spool_folder, keep)
    path = Path(source).expanduser()
    if path.is_dir():
        return open_folder(path)
    if path.is_file() and _is_archive(path):
        return _open_archive(path, spool_folder, keep)
    if path.is_file() or Path(f"{path}.index").is_file():
        return open_prefix(path)
    try:
        entry = get_entry(source)
    except UnknownModelError:
        if path.parent == Path(".") and not path.suffix:
            raise
        raise SourceNotFoundError(_not_found(source)) from None
    if source.endswith(_ARCHIVE_SUFFIXES):
        raise SourceNotFoundError(f"{_not_found(source)}; to download it, give --ckpt {entry.name}")
    embedded = entry.source.path
    return (
        _open_archive(embedded, spool_folder, keep)
        if embedded
        else _open_url(str(entry.source.url), spool_folder, keep)
    )


def find_entry(source: str) -> PretrainedEntry | None:
    """Return the pair that a source says it is by its base name, or None if it names none.

    `resnet-rs-152` as a name means the largest resolution; as the name of a file it tells no resolution.
    """
    base = source.rstrip("/").rpartition("/")[2]
    try:
        entry = get_entry(base)
    except UnknownModelError:
        return None
    return entry if base.lower().startswith(entry.name) or not Path(source).exists() else None


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
    files.source = url
    return files


def _progress(size: int | None) -> tqdm:
    # disable=None: only on a terminal.
    return tqdm(total=size, desc="reading archive", unit="B", unit_scale=True, disable=None, leave=False)
