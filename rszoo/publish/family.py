"""All published pairs fetched, converted, verified and pushed, each gone from the disk before the next.

What is done is read from the Hub: a repository whose account and verification are this version's is left alone, so the
same command resumes after an interruption.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rszoo.cache.cached import find_cached, remove_folder
from rszoo.cache.fill import fill_cache
from rszoo.disk.paths import kept_archive
from rszoo.errors import ConfigError, HubError, RszooError, UsageError, VerificationError
from rszoo.folder.model_folder import (
    CARD,
    CONFIG,
    CONVERSION,
    KERAS_WEIGHTS,
    RAW_CONVERSION,
    RAW_VERIFICATION,
    RAW_WEIGHTS,
    VERIFICATION,
    WEIGHTS,
    ModelFolder,
    WeightSet,
)
from rszoo.folder.records import find_doubt as find_record_doubt
from rszoo.folder.records import read_conversion, read_verification
from rszoo.hub.address import parse_repo
from rszoo.hub.failures import explained
from rszoo.hub.pull import fetch_file
from rszoo.publish.plan import Target, find_doubt, planned
from rszoo.publish.push import check_login, upload
from rszoo.refs import Hub
from rszoo.registry.entry import WEAK, Converted, HubPin, PretrainedEntry
from rszoo.registry.manifest import expand_patterns, get_entry
from rszoo.registry.pinning import pin_converted, read_manifest
from rszoo.version import __version__

Status = Literal["pushed", "unchanged", "there already", "failed"]


@dataclass(frozen=True)
class Published:
    """What came of one pair. `error` is None unless it failed; `sha256` of `model.safetensors`, in hex."""

    name: str
    repo: str
    status: Status
    commit: str | None = None
    sha256: str | None = None
    error: RszooError | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**dataclasses.asdict(self), "error": None if self.error is None else str(self.error)}


@dataclass(frozen=True)
class Extras:
    """What goes along with a pair's averaged weights: the plain ones, Keras's files.

    `allow_weak_source`: where a pair's archive and proven copies are gone, also take a copy that no hash proves; its
    card says so.
    """

    raw: bool = False
    keras: bool = False
    allow_weak_source: bool = False

    @property
    def files(self) -> set[str]:
        """Names in the repository of what must be there."""
        files = {CONFIG, WEIGHTS, CONVERSION, VERIFICATION, CARD}
        files |= {RAW_WEIGHTS, RAW_CONVERSION, RAW_VERIFICATION} if self.raw else set()
        return files | ({KERAS_WEIGHTS} if self.keras else set())


def publish_models(
    patterns: str | Sequence[str],
    owner: str,
    *,
    private: bool = False,
    extras: Extras = Extras(),
    pin: Path | None = None,
) -> Iterator[Published]:
    """Fetch, convert, verify and push registered pairs as `OWNER/NAME`; yield the outcome of each.

    A pair that fails does not stop the rest. Arguments are checked at once, the rest happens while it is iterated.

    Args:
        patterns: a name or shell pattern, or several.
        owner: account or organization on the Hub.
        private: make new repositories private.
        extras: what goes along with the averaged weights.
        pin: a weights manifest to write repositories, commits and hashes into, at the end.

    Raises:
        UnknownModelError: a pattern matches nothing.
        UsageError: `owner` is not the name of an account.
        SourceNotFoundError, ConfigError: there is no manifest at `pin`, or it is damaged.
        HubError: there is no login, or no such account that it may write to, which would stop them all.
    """
    names = expand_patterns(patterns)
    if "/" in owner:
        raise UsageError(
            f"--to takes an account or organization, received {owner!r}; repositories get the models' names"
        )
    parse_repo(f"{owner}/{names[0]}")
    if pin is not None:
        read_manifest(pin)
    return _publish_pinned(names, owner, private, extras, pin)


def _publish_pinned(
    names: list[str], owner: str, private: bool, extras: Extras, pin: Path | None
) -> Iterator[Published]:
    places = {}
    for outcome in _publish_all(names, owner, private, extras):
        if outcome.commit:
            places[outcome.name] = Converted(outcome.sha256, HubPin(outcome.repo, outcome.commit))
        yield outcome
    if pin is not None:
        pin_converted(pin, places)


def _publish_all(names: list[str], owner: str, private: bool, extras: Extras) -> Iterator[Published]:
    names_here = check_login(f"publish to {owner}")
    if owner not in names_here:
        raise HubError(
            f"cannot publish to {owner}: you are {', '.join(sorted(names_here))} there; see `hf auth whoami`"
        )
    for name in names:
        entry = get_entry(name)
        target = Target(f"{owner}/{entry.name}", private)
        try:
            yield _find_published(entry, target, extras) or _publish(entry, target, extras)
        except RszooError as error:
            yield Published(entry.name, target.repo, "failed", error=error)


def _find_published(entry: PretrainedEntry, target: Target, extras: Extras) -> Published | None:
    """Return what the Hub has of a pair, if this version made it, it is verified, and nothing is missing.

    Raises:
        HubError: the repository is there and public, and was to be private.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    with explained(f"look at {target.repo}", write=True):
        try:
            api = HfApi(library_name="rszoo", library_version=__version__)
            info = api.model_info(target.repo, files_metadata=True)
        except RepositoryNotFoundError:
            return None
        hashes = {sibling.rfilename: sibling.lfs.sha256 if sibling.lfs else None for sibling in info.siblings or ()}
        if target.private and not info.private:
            raise HubError(f"{target.repo} is public, and --private was given; make it private in its settings")
    if not extras.files <= set(hashes):
        return None
    address = Hub(target.repo, info.sha)
    records = {WEIGHTS: (CONVERSION, VERIFICATION)}
    records |= {RAW_WEIGHTS: (RAW_CONVERSION, RAW_VERIFICATION)} if extras.raw else {}
    if all(_is_ours(address, hashes[weights], *files) for weights, files in records.items()):
        return Published(entry.name, target.repo, "there already", info.sha, hashes[WEIGHTS])
    return None


def _is_ours(address: Hub, sha256: str | None, conversion: str, verification: str) -> bool:
    """Whether a weights file on the Hub is what this version has converted and verified."""
    try:
        folder = fetch_file(address, conversion).parent
        fetch_file(address, verification)
        account = read_conversion(folder, conversion)
        doubt = find_record_doubt(account, read_verification(folder, verification))
    except ConfigError:
        return False
    return doubt is None and account.sha256 == sha256 and account.converter == f"rszoo {__version__}"


def _publish(entry: PretrainedEntry, target: Target, extras: Extras) -> Published:
    archives = [kept_archive(place.source.url, place.name) for place in entry.places if place.source.url]
    new = [path for path in archives if not path.is_file()]
    wanted: list[WeightSet] = ["ema", "raw"] if extras.raw else ["ema"]
    were_cached = [find_cached(entry, weights) for weights in wanted]
    try:
        # Through the cache, so that after an interruption nothing is downloaded again.
        folders = [
            found or fill_cache(entry, weights, keep_archive=extras.raw, allow_weak_source=extras.allow_weak_source)
            for found, weights in zip(were_cached, wanted, strict=True)
        ]
    finally:
        # Kept so that the plain weights need no second download.
        for path in new:
            path.unlink(missing_ok=True)
    for folder in folders:
        _check_source(entry, folder, extras)
        _verify(folder)
    with planned(folders[0], target, raw=folders[1] if extras.raw else None, keras=extras.keras) as plan:
        pushed = upload(plan)
    for found, folder in zip(were_cached, folders, strict=True):
        if found is None:
            remove_folder(folder.path)
    status: Status = "pushed" if pushed.changed else "unchanged"
    return Published(entry.name, pushed.repo, status, pushed.commit, pushed.sha256)


def _check_source(entry: PretrainedEntry, folder: ModelFolder, extras: Extras) -> None:
    """Raise VerificationError for a folder in the cache whose source no hash proves, unless that is allowed."""
    source = read_conversion(folder.path).source
    if str(source.get("proof")).startswith(WEAK) and not extras.allow_weak_source:
        raise VerificationError(
            f"{folder.path} was converted from {source.get('name')}, which no hash proves; run `rszoo cache clear "
            f"{entry.name}` to get another, or add --allow-weak-source"
        )


def _verify(folder: ModelFolder) -> None:
    """Verify a folder, unless a former run has done so."""
    from rszoo.verify.api import verify_model

    if find_doubt(folder) is None:
        return
    if failed := [f"{check.name}: {check.detail}" for check in verify_model(folder).failed]:
        raise VerificationError(f"{folder.config.title} failed its verification: {'; '.join(failed)}")
