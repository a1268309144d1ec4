"""Where the cache is, and where in it things lie."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from rszoo.errors import UsageError
from rszoo.refs import FILE_SUFFIXES


def cache_folder() -> Path:
    """Return where downloads and converted models are: `RSZOO_CACHE`, or `rszoo` in the platform's cache folder.

    Raises:
        UsageError: nothing tells the home folder that it lies in.
    """
    if chosen := os.environ.get("RSZOO_CACHE"):
        return expand_user(chosen)
    if sys.platform == "darwin":
        return expand_user("~/Library/Caches/rszoo")
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "rszoo" / "Cache"
    return expand_user(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "rszoo"


def expand_user(path: str | os.PathLike[str]) -> Path:
    """Return a path with `~` and `~user` replaced.

    Raises:
        UsageError: there is no such user, or nothing tells the home of this one.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"the home folder in {os.fspath(path)} is not known; give the path, or set RSZOO_CACHE"
        ) from error


def to_text(path: str | os.PathLike[str]) -> str:
    r"""Return a path as Unicode that every file and terminal takes: a byte that is not UTF-8 becomes `\xe9`.

    Python keeps such bytes as lone surrogates, which cannot be written as UTF-8.
    """
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")


def models_folder() -> Path:
    """Return where converted models are."""
    return cache_folder() / "models"


def downloads_folder() -> Path:
    """Return where unfinished downloads are."""
    return cache_folder() / "downloads"


def archives_folder() -> Path:
    """Return where archives are that were to be kept."""
    return cache_folder() / "archives"


def kept_archive(url: str, pair: str | None) -> Path:
    """Return where `--keep-archive` puts the archive of a registered pair, or of any other URL if `pair` is None."""
    name = PurePosixPath(urlsplit(url).path).name
    if pair is not None:
        # Of what is no archive, the kind is in its name.
        suffix = next((suffix for suffix in FILE_SUFFIXES if name.endswith(suffix)), ".tar.gz")
        return archives_folder() / f"{pair}{suffix}"
    # No URL of a user's may take the place of a pair's.
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    return archives_folder() / "from-urls" / f"{digest}-{name}"


def lock_folder() -> Path:
    """Return where the lock files are that record hashes, see `rszoo.registry.trust`."""
    return cache_folder() / "lock"


def record_path(name: str) -> Path:
    """Return the lock file with the hashes of a registered pair's archive."""
    return lock_folder() / f"{name}.json"


def busy_folder() -> Path:
    """Return where the files are that a process locks while it makes a model."""
    return cache_folder() / "busy"


def checked_folder() -> Path:
    """Return where it is noted of files in the Hub's cache that their hash was found right."""
    return cache_folder() / "checked"
