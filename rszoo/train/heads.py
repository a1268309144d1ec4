"""Checks that given weights fit a recipe's network, and matches the classes of their head with the data's.

In: the weights' `ModelConfig`, and the names of the data's classes. Out: an error, or the index of each of the data's
classes in the given head. Both engines use this, each with its own tensors.
"""

from __future__ import annotations

import dataclasses
import logging
import unicodedata
from collections.abc import Sequence

from rszoo.arch.config import ArchConfig
from rszoo.errors import ConfigError, UsageError, summarize
from rszoo.folder.model_folder import ModelConfig
from rszoo.registry.manifest import load_labels

log = logging.getLogger("rszoo")

#: Act in training only: they are the recipe's, whatever the weights were trained with.
_REGULARIZATION = ("dropout_rate", "drop_connect_rate")


def check_architecture(given: ArchConfig, wanted: ArchConfig, origin: ModelConfig | None) -> None:
    """Check that weights fit the recipe's network; `origin`: what they came with.

    Raises:
        ConfigError: they are of another architecture.
    """
    names = [field.name for field in dataclasses.fields(ArchConfig) if field.name not in _REGULARIZATION]
    differing = [name for name in names if getattr(given, name) != getattr(wanted, name)]
    if differing:
        name, title = differing[0], "the weights" if origin is None else origin.title
        raise ConfigError(
            f"{title} is a {given.label}, the recipe's model a {wanted.label}: {', '.join(differing)} differ "
            f"({name} is {getattr(given, name)}, in the recipe {getattr(wanted, name)}); choose the recipe of that "
            f"model, or override its model section (model.{name}=...)"
        )


def head_order(origin: ModelConfig | None, classes: Sequence[str] | None) -> tuple[int, ...] | None:
    """Return the index in the given head of each of the data's classes, or None if the classes differ: a new head.

    In the given order where the names are the same, where either side has none, or where the numbers of classes differ
    (there `rszoo.create` has started a new head already). ImageNet-1k's classes may be named by WordNet ids, too.

    Args:
        origin: of the model with the given weights.
        classes: the data's class names, in the order of their labels.
    """
    if origin is None:
        return ()
    labels = _composed(origin.labels)
    classes = _composed(classes)
    same = tuple(range(origin.arch.num_classes))
    if labels is None or classes is None or len(classes) != len(labels) or classes == labels:
        return same
    if len(set(labels)) == len(labels) and set(labels) == set(classes):
        return tuple(labels.index(name) for name in classes)
    return _imagenet_order(origin, classes) if labels == load_labels("imagenet-1k") else None


def _composed(names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return names in Unicode's composed form: macOS stores decomposed ones, which look alike and differ."""
    return None if names is None else tuple(unicodedata.normalize("NFC", name) for name in names)


def decide_head(
    origin: ModelConfig | None, classes: Sequence[str] | None
) -> tuple[tuple[int, ...] | None, ModelConfig | None]:
    """Return `head_order`, and the origin with the labels of the resulting head; changes are logged as a warning.

    The order is empty if the head stays as it is.
    """
    order = head_order(origin, classes)
    if origin is None or classes is None or order == tuple(range(len(order or ()))):
        return (), origin
    names = summarize(list(classes))
    if order is None:
        log.warning("new head: the data's %d classes (%s) are not those of %s", len(classes), names, origin.title)
    else:
        log.warning("the head's classes were put into the data's order (%s); in %s it is another", names, origin.title)
    return order, dataclasses.replace(origin, labels=tuple(classes))


def _imagenet_order(origin: ModelConfig, classes: Sequence[str]) -> tuple[int, ...] | None:
    from rszoo.evaluate.classes import match_classes

    try:
        return match_classes(classes, len(classes), origin).indices
    except UsageError:
        return None
