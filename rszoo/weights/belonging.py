"""Whether a weights file is the one that a folder's `config.json` speaks of, and what holds of it where it is not.

A tool that does not know rszoo's record may write other weights beside it: `transformers` and timm keep unknown keys of
`config.json` when they save, and `cp` asks nobody.
"""

from __future__ import annotations

from dataclasses import replace

from rszoo.arch.config import ArchConfig
from rszoo.arch.names import infer_arch
from rszoo.errors import ConfigError, WeightsError
from rszoo.folder.model_folder import CONFIG, ModelConfig, ModelFolder
from rszoo.terminal import warn_once
from rszoo.weights.mapping import Weights

_CHANGED = "changed since, from "


def settle(folder: ModelFolder) -> ModelFolder:
    """Return a model folder with a config that is true of its weights, and log a warning if that is not its own.

    A missing or damaged weights file changes nothing: whatever reads it raises the error.
    """
    try:
        with Weights(folder.weights_path) as weights:
            digest = None if folder.config.digest is None else weights.digest()
            config = settle_config(folder.config, weights, digest)
    except (WeightsError, OSError):
        return folder
    if config is folder.config:
        return folder
    if config.title == folder.config.title:
        warn_once(f"{folder.path}: the labels were changed since rszoo wrote its record; the new ones are taken")
    else:
        warn_once(
            f"{folder.path}: another tool changed {folder.weights_file} since rszoo wrote its record; classes are the "
            f"tensors', labels those of {CONFIG}, and the title is {config.title!r}"
        )
    return replace(folder, config=config, changed=True)


def settle_config(config: ModelConfig, weights: Weights, digest: str | None) -> ModelConfig:
    """Return the config itself if it is true of the weights; else what is known of them without it.

    Blocks, classes and channels are then the tensors' own; labels the config's `other_labels`, if their number fits.
    `digest` is the weights'. Where the config has none, as in older files, only other shapes tell other weights.
    """
    if config.digest is not None and digest == config.digest:
        return _relabeled(config)
    arch = _infer(config.arch, weights)
    if config.digest is None and arch == config.arch:
        return config
    found = config.other_labels
    return ModelConfig(
        title=_CHANGED + config.title.removeprefix(_CHANGED),
        pair=None,
        arch=arch,
        preprocessing=config.preprocessing,
        labels=found if found is not None and len(found) == arch.num_classes else None,
        weights="trained",
        digest=digest,
    )


def _relabeled(config: ModelConfig) -> ModelConfig:
    """Return the config with labels that a tool or a user gave to the same weights, beside the record."""
    labels = config.other_labels
    if labels is None or labels == config.labels or len(labels) != config.arch.num_classes:
        return config
    return replace(config, pair=None, labels=labels)


def _infer(known: ArchConfig, weights: Weights) -> ArchConfig:
    try:
        return infer_arch(known, {name: weights.shape(name) for name in weights})
    except ConfigError:
        # No ResNet-RS at all: the audit says so.
        return known
