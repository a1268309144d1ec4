"""The cache: where converted models are kept, and how a name becomes a model folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from rszoo import __version__
from rszoo.errors import OutputError
from rszoo.folder import ModelFolder, looks_like_folder, read_folder
from rszoo.registry import get_entry


def find_folder(model: str | os.PathLike[str]) -> ModelFolder:
    """Return the model folder of a path, or of a registered name: the cached one, converted now if need be.

    Raises:
        UnknownModelError, SourceNotFoundError: there is no such model or folder.
        NetworkError: its archive must be downloaded and cannot be.
    """
    if not isinstance(model, str) or looks_like_folder(model):
        return read_folder(model)
    entry = get_entry(model)
    target = cache_folder() / "models" / f"{entry.name}-ema-{__version__}"
    if not target.is_dir():
        from converters.convert import convert

        try:
            convert(entry.name, target)
        except OutputError:
            # Another process may have converted it meanwhile.
            if not target.is_dir():
                raise
    return read_folder(target)


def cache_folder() -> Path:
    """Return where converted models are kept: `RSZOO_CACHE`, or `rszoo` in the platform's cache folder."""
    if chosen := os.environ.get("RSZOO_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "rszoo"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "rszoo" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rszoo"
