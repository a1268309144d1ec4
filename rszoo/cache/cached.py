"""What is in the cache: model folders by their names, each complete or absent.

A folder is found by its name alone: no lock, no request, nothing written.
"""

from __future__ import annotations

import re
from pathlib import Path

from rszoo.disk import temporary
from rszoo.disk.paths import models_folder
from rszoo.errors import ConfigError, NewerFormatError, OutputError, SourceNotFoundError, WeightsError
from rszoo.folder.model_folder import ModelFolder, WeightSet, read_folder
from rszoo.registry.entry import PretrainedEntry

#: How much of the weights file's SHA-256 a folder's name has.
HASH_DIGITS = 16


def find_cached(entry: PretrainedEntry, weights: WeightSet = "ema") -> ModelFolder | None:
    """Return the model folder in the cache, or None. Of several, the one the manifest names, or else the newest."""
    folders = cached_folders(entry.name, weights)
    pinned = (entry.converted.sha256 or "")[:HASH_DIGITS] if weights == "ema" else ""
    folders.sort(key=lambda folder: (bool(pinned) and folder.name.endswith(pinned), changed_at(folder)))
    return next(filter(None, map(open_cached, reversed(folders))), None)


def open_cached(path: Path) -> ModelFolder | None:
    """Return a model folder of the cache, or None if it is gone, incomplete, or written by a newer rszoo."""
    try:
        folder = read_folder(path)
        return folder if folder.weights_path else None
    except (SourceNotFoundError, ConfigError, NewerFormatError, WeightsError):
        return None


def cached_folders(name: str | None = None, weights: WeightSet | None = None) -> list[Path]:
    """Return the model folders in the cache, of one model and set or of all."""
    wanted = ["[a-z0-9.-]+" if name is None else re.escape(name), "(ema|raw)" if weights is None else weights]
    pattern = re.compile(rf"{wanted[0]}-{wanted[1]}-[0-9a-f]{{{HASH_DIGITS}}}")
    try:
        return sorted(path for path in models_folder().iterdir() if pattern.fullmatch(path.name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise OutputError(
            f"{models_folder()} cannot be read ({error.strerror}); set RSZOO_CACHE to a folder of yours"
        ) from error


def parse_folder_name(folder: Path) -> tuple[str, WeightSet]:
    """Return which model and set a folder in the cache has."""
    name, weights, _ = folder.name.rsplit("-", 2)
    return name, "raw" if weights == "raw" else "ema"


def remove_folder(folder: Path) -> None:
    """Remove a model folder from the cache; renamed first, so that nobody opens half of it.

    Raises:
        OutputError: it cannot be removed.
    """
    try:
        temporary.remove_folder(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"cannot remove {folder}: {error.strerror}; it may belong to another user") from error


def changed_at(path: Path) -> float:
    """Return when a file or folder was changed; long ago if it is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0
