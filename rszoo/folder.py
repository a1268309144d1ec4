"""The model folder: architecture, weights and preprocessing as one unit on disk.

`config.json` (everything of rszoo's under the one top-level key `rszoo`, so that timm's and Keras's keys can stand
beside it), `model.safetensors` (float32, timm's keys, OIHW), `conversion.json` (the account of the conversion) and,
once checked, `verification.json`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args

from rszoo.config import ArchConfig
from rszoo.endpoints import is_url, public_url
from rszoo.errors import ConfigError, SourceNotFoundError, WeightsError
from rszoo.paths import expand_user
from rszoo.preprocessing import Preprocessing

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CONVERSION = "conversion.json"
VERIFICATION = "verification.json"

#: Which of a checkpoint's sets: averaged, as published, or plain.
WeightSet = Literal["ema", "raw"]

_FORMAT_VERSION = 1


@dataclass(frozen=True)
class ModelConfig:
    """What `config.json` says: the pair's name or the architecture's label, and all that is needed to run it.

    `weights` is "ema" or "raw". `pair` is the registry's name, or None for a network of the user's own.
    """

    title: str
    pair: str | None
    arch: ArchConfig
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None
    weights: WeightSet

    def to_json(self) -> str:
        """Return the text of `config.json`."""
        facts = {
            "format_version": _FORMAT_VERSION,
            "title": self.title,
            "pair": self.pair,
            "weights": self.weights,
            "arch": self.arch.to_dict(),
            "preprocessing": dataclasses.asdict(self.preprocessing),
            "labels": self.labels,
        }
        return json.dumps({"rszoo": facts}, indent=1) + "\n"


@dataclass(frozen=True)
class ModelFolder:
    """A model folder that was found and whose `config.json` was read; the weights were not touched."""

    path: Path
    config: ModelConfig

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing that belongs to the weights."""
        return self.config.preprocessing

    @property
    def weights_path(self) -> Path:
        """Path of `model.safetensors`.

        Raises:
            WeightsError: the file is missing.
        """
        path = self.path / WEIGHTS
        if not path.is_file():
            raise WeightsError(f"{self.path} has no {WEIGHTS}; convert again with `rszoo-convert --overwrite`")
        return path


def looks_like_folder(name: str) -> bool:
    """Whether a name that a user typed means a folder rather than a registry name."""
    return "/" in name or "\\" in name or name.startswith((".", "~")) or os.path.isdir(name)


def read_folder(path: str | os.PathLike[str]) -> ModelFolder:
    """Read the `config.json` of a model folder.

    Raises:
        SourceNotFoundError: there is no such folder, or it is not a model folder.
        ConfigError: its `config.json` is damaged or of another version.
    """
    if is_url(path):
        raise SourceNotFoundError(
            f"{public_url(str(path))} is a URL, not a folder; its tensors can be read by `rszoo.load_weights` and "
            "`rszoo info --tensors`, an archive's by `rszoo-convert --ckpt`"
        )
    folder = expand_user(path)
    config_path = folder / CONFIG
    if not os.path.isfile(config_path):
        what = "is not a model folder (it has no config.json)" if os.path.exists(folder) else "does not exist"
        raise SourceNotFoundError(f"{folder} {what}; make one with `rszoo-convert --ckpt SOURCE --output {folder}`")
    try:
        facts = json.loads(config_path.read_text(encoding="utf-8"))["rszoo"]
        return ModelFolder(folder, _parse(facts))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{config_path} is damaged or not rszoo's: {error}") from error


def find_damage(path: Path) -> str | None:
    """Read a model folder in full; return what is wrong with it, or None if it is what was once converted."""
    try:
        account = json.loads((path / CONVERSION).read_text(encoding="utf-8"))["result"]
        recorded = {CONFIG: account["config_sha256"], WEIGHTS: account["sha256"]}
        found = {name: sha256_of(path / name) for name in recorded}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"{CONVERSION} or another file is missing or damaged ({error})"
    for name, sha256 in found.items():
        if sha256 != recorded[name]:
            return f"{name} has SHA-256 {sha256}, but the conversion recorded {recorded[name]}"
    return None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _parse(facts: dict[str, Any]) -> ModelConfig:
    if facts["format_version"] != _FORMAT_VERSION:
        raise ConfigError(f"format_version {facts['format_version']!r}, this rszoo reads {_FORMAT_VERSION}")
    labels, arch = facts["labels"], ArchConfig.from_dict(facts["arch"])
    if facts["weights"] not in get_args(WeightSet):
        raise ConfigError(f"weights must be ema or raw, received {facts['weights']!r}")
    if not isinstance(facts["title"], str) or not isinstance(facts["pair"], (str, NoneType)):
        raise ConfigError("title must be a text, and pair a registered name or null")
    if labels is not None and (not isinstance(labels, list) or len(labels) != arch.num_classes):
        raise ConfigError(f"labels must be null or a list of {arch.num_classes} names")
    preprocessing = Preprocessing(**facts["preprocessing"])
    labels = None if labels is None else tuple(map(str, labels))
    return ModelConfig(facts["title"], facts["pair"], arch, preprocessing, labels, facts["weights"])
