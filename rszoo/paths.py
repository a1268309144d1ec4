"""Where the cache is, and where in it things lie."""

from __future__ import annotations

import os
import sys
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit


def cache_folder() -> Path:
    """Return where downloads and converted models are: `RSZOO_CACHE`, or `rszoo` in the platform's cache folder."""
    if chosen := os.environ.get("RSZOO_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "rszoo"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "rszoo" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rszoo"


def models_folder() -> Path:
    """Return where converted models are."""
    return cache_folder() / "models"


def downloads_folder() -> Path:
    """Return where unfinished downloads are."""
    return cache_folder() / "downloads"


def archives_folder() -> Path:
    """Return where archives are that were to be kept."""
    return cache_folder() / "archives"


def kept_archive(url: str) -> Path:
    """Return where `--keep-archive` puts the archive of a URL."""
    return archives_folder() / PurePosixPath(urlsplit(url).path).name


def lock_folder() -> Path:
    """Return where the lock files are that record hashes, see `rszoo.trust`."""
    return cache_folder() / "lock"


def record_path(name: str) -> Path:
    """Return the lock file with the hashes of a registered pair's archive."""
    return lock_folder() / f"{name}.json"


def busy_folder() -> Path:
    """Return where the files are that a process locks while it makes a model."""
    return cache_folder() / "busy"
