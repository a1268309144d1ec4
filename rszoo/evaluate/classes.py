"""Matches the classes of the data with those of a model; by position only if names cannot decide.

Folders of images have names in alphabetical order; TFRecords have numbers. ImageNet's folders are named by WordNet ids,
whose order among the model's classes is that of `rszoo/assets/imagenet_1k_labels.txt`.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rszoo.assets import asset
from rszoo.errors import UsageError, summarize
from rszoo.evaluate.scores import check_labels
from rszoo.folder.model_folder import ModelConfig
from rszoo.registry.manifest import load_labels

_IMAGENET = "imagenet-1k"
_SYNSETS = asset("imagenet_1k_labels.txt")


@dataclass(frozen=True)
class ClassMap:
    """`indices`: the model's class for each class of the data, in label order; `how`: the way they were matched."""

    indices: tuple[int, ...]
    how: str

    def apply(self, labels: np.ndarray) -> np.ndarray:
        """Map labels of the data to classes of the model, both int (N,).

        Raises:
            ImageError: a label is not one of the data's classes.
        """
        check_labels(labels, len(self.indices))
        indices: np.ndarray = np.asarray(self.indices, np.int64)[labels]
        return indices


def match_classes(names: Sequence[str] | None, count: int | None, config: ModelConfig) -> ClassMap:
    """Find the model's class for each class of the data.

    The data have no class for the background that a model of ImageNet's 1001 classes has in front. These cases are
    tried in order: the names are among the model's labels; they are WordNet ids and the model has
    ImageNet-1k's classes; they are the numbers of the model's classes, from 0; the model has no labels but the same
    number of classes, which are then matched by position.

    Args:
        names: names of the data's classes, in label order; None if the data have only numbers.
        count: how many classes the data have, None if unknown.
        config: the model's configuration.

    Raises:
        UsageError: the classes are not the model's, or their order cannot be determined.
    """
    classes, background = config.arch.num_classes, count_background(config.labels)
    names = None if names is None else [unicodedata.normalize("NFC", name) for name in names]
    if names is None:
        if background and count in (None, classes - background):
            return ClassMap(tuple(range(background, classes)), "by number, from 1: class 0 is the background")
        if count not in (None, classes):
            raise UsageError(f"the data have {count} classes and {config.title} has {classes}; {_ADVICE}")
        return ClassMap(tuple(range(classes)), f"by number, 0 to {classes - 1}")
    known = _by_label(names, config) or _by_synset(names, config) or _by_number(names, config)
    if known is None and config.labels is None and len(names) == classes:
        known = _by_position(names)
    if known is None:
        raise UsageError(_mismatch(names, config))
    absent = classes - len(names)
    return ClassMap(known.indices, f"{known.how}; {absent} of {classes} are not in the data" if absent else known.how)


_ADVICE = (
    "use data with the model's classes, or train a model for these data with `rszoo train --init MODEL --data DATA`"
)


def count_background(labels: tuple[str, ...] | None) -> int:
    """Return how many classes there are in front of ImageNet's: 1, as in the Model Garden's models, or 0."""
    return int(labels is not None and labels[1:] == load_labels(_IMAGENET))


def _by_label(names: Sequence[str], config: ModelConfig) -> ClassMap | None:
    places = _unique_labels(config)
    if not set(names) <= set(places):
        return None
    return ClassMap(tuple(places[name] for name in names), "by name")


def _unique_labels(config: ModelConfig) -> dict[str, int]:
    """Return the index of each unique label; a repeated one, such as ImageNet's two cranes, is ambiguous."""
    # macOS stores decomposed names, which look alike and differ.
    labels = [unicodedata.normalize("NFC", label) for label in config.labels or ()]
    counts = Counter(labels)
    return {label: index for index, label in enumerate(labels) if counts[label] == 1}


def _by_synset(names: Sequence[str], config: ModelConfig) -> ClassMap | None:
    synsets = [line.split("\t", 1)[0] for line in _SYNSETS.read_text(encoding="utf-8").splitlines()]
    background = count_background(config.labels)
    known = config.labels is None or config.labels[background:] == load_labels(_IMAGENET)
    if not known or config.arch.num_classes != len(synsets) + background:
        return None
    places = {synset: index for index, synset in enumerate(synsets, background)}
    if not set(names) <= set(places):
        return None
    return ClassMap(tuple(places[name] for name in names), "by WordNet id, in ImageNet-1k's order")


def _by_number(names: Sequence[str], config: ModelConfig) -> ClassMap | None:
    if config.labels is None or not _are_numbers(names):
        return None
    numbers, background = tuple(map(int, names)), count_background(config.labels)
    if sorted(numbers) == list(range(config.arch.num_classes)):
        return ClassMap(numbers, "by number: the names are the numbers of the model's classes, from 0")
    if background and sorted(numbers) == list(range(config.arch.num_classes - background)):
        # As the numbers of records do, they count ImageNet's.
        return ClassMap(tuple(number + background for number in numbers), "by number, without the background")
    return None


def _by_position(names: Sequence[str]) -> ClassMap | None:
    # If numeric and alphabetical order differ (10 before 2), the order that the model learned is unknown.
    if _are_numbers(names) and list(map(int, names)) != sorted(map(int, names)):
        return None
    return ClassMap(tuple(range(len(names))), "by position in alphabetical order: the model has no labels")


def _are_numbers(names: Sequence[str]) -> bool:
    return all(name.isascii() and name.isdigit() for name in names)


def _mismatch(names: Sequence[str], config: ModelConfig) -> str:
    classes = config.arch.num_classes
    counts = f"the data have {len(names)} classes ({summarize(names)}), {config.title} has {classes}"
    if config.labels is None:
        why = "without names, so the classes cannot be matched"
        return f"{counts} {why}. Save it with labels (rszoo.save(model, FOLDER, labels=[...])), or {_ADVICE}"
    known = _unique_labels(config)
    unknown = [name for name in names if name not in known]
    imagenet = config.labels[count_background(config.labels) :] == load_labels(_IMAGENET)
    ids = ", or their WordNet ids" if imagenet else ""
    return (
        f"{counts} ({summarize(config.labels)}); {len(unknown)} of the data's classes are not among the model's: "
        f"{summarize(unknown)}. Name the folders by the model's labels{ids} or their numbers from 0, or {_ADVICE}"
    )
