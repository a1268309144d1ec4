"""What `--ckpt` may name, opened as a checkpoint: a path, a URL, a registered model, a repository of timm's."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from converters.read.files import OpenCheckpoint, open_single
from converters.read.local import Opener, find_local, is_rszoo_config, open_known
from rszoo.disk.paths import expand_user, to_text
from rszoo.disk.regular import read_regular
from rszoo.errors import HubError, IntegrityError, SourceNotFoundError, UsageError
from rszoo.folder.model_folder import CONFIG, OTHER_WEIGHTS, WEIGHTS, WeightSet
from rszoo.folder.timm_config import timm_pair
from rszoo.refs import ARCHIVE_SUFFIXES, FILE_SUFFIXES, Checkpoint, Folder, Hub, Ref, Registered, Url, parse_ref
from rszoo.registry.entry import WEAK, PretrainedEntry
from rszoo.registry.lookup import lookup
from rszoo.registry.manifest import get_entry, list_models

#: What a checkpoint is by its name: a registered pair, or a place.
Source = PretrainedEntry | Folder | Checkpoint | Url | Hub

# Of Keras 2's files without the classifier.
_NO_TOP = "-notop"

log = logging.getLogger("rszoo")


def find_source(source: str | os.PathLike[str] | Ref | Source) -> Source:
    """Return what a text says a checkpoint is: the pair of a registered name or published URL, or else a place.

    Raises:
        UsageError: it is no name, see `rszoo.refs.parse_ref`.
    """
    if isinstance(source, PretrainedEntry):
        return source
    ref = parse_ref(source)
    found: Source
    if isinstance(ref, Registered):
        # A bare word that the registry does not have may be a folder or a prefix here.
        found = lookup(ref) or Folder(ref.name)
    elif isinstance(ref, Url):
        found = next((place for place in _published() if place.source.url == ref.url), ref)
    else:
        found = ref
    if found is not source:
        # Seen with logging at DEBUG; the tests count these.
        log.debug("found %s: %s", ref, type(found).__name__)
    return found


def _published() -> Iterator[PretrainedEntry]:
    """Yield every pair, and every pair at each of its copies."""
    for entry in map(get_entry, list_models()):
        yield from entry.places


@contextmanager
def locate(
    source: str | os.PathLike[str] | Ref | Source, *, keep_archive: bool = False, allow_weak: bool = False
) -> Iterator[Opener]:
    """Find a checkpoint wherever it is, and yield the function that opens it, as often as need be.

    `source`: what `find_source` returns or takes: an http(s) URL of an archive or file, a registered name (`./name`
    means a folder of that name), an existing archive or file, a folder with a checkpoint in it, a prefix such as
    `folder/model.ckpt`, or `hf-hub:OWNER/NAME` of timm's. `keep_archive`: what had to be downloaded stays in the cache.
    `allow_weak`: of a registered name, also take a copy that no hash proves.

    Raises:
        SourceNotFoundError: it is none of these.
        UsageError: it is a model folder of rszoo's, here or on the Hub.
        NetworkError: it must be downloaded, and that is forbidden or fails.
        ArchiveError, CheckpointError, OutputError: as `read_archive` and `open_prefix`.
    """
    found = find_source(source)
    if isinstance(found, PretrainedEntry):
        # Imported here: converting a file needs no HTTP client.
        from converters.read.published import PublishedPair

        with PublishedPair(found, keep_archive=keep_archive, allow_weak=allow_weak) as pair:
            yield pair.read
    elif isinstance(found, Url):
        from converters.read.remote import RemoteCheckpoint

        with RemoteCheckpoint(found.url, None, keep_archive) as remote:
            yield remote.read
    elif isinstance(found, Hub):
        path = _fetch(found)
        yield lambda _folder, _keep: _open_fetched(path, found)
    elif (place := _copy_of_name(found)) is not None and expand_user(found.path).is_file():
        # Of what bears a copy's name, the hash is known.
        yield partial(_open_copy, place, expand_user(found.path))
    else:
        yield find_local(found)


def _open_copy(place: PretrainedEntry, path: Path, spool_folder: Path, keep: WeightSet | None) -> OpenCheckpoint:
    try:
        files = open_known(place, path, spool_folder, keep)
    except IntegrityError as error:
        raise IntegrityError(
            f"{path} has the name of a published file, and is another: {error}; if it is yours, rename it"
        ) from error
    files.source = to_text(path.name)
    return files


def _copy_of_name(found: Source) -> PretrainedEntry | None:
    """Return the pair at the copy whose file has the base name of a path or URL."""
    name = str(found).rstrip("/").rpartition("/")[2]
    copies = (entry.at(copy) for entry in map(get_entry, list_models()) for copy in entry.copies)
    return next((place for place in copies if _base(str(place.source.url)) == name), None)


def _fetch(address: Hub) -> Path:
    """Return the weights file of one of timm's repositories in the Hub's cache, with its `config.json` beside it."""
    from rszoo.hub.checked import check_file
    from rszoo.hub.failures import status_of
    from rszoo.hub.pull import fetch_file

    config = fetch_file(address, CONFIG)
    if is_rszoo_config(read_regular(config)):
        raise UsageError(
            f"{address} is a converted model, not a checkpoint; get it with `rszoo pull {address}`, and to write it as "
            "a checkpoint, give its folder with --to"
        )
    # Both of one commit.
    address = replace(address, revision=config.parent.name)
    try:
        path = fetch_file(address, address.file)
    except HubError as error:
        if status_of(error) != 404 or address.file != WEIGHTS:
            raise
        path = fetch_file(address, OTHER_WEIGHTS[1])
    check_file(path, address, None)
    return path


def _open_fetched(path: Path, address: Hub) -> OpenCheckpoint:
    files = open_single(path)
    if files is None:
        raise SourceNotFoundError(f"{path.name} of {address} is no state dict")
    # Not the name in the Hub's cache, which is a hash.
    files.source = str(address)
    if timm_pair(address.repo) is not None:
        files.proof = f"{WEAK}: the repository of timm's, of whose weights no hash is published"
    return files


def find_entries(source: str | os.PathLike[str] | Ref | Source) -> list[PretrainedEntry]:
    """Return the pairs that a source may be by its base name: one for each format of archives of that name.

    `resnet-rs-152` as a name means the largest resolution; as the name of a file or URL it tells no resolution.
    """
    found = find_source(source)
    entries = [get_entry(known) for known in list_models()]
    if isinstance(found, PretrainedEntry):
        # Of the pair at one of its copies, the pair.
        return [next((entry for entry in entries if found in entry.places), found)]
    if isinstance(found, Hub):
        pair = timm_pair(found.repo)
        return [] if pair is None else [get_entry(pair)]
    base = str(found).rstrip("/").rpartition("/")[2]
    if copies := [entry for entry in entries for copy in entry.copies if _base(copy.url) == base]:
        return copies
    for suffix in (*ARCHIVE_SUFFIXES, *FILE_SUFFIXES):
        base = base.removesuffix(suffix)
    base = base.lower().replace("_", "-").removesuffix(_NO_TOP)
    if base not in list_models():
        return []
    named = get_entry(base)
    archive = _base(str(named.source.url))
    if archive.partition(".")[0] != named.name:
        # A name that only one of them has.
        return [named]
    return [named, *(entry for entry in entries if entry is not named and _base(str(entry.source.url)) == archive)]


def _base(url: str) -> str:
    return urlsplit(url).path.rpartition("/")[2]
