"""`rszoo.prefetch_models`: puts registered models into the cache, one by one; an error does not stop the others."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rszoo.cache.cached import find_cached
from rszoo.cache.fill import copy_cached, copy_pinned, fill_cache
from rszoo.disk.paths import kept_archive
from rszoo.errors import RszooError, UsageError
from rszoo.folder.model_folder import ModelFolder, WeightSet
from rszoo.registry.entry import PretrainedEntry
from rszoo.registry.manifest import expand_patterns, get_entry
from rszoo.registry.trust import read_record, remember

log = logging.getLogger("rszoo")


@dataclass(frozen=True)
class Prefetched:
    """The outcome for one model: its folder in the cache, or the error."""

    name: str
    path: Path | None
    error: RszooError | None = None

    def to_dict(self) -> dict[str, str]:
        """Return name and path, or name and error, as JSON values."""
        return {"name": self.name} | ({"path": str(self.path)} if self.error is None else {"error": str(self.error)})


def prefetch_models(
    patterns: str | Sequence[str],
    output: str | os.PathLike[str] | None = None,
    *,
    weights: WeightSet = "ema",
    keep_archive: bool = False,
    allow_weak_source: bool = False,
) -> Iterator[Prefetched]:
    """Download and convert registered models, for later use without a network; yield the outcome of each.

    Args:
        patterns: a name or shell pattern, or several.
        output: fill this folder instead of the cache. From then on it is this process's cache, as if RSZOO_CACHE named
            it; what the former cache has is copied, and the hashes that it knows bind there.
        weights: "ema", the averages whose accuracy is published, or "raw".
        keep_archive: also keep the archives.
        allow_weak_source: where a model's archive and proven copies are gone, also take a copy that no hash proves;
            its account says so.

    Raises:
        UnknownModelError: a pattern matches nothing.
        UsageError: `output` is not the name of a folder.
    """
    names = expand_patterns(patterns)
    here = {name: (find_cached(get_entry(name), weights), read_record(name)) for name in names}
    if output is not None:
        if not Path(output).name:
            raise UsageError(f"--output is {str(output)!r}; give a folder to fill")
        os.environ["RSZOO_CACHE"] = str(output)
    for name, (known, record) in here.items():
        entry = get_entry(name)
        try:
            if record is not None:
                # What is known here binds there.
                remember(entry, record)
            yield Prefetched(name, _fetch(entry, known, weights, keep_archive, allow_weak_source).path)
        except RszooError as error:
            yield Prefetched(name, None, error)


def _fetch(
    entry: PretrainedEntry, known: ModelFolder | None, weights: WeightSet, keep_archive: bool, allow_weak_source: bool
) -> ModelFolder:
    """Return the model folder in the cache: found, copied from `known` of another cache, or made."""
    found = find_cached(entry, weights) or (copy_cached(known) if known else None)
    if found is None and weights == "ema" and not keep_archive:
        found = copy_pinned(entry)
    if found is None:
        return fill_cache(entry, weights, keep_archive=keep_archive, allow_weak_source=allow_weak_source)
    if keep_archive and entry.source.url and not kept_archive(entry.source.url, entry.name).is_file():
        log.warning(
            "%s is in the cache already, so no archive was downloaded to keep; run `rszoo cache clear %s` first",
            entry.name,
            entry.name,
        )
    return found
