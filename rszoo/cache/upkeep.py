"""Upkeep of the cache: what is in it, whether it is intact, and what can be deleted."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rszoo.cache.cached import HASH_DIGITS, cached_folders, find_cached, parse_folder_name, remove_folder
from rszoo.cache.fill import fill_cache
from rszoo.disk.paths import archives_folder, busy_folder, downloads_folder, lock_folder, models_folder
from rszoo.disk.regular import read_regular_text
from rszoo.disk.temporary import abandoned, remove
from rszoo.errors import ConfigError, OutputError, RszooError, UnknownModelError, nearest, summarize
from rszoo.folder.model_folder import CONVERSION, WEIGHTS, WeightSet, find_damage
from rszoo.registry.manifest import get_entry, list_models
from rszoo.registry.trust import Record, read_record

log = logging.getLogger("rszoo")


@dataclass(frozen=True)
class CachedModel:
    """A model in the cache. `bytes` of the whole folder; `record`: what its archive's first download found."""

    name: str
    weights: WeightSet
    path: Path
    bytes: int
    sha256: str | None
    archive_sha256: str | None
    record: Record | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**dataclasses.asdict(self), "path": str(self.path)}


@dataclass(frozen=True)
class Verdict:
    """What `verify_cache` found of a model folder and did about it."""

    name: str
    path: Path
    status: Literal["intact", "repaired", "damaged"]
    detail: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**dataclasses.asdict(self), "path": str(self.path)}


def list_cached(pattern: str = "*") -> list[CachedModel]:
    """Return the models in the cache whose names match a shell pattern, by name.

    Raises:
        UnknownModelError: there are models, but none matches.
    """
    folders = {folder: parse_folder_name(folder) for folder in cached_folders()}
    chosen = {folder: parts for folder, parts in folders.items() if fnmatch.fnmatchcase(parts[0], pattern)}
    if folders and not chosen:
        names = sorted({name for name, _ in folders.values()})
        likely = ", ".join(nearest(pattern, names) or names)
        raise UnknownModelError(f"no cached model matches {pattern!r}; there are: {likely}")
    return [_describe(folder, name, weights) for folder, (name, weights) in chosen.items()]


def verify_cache(pattern: str = "*") -> list[Verdict]:
    """Read every matching model folder in full; delete damaged ones and make them again, with the network if needed.

    Raises:
        UnknownModelError: there are models, but none matches.
        OutputError: a damaged one cannot be removed.
    """
    return [_verify(cached) for cached in list_cached(pattern)]


def find_garbage() -> list[Path]:
    """Return what nobody needs: unfinished downloads, what killed processes left, and older copies of a model.

    A download or conversion that another process is doing now counts as unfinished.
    """
    places = (models_folder(), lock_folder())
    left = [path for place in places for path in abandoned(place)]
    unfinished = _children(downloads_folder())
    return [*left, *unfinished, *filter(_is_outdated, cached_folders())]


def clear_cache(pattern: str | None = None) -> list[Path]:
    """Remove all models and archives, or the matching models only. Records of trust stay.

    Raises:
        UnknownModelError: nothing matches.
        OutputError: something cannot be removed.
    """
    models = [cached.path for cached in list_cached(pattern or "*")]
    for folder in models:
        remove_folder(folder)
    others = [] if pattern else [*find_garbage(), *_children(archives_folder()), *_children(busy_folder())]
    remove_all(others)
    return [*models, *others]


def remove_all(paths: list[Path]) -> None:
    """Remove files and folders.

    Raises:
        OutputError: some cannot be removed; the others are gone.
    """
    if left := [path for path in paths if not remove(path)]:
        raise OutputError(f"cannot remove {summarize(map(str, left))}; they may belong to another user")


def tree_bytes(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    total = 0
    for file in (path, *path.rglob("*")):
        # Another process may have deleted it.
        with suppress(OSError):
            total += file.lstat().st_size if file.is_file() else 0
    return total


def _verify(cached: CachedModel) -> Verdict:
    problem = find_damage(cached.path)
    if problem is None and (cached.sha256 is None or not cached.path.name.endswith(cached.sha256[:HASH_DIGITS])):
        problem = f"{WEIGHTS} and {CONVERSION} are of another folder"
    if problem is None:
        return Verdict(cached.name, cached.path, "intact", f"SHA-256 {cached.sha256}")
    if not cached.path.exists():
        return Verdict(cached.name, cached.path, "intact", "deleted by another process")
    # Removed first, so that no other process loads it.
    remove_folder(cached.path)
    try:
        folder = fill_cache(get_entry(cached.name), cached.weights)
    except RszooError as error:
        return Verdict(cached.name, cached.path, "damaged", f"{problem}; removed, but could not be made again: {error}")
    return Verdict(cached.name, folder.path, "repaired", f"{problem}; made again")


def _describe(folder: Path, name: str, weights: WeightSet) -> CachedModel:
    hashes = {"result.sha256": None, "source.archive_sha256": None}
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        account = json.loads(read_regular_text(folder / CONVERSION))
        for path in hashes:
            part, key = path.split(".")
            hashes[path] = account[part][key] if isinstance(account[part][key], str) else None
    sha256, archive_sha256 = hashes.values()
    return CachedModel(name, weights, folder, tree_bytes(folder), sha256, archive_sha256, list_records().get(name))


def list_records() -> dict[str, Record]:
    """Return what first downloads found, by model; damaged records are left out, with a warning."""
    records = {}
    for path in sorted(lock_folder().glob("*.json")):
        try:
            record = read_record(path.stem)
        except ConfigError as error:
            log.warning("%s", error)
        else:
            records.update({path.stem: record} if record else {})
    return records


def _is_outdated(folder: Path) -> bool:
    name, weights = parse_folder_name(folder)
    current = find_cached(get_entry(name), weights) if name in list_models() else None
    # An older copy is kept until the newer one is known to be intact.
    return current is not None and current.path != folder and find_damage(current.path) is None


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
