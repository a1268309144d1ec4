"""A checkpoint on this machine, opened: a folder, a prefix, an archive, or a file of another kind."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from converters.read.archive import looks_packed, read_archive
from converters.read.files import CheckpointFiles, OpenCheckpoint, SingleFile, open_folder, open_prefix, open_single
from rszoo.disk.paths import expand_user, to_text
from rszoo.disk.regular import open_regular, read_regular
from rszoo.errors import CheckpointError, SourceNotFoundError, UsageError, summarize
from rszoo.folder.model_folder import CONFIG, OTHER_WEIGHTS, WEIGHTS, WeightSet
from rszoo.net.urls import Version
from rszoo.refs import ARCHIVE_SUFFIXES, FILE_SUFFIXES, Checkpoint, Folder, may_be_repo
from rszoo.registry.entry import PretrainedEntry
from rszoo.registry.manifest import get_entry, list_models
from rszoo.registry.trust import Record, check_archive, new_record
from rszoo.terminal import progress_bar

#: Opens a checkpoint: takes the folder for temporary files and, as `read_archive`, which weights to keep.
Opener = Callable[[Path, WeightSet | None], OpenCheckpoint]

# Enough to tell what a file is.
_START_BYTES = 512


def find_local(place: Folder | Checkpoint) -> Opener:
    """Return what opens the checkpoint at a path.

    Raises:
        SourceNotFoundError: there is none. UsageError: it is a model folder of rszoo's.
    """
    path = expand_user(place.path)
    if path.is_dir():
        if (path / "saved_model.pb").is_file() and (path / "variables").is_dir():
            # What `tf.saved_model.save` writes.
            path = path / "variables"
        if (weights := _find_weights(place, path)) is not None:
            return partial(_open_file, weights)
        _check_one_of_many(path)
        return lambda _folder, _keep: open_folder(path)
    if path.is_file():
        return partial(_open_file, path)
    if Path(f"{path}.index").is_file():
        return lambda _folder, _keep: open_prefix(path)
    if place.path == path.name and not path.suffix:
        get_entry(place.path)  # raises, and names the nearest models
    if not path.exists() and may_be_repo(place.path):
        raise SourceNotFoundError(
            f"no checkpoint at {place.path}; a model on the Hub is hf-hub:{place.path}: one of timm's is converted "
            f"from there, one of rszoo's is converted already: rszoo pull hf-hub:{place.path}"
        )
    if path.exists():
        raise SourceNotFoundError(f"{place.path} is a pipe or device; save what it gives in a file, and give its path")
    raise SourceNotFoundError(
        f"no checkpoint at {place.path}: give an existing .tar.gz, .h5 or .pth, a folder, a prefix such as "
        f"folder/model.ckpt, a URL, or a model's name such as {list_models()[0]}"
    )


def _find_weights(place: Folder | Checkpoint, path: Path) -> Path | None:
    """Return the weights file of a folder as timm leaves it; None for a folder of another kind.

    Raises:
        UsageError: it is a model folder of rszoo's.
    """
    config = path / CONFIG
    if not config.is_file() or any(path.glob("*.index")):
        return None
    if is_rszoo_config(read_regular(config)):
        raise UsageError(
            f"{place} is a model folder already, not a checkpoint; to write it back as one, add --to and a format, "
            "see `rszoo-convert --help`"
        )
    return next((found for name in (WEIGHTS, *OTHER_WEIGHTS) if (found := path / name).is_file()), None)


def _check_one_of_many(path: Path) -> None:
    """Raise SourceNotFoundError for a folder with files of Keras 2's or PyTorch's, of which one must be given."""
    names = sorted(child.name for child in path.iterdir())
    files = [name for name in names if name.lower().endswith(FILE_SUFFIXES)]
    if files and not any(name.endswith(".index") for name in names):
        raise SourceNotFoundError(f"{path} is a folder; give one of the files in it: {summarize(map(repr, files))}")


def is_rszoo_config(text: bytes) -> bool:
    """Whether a `config.json` is of a model folder of rszoo's, and not of timm's or of another program."""
    try:
        keys = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(keys, dict) and "rszoo" in keys


def open_known(entry: PretrainedEntry, path: Path, spool_folder: Path, keep: WeightSet | None = None) -> OpenCheckpoint:
    """Open a local copy of a registered pair's archive or file.

    Raises:
        ArchiveError: it is damaged. IntegrityError: it is not the one whose hash is known; else as `find_local`.
    """
    files = _open_file(path, spool_folder, keep)
    try:
        if isinstance(files, SingleFile):
            files.archive_md5 = _md5_of(path)
        check_known(entry, files, str(path), Version())
    except BaseException:
        files.close()
        raise
    if entry.source.url:
        files.source = entry.source.url
    return files


def check_known(entry: PretrainedEntry, files: OpenCheckpoint, place: str, version: Version) -> Record:
    """Compare what was opened with the hashes that are known of a registered pair's source, and return what it is.

    `version`: what a server says of it. Raises IntegrityError.
    """
    known = replace(version, size=files.archive_size)
    if isinstance(files, SingleFile):
        # Which is what is known of such a file.
        known = replace(known, md5=base64.b64encode(files.archive_md5 or b"").decode())
        files.proof = entry.source.proof
    found = new_record(entry, place, known, files.archive_sha256)
    check_archive(entry, found)
    return found


def _md5_of(path: Path) -> bytes:
    with open_regular(path) as opened:
        return hashlib.file_digest(opened, partial(hashlib.md5, usedforsecurity=False)).digest()


def _open_file(path: Path, spool_folder: Path, keep: WeightSet | None) -> OpenCheckpoint:
    if path.name.endswith(".index.json"):
        raise CheckpointError(f"{path} lists the parts of a sharded file, which is not read; save it as one file")
    # By name too, so that a damaged archive is reported as that and not as a strange checkpoint.
    name = path.name.lower()
    if name.endswith(ARCHIVE_SUFFIXES) and not name.endswith(FILE_SUFFIXES):
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
    files.source = to_text(path.name)
    return files
