"""Which archive is the right one: hashes from the manifest, or those that the first download found and recorded.

Nobody publishes hashes of the archives. So the first download is trusted if it is what its server says it holds, and
its hashes are recorded in the cache, in `lock/NAME.json`; a later download must be the same. Each archive has its own
file, so that processes that download different ones do not overwrite each other's.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

from rszoo.arch.walk import iter_tensors
from rszoo.disk.paths import record_path
from rszoo.disk.regular import read_regular
from rszoo.disk.temporary import write_whole
from rszoo.errors import ConfigError, IntegrityError
from rszoo.net.urls import Version, public_url
from rszoo.registry.entry import PretrainedEntry
from rszoo.schema.fields import build, parse_json

_FACTS = {"size": "length", "crc32c": "CRC32C", "md5": "MD5", "sha256": "SHA-256"}
_MANIFEST = "the manifest"

log = logging.getLogger("rszoo")


@dataclass(frozen=True)
class Record:
    """What a first download found: `size` in bytes, `crc32c` and `md5` in base64, `sha256` in hex, the time in UTC.

    `received_from` is the URL that was really asked, a mirror's or the publisher's.
    """

    name: str
    received_from: str
    recorded: str
    size: int | None
    sha256: str | None
    crc32c: str | None
    md5: str | None


def read_record(name: str) -> Record | None:
    """Return what the first download of an archive found, or None if there was none.

    Raises:
        ConfigError: the lock file is damaged.
    """
    path = record_path(name)
    try:
        return build(Record, parse_json(read_regular(path)))
    except FileNotFoundError:
        return None
    except (OSError, ConfigError) as error:
        raise ConfigError(f"{path} is damaged ({error}); delete it to trust the next download") from error


def check_version(entry: PretrainedEntry, version: Version, url: str) -> None:
    """Compare what a server says it holds with what is known, before it is downloaded.

    Raises:
        IntegrityError: it is another archive; or no hash vouches for what a mirror holds.
    """
    known = _known(entry)
    _compare(entry, vars(version), public_url(url), known)
    if url == entry.source.url or any(facts.get(name) for facts in known.values() for name in _FACTS if name != "size"):
        return
    if version.crc32c is None and version.md5 is None:
        raise IntegrityError(
            f"nothing vouches for {public_url(url)}: it is a mirror, sends no x-goog-hash, and no hash of {entry.name} "
            "is known; download it from the publisher once, or pin its hashes with `rszoo manifest pin`"
        )
    log.warning("%s: no hash is known; trusting what the mirror %s says of itself", entry.name, public_url(url))


def largest_size(entry: PretrainedEntry) -> int:
    """Return how many bytes an archive has, or where that is not known, may have: twice what is listed or expected."""
    sizes = [facts["size"] for facts in _known(entry).values() if isinstance(facts["size"], int)]
    if sizes:
        return min(sizes)
    if entry.source.size_mib is not None:
        return math.ceil(2 * entry.source.size_mib * (1 << 20))
    # A training checkpoint has plain weights, averages and momenta, float32 that can hardly be packed.
    return 2 * 3 * 4 * sum(spec.size for spec in iter_tensors(entry.arch))


def check_archive(entry: PretrainedEntry, found: Record) -> None:
    """Compare an archive that was received or kept with what is known.

    Raises:
        IntegrityError: it is another archive.
    """
    _compare(entry, dataclasses.asdict(found), found.received_from, _known(entry))


def remember(entry: PretrainedEntry, found: Record) -> None:
    """Record a first download; what is recorded already stays, and must be the same.

    Raises:
        IntegrityError: another process has recorded another archive since.
    """
    path = record_path(entry.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        written = write_whole(path, json.dumps(dataclasses.asdict(found), indent=1) + "\n", replace=False)
    except OSError as error:
        log.warning("cannot record the hashes of %s in %s: %s", entry.name, path, error.strerror)
        return
    if not written:
        check_archive(entry, found)


def new_record(entry: PretrainedEntry, place: str, version: Version, sha256: str | None) -> Record:
    """Return what was found of an archive just now; `place`: the URL it came from, or where it lies."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Record(entry.name, place, now, version.size, sha256, version.crc32c, version.md5)


def _known(entry: PretrainedEntry) -> dict[str, Mapping[str, object]]:
    """Return the facts that are known of an archive, by who says so. Where the manifest has its hash, that decides."""
    known: dict[str, Mapping[str, object]] = {_MANIFEST: dataclasses.asdict(entry.source)}
    if entry.source.sha256 is None and (record := read_record(entry.name)):
        where = record_path(entry.name)
        known[f"the first download, of {record.recorded}, recorded in {where},"] = dataclasses.asdict(record)
    return known


def _compare(
    entry: PretrainedEntry, found: Mapping[str, object], place: str, known: Mapping[str, Mapping[str, object]]
) -> None:
    for who, facts in known.items():
        for name, title in _FACTS.items():
            if None not in (found.get(name), facts[name]) and found[name] != facts[name]:
                raise _other(entry, place, f"{title} is {found[name]}, and {who} says {facts[name]}", who)
    start, whole = entry.source.sha256_start, found.get("sha256")
    if start is not None and isinstance(whole, str) and not whole.startswith(start):
        raise _other(entry, place, f"SHA-256 is {whole}, and {_MANIFEST} says that it begins with {start}", _MANIFEST)


def _other(entry: PretrainedEntry, place: str, difference: str, who: str) -> IntegrityError:
    return IntegrityError(
        f"{place} is not the file of {entry.name} that is known: its {difference}. It was replaced or damaged; "
        f"{_remedy(place, who)}"
    )


def _remedy(place: str, who: str) -> str:
    if not place.startswith(("http://", "https://")):
        return "delete it, or give another copy"
    if who == _MANIFEST:
        return "wait for a new rszoo, or get the archive elsewhere"
    return "if you trust the new one, delete that file and run the command again"
