"""A model folder that came from elsewhere, held against what it says of itself, before anything relies on it."""

from __future__ import annotations

from rszoo.errors import WeightsError
from rszoo.folder.model_folder import (
    CONVERSION,
    RAW_CONVERSION,
    RAW_WEIGHTS,
    ModelConfig,
    ModelFolder,
    find_damage,
    sha256_of,
)
from rszoo.folder.records import read_conversion
from rszoo.weights.belonging import settle_config
from rszoo.weights.mapping import Weights, check_header


def audit_header(weights: Weights, config: ModelConfig) -> None:
    """Check that a model can be made of weights, by their header: of the config's network, or of the weights' own.

    Raises:
        WeightsError: they are of no network of this kind.
    """
    check_header(weights, settle_config(config, weights, weights.known_digest).arch, half=True)


def audit_folder(folder: ModelFolder) -> None:
    """Check what `audit_header` does, and that weights and config are as the folder's account says.

    Each tensor is compared with its checksum, if the file has checksums. The account is optional, too: timm's
    repositories have none, and that of a folder whose weights another tool changed is of others.

    Raises:
        WeightsError: the weights are missing, damaged, or of no such network; or the account is of other files.
        ConfigError: the account is damaged.
        NewerFormatError: a newer rszoo wrote it.
    """
    with Weights(folder.weights_path) as weights:
        audit_header(weights, folder.config)
        for name in weights:
            # Reading compares.
            weights[name]
    if folder.changed:
        # Its account is of other weights, and nobody takes it for theirs.
        return
    problem = _find_raw_damage(folder) if folder.weights_file == RAW_WEIGHTS else _find_damage(folder)
    if problem is not None:
        raise WeightsError(f"{folder.path} is not what its account says: {problem}")


def _find_damage(folder: ModelFolder) -> str | None:
    return find_damage(folder.path) if (folder.path / CONVERSION).is_file() else None


def _find_raw_damage(folder: ModelFolder) -> str | None:
    """Return what is wrong with plain weights beside averaged ones, which share the config of these."""
    if not (folder.path / RAW_CONVERSION).is_file():
        return None
    found, recorded = sha256_of(folder.weights_path), read_conversion(folder.path, RAW_CONVERSION).sha256
    return None if found == recorded else f"{RAW_WEIGHTS} has SHA-256 {found}, but {RAW_CONVERSION} recorded {recorded}"
