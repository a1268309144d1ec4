"""All published pairs fetched, converted, verified and pushed, each gone from the disk before the next.

What is done is read from the Hub: a repository whose account and verification are this version's is left alone, so the
same command goes on after an interruption.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rszoo import __version__
from rszoo.cache import fill_cache, find_cached, remove_folder
from rszoo.errors import RszooError, VerificationError
from rszoo.folder import (
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
from rszoo.hub.address import HubAddress
from rszoo.hub.push import Target, check_login, find_doubt, planned, upload
from rszoo.paths import kept_archive
from rszoo.registry import PretrainedEntry, get_entry

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
    """What goes along with a pair's averaged weights: the plain ones, Keras's files."""

    raw: bool = False
    keras: bool = False

    @property
    def files(self) -> set[str]:
        """Names in the repository of what must be there."""
        files = {CONFIG, WEIGHTS, CONVERSION, VERIFICATION, CARD}
        files |= {RAW_WEIGHTS, RAW_CONVERSION, RAW_VERIFICATION} if self.raw else set()
        return files | ({KERAS_WEIGHTS} if self.keras else set())


def publish(
    names: Sequence[str], owner: str, *, private: bool = False, extras: Extras = Extras()
) -> Iterator[Published]:
    """Publish registered pairs as `OWNER/NAME`, yielding the outcome of each; one that fails does not stop the rest.

    Raises:
        HubError: there is no login, which would stop them all.
    """
    check_login(f"publish to {owner}")
    for name in names:
        entry = get_entry(name)
        target = Target(f"{owner}/{entry.name}", private)
        try:
            yield _find_published(entry, target.repo, extras) or _publish(entry, target, extras)
        except RszooError as error:
            yield Published(entry.name, target.repo, "failed", error=error)


def _find_published(entry: PretrainedEntry, repo: str, extras: Extras) -> Published | None:
    """Return what the Hub has of a pair, if this version made it and nothing is missing."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    from rszoo.hub.failures import explained
    from rszoo.hub.pull import fetch_file

    with explained(f"look at {repo}", write=True):
        try:
            info = HfApi(library_name="rszoo", library_version=__version__).model_info(repo)
        except RepositoryNotFoundError:
            return None
    if not extras.files <= {sibling.rfilename for sibling in info.siblings or ()}:
        return None
    address = HubAddress(repo, info.sha)
    try:
        account, record = (
            json.loads(fetch_file(address, file).read_text(encoding="utf-8")) for file in (CONVERSION, VERIFICATION)
        )
        sha256 = account["result"]["sha256"]
        ours = account["converter"] == f"rszoo {__version__}" and account["model"] == entry.name
        sound = record["passed"] is True and record["weights_sha256"] == sha256
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return Published(entry.name, repo, "there already", info.sha, sha256) if ours and sound else None


def _publish(entry: PretrainedEntry, target: Target, extras: Extras) -> Published:
    archive = None if entry.source.url is None else kept_archive(entry.source.url, entry.name)
    was_kept = archive is not None and archive.is_file()
    wanted: list[WeightSet] = ["ema", "raw"] if extras.raw else ["ema"]
    were_cached = [find_cached(entry, weights) for weights in wanted]
    try:
        # Through the cache, so that after an interruption nothing is downloaded again.
        folders = [
            found or fill_cache(entry, weights, keep_archive=extras.raw)
            for found, weights in zip(were_cached, wanted, strict=True)
        ]
    finally:
        # Kept so that the plain weights need no second download.
        if archive is not None and not was_kept:
            archive.unlink(missing_ok=True)
    for folder in folders:
        _verify(folder)
    with planned(folders[0], target, raw=folders[1] if extras.raw else None, keras=extras.keras) as plan:
        pushed = upload(plan)
    for found, folder in zip(were_cached, folders, strict=True):
        if found is None:
            remove_folder(folder.path)
    status: Status = "pushed" if pushed.changed else "unchanged"
    return Published(entry.name, pushed.repo, status, pushed.commit, pushed.sha256)


def _verify(folder: ModelFolder) -> None:
    """Verify a folder, unless a former run has done so."""
    from converters import parity

    if find_doubt(folder) is None:
        return
    checks = list(parity.verify(folder))
    parity.save_verification(folder, checks)
    if failed := [f"{check.name}: {check.detail}" for check in checks if check.status == "failed"]:
        raise VerificationError(f"{folder.config.title} failed its verification: {'; '.join(failed)}")
