"""The model folder: architecture, weights and preprocessing as one unit on disk.

`config.json` (everything of rszoo's under the top-level key `rszoo`; beside it timm's keys, and on the Hub Keras's),
`model.safetensors` (float32, timm's keys, OIHW), `conversion.json` (the account of the conversion) and, once checked,
`verification.json`. A repository on the Hub is such a folder too, with a few files more.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rszoo.arch.config import ArchConfig
from rszoo.disk.paths import expand_user
from rszoo.disk.regular import open_regular, read_regular, read_regular_text
from rszoo.errors import ConfigError, SourceNotFoundError, UsageError, WeightsError
from rszoo.folder.timm_config import parse_timm_config, read_labels, timm_keys
from rszoo.refs import DEFAULT_FILE, may_be_repo
from rszoo.registry.preprocessing import Preprocessing
from rszoo.schema.fields import build, check_format, parse_json, plain
from rszoo.schema.limits import check_pattern, check_writable
from rszoo.version import __version__

CONFIG = "config.json"
WEIGHTS = DEFAULT_FILE
CONVERSION = "conversion.json"
VERIFICATION = "verification.json"
EVALUATION = "evaluation.json"
#: What only a folder on the Hub has: plain weights beside the averaged ones, with their account and outcome of checks;
#: Keras's weights; the card and its picture.
RAW_WEIGHTS = "model.raw.safetensors"
RAW_CONVERSION = "conversion.raw.json"
RAW_VERIFICATION = "verification.raw.json"
KERAS_WEIGHTS = "model.weights.h5"
CARD = "README.md"
PLOT = "family.png"
#: What other tools write instead of `WEIGHTS`.
OTHER_WEIGHTS = ("model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
#: The top-level keys of `config.json` that are Keras's.
KERAS_KEYS = ("module", "class_name", "config", "registered_name", "build_config", "compile_config")

#: Which of a checkpoint's sets: averaged, as published, or plain.
WeightSet = Literal["ema", "raw"]
#: The same, or weights trained further with rszoo's model.
WeightKind = Literal["ema", "raw", "trained"]

#: The version of each file's format, which its writer records and its reader checks.
FORMAT_VERSIONS = {CONFIG: 1, CONVERSION: 1, VERIFICATION: 1, EVALUATION: 1}


@dataclass(frozen=True)
class ModelConfig:
    """What `config.json` says: the pair's name or the architecture's label, and all that is needed to run it.

    `pair` is the registry's name, or None for a network of the user's own. `digest` names the weights that this is
    said of (`rszoo.disk.checksums.digest`, in hex); None in older files, and where rszoo did not write the file.
    `other_labels` are those at the top level of the file, as other tools read and write them; they are not written.
    `rszoo_version` wrote the file, None in files of 0.1.0. Both are kept as they are, since the text of a file that was
    read must come out the same.
    """

    title: str
    pair: str | None
    arch: ArchConfig
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None
    weights: WeightKind
    digest: str | None = None
    rszoo_version: str | None = field(default=__version__, compare=False)
    other_labels: tuple[str, ...] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != self.arch.num_classes:
            received = f"received {len(self.labels)}"
            raise ConfigError(f"labels must be null or a list of {self.arch.num_classes} names, {received}")
        check_writable(self, "title", "labels")
        if self.digest is not None:
            check_pattern(self, "digest", "[0-9a-f]{64}", "64 hex digits")

    def to_json(self) -> str:
        """Return the text of `config.json`."""
        facts = plain(self)
        del facts["other_labels"]
        writer = facts.pop("rszoo_version")
        version = {"format_version": FORMAT_VERSIONS[CONFIG]} | ({} if writer is None else {"rszoo_version": writer})
        if facts["digest"] is None:
            del facts["digest"]
        # The long list last.
        facts["labels"] = facts.pop("labels")
        keys = timm_keys(self.arch, self.preprocessing, self.labels)
        # rszoo's come first, so that the head of a long file is enough to read them.
        return json.dumps({"rszoo": {**version, **facts}, **keys}, indent=1) + "\n"


@dataclass(frozen=True)
class ModelFolder:
    """A model folder that was found and whose `config.json` was read.

    `changed`: it holds other weights or labels than its records speak of, and `config` is what is known of them.
    """

    path: Path
    config: ModelConfig
    weights_file: str = WEIGHTS
    changed: bool = False

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing that belongs to the weights."""
        return self.config.preprocessing

    @property
    def weights_path(self) -> Path:
        """Path of the weights file.

        Raises:
            WeightsError: the file is missing.
        """
        path = self.path / self.weights_file
        if path.is_file():
            return path
        if other := next((name for name in OTHER_WEIGHTS if (self.path / name).is_file()), None):
            raise WeightsError(
                f"{self.path} has {other}, which rszoo does not read; save the model again, as one safetensors file"
            )
        raise WeightsError(f"{self.path} has no {self.weights_file}; convert again with `rszoo-convert --overwrite`")

    def check_classifier(self) -> None:
        """Raise UsageError for a network that has none and gives features."""
        if not self.config.arch.num_classes:
            raise UsageError(
                f"{self.path} has no classifier, only a backbone; fine-tune it to get one: "
                f"rszoo train --init {self.path} --data IMAGES --output RUN"
            )

    @property
    def remedy(self) -> str:
        """What to do where the records are not true of the folder."""
        if self.changed:
            return f"another tool changed it: make a new folder with rszoo.save(rszoo.create({str(self.path)!r}), NEW)"
        return "convert again"


def read_folder(path: str | os.PathLike[str]) -> ModelFolder:
    """Read the `config.json` of a model folder.

    Raises:
        SourceNotFoundError: there is no such folder, or it is not a model folder.
        ConfigError: its `config.json` is damaged.
        NewerFormatError: a newer rszoo wrote it.
    """
    folder = expand_user(path)
    config_path = folder / CONFIG
    if not os.path.isfile(config_path):
        what = "is not a model folder (it has no config.json)" if os.path.exists(folder) else "does not exist"
        hub = f"for a model on the Hub write hf-hub:{path}, or " if may_be_repo(str(path)) else ""
        raise SourceNotFoundError(
            f"{folder} {what}; {hub}make one with `rszoo-convert --ckpt SOURCE --output {folder}`"
        )
    return ModelFolder(folder, parse_config(read_regular(config_path), str(config_path)))


def parse_config(text: str | bytes, label: str) -> ModelConfig:
    """Return what the text of a `config.json` says: rszoo's keys, or timm's where there are none of rszoo's.

    `label` names the file in error texts, and the model if timm's keys are all that is there.

    Raises:
        ConfigError: it is damaged, or of a network that is not a ResNet-RS.
        NewerFormatError: a newer rszoo wrote it.
    """
    try:
        keys = parse_json(text)
        if isinstance(keys, dict) and "rszoo" not in keys and "architecture" in keys:
            arch, preprocessing, labels = parse_timm_config(keys)
            # timm's keys do not say which weights they are.
            return ModelConfig(label, None, arch, preprocessing, labels, "trained")
        if not isinstance(keys, dict) or "rszoo" not in keys:
            raise ConfigError("it has neither the key 'rszoo' nor timm's 'architecture'")
        config = build(
            ModelConfig, {"rszoo_version": None, **check_format(keys["rszoo"], FORMAT_VERSIONS[CONFIG], label)}
        )
        return replace(config, other_labels=read_labels(keys))
    except ConfigError as error:
        raise ConfigError(f"{label} is damaged or not a ResNet-RS's: {error}") from error


def config_sha256(text: str) -> str:
    """Return the SHA-256, in hex, of what a `config.json` says except Keras's keys, which only the Hub's has."""
    return hashlib.sha256(json.dumps(_without_keras(text), sort_keys=True).encode()).hexdigest()


def strip_config(text: str) -> str:
    """Return the text of a `config.json` without Keras's keys, which mean nothing where Keras's weights are not."""
    return json.dumps(_without_keras(text), indent=1) + "\n"


def _without_keras(text: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(text).items() if key not in KERAS_KEYS}


def find_damage(path: Path) -> str | None:
    """Read a model folder in full; return what is wrong with it, or None if it is what was once converted.

    Raises:
        NewerFormatError: a newer rszoo wrote its account.
    """
    try:
        text = read_regular_text(path / CONVERSION)
        account = check_format(json.loads(text), FORMAT_VERSIONS[CONVERSION], path / CONVERSION)["result"]
        recorded = {CONFIG: account["config_sha256"], WEIGHTS: account["sha256"]}
        config = read_regular_text(path / CONFIG)
        found = {CONFIG: config_sha256(config), WEIGHTS: sha256_of(path / WEIGHTS)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{CONVERSION} or another file is missing or damaged ({error})"
    for name, sha256 in found.items():
        if sha256 != recorded[name]:
            return f"{name} has SHA-256 {sha256}, but the conversion recorded {recorded[name]}"
    return None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with open_regular(path) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
