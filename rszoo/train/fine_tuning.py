"""A fine-tuning recipe: initial weights, recipe and data in, the recipe that fits them out.

Architecture, image size and normalization come from the weights, the numbers of classes and images from the data, and
all else from the recipe, including the rates of dropout and drop-connect. The user's overrides come last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import yaml

from rszoo.disk.paths import expand_user
from rszoo.errors import ConfigError, NewerFormatError, UsageError
from rszoo.evaluate.classes import count_background
from rszoo.pipeline.sources import Source
from rszoo.recipes.load import load_recipe
from rszoo.recipes.recipe import Recipe
from rszoo.train.run_folder import RECIPE_FILE, RunFolder
from rszoo.train.start import Start

RECIPE = "fine-tune"
# Images are RGB.
_CHANNELS = 3


def fine_tuning_recipe(name: str, overrides: Sequence[str], *, start: Start, images: Source) -> Recipe:
    """Return the recipe `name`, changed to train given weights on other images.

    Raises:
        UnknownModelError: there is no such recipe.
        UsageError: the network does not take RGB images, or its classes are not the data's.
        ConfigError: a value is impossible, or the number of training images is not known.
    """
    if (channels := start.arch.in_chans) != _CHANNELS:
        raise UsageError(f"{start.title} takes {channels} channels; only a model of RGB images can be trained")
    if images.num_classes is None and count_background(start.labels):
        raise UsageError(
            f"{images.title} has numbers for classes and {start.title} has a class more, the background; convert the "
            "checkpoint with --drop-background, or write class names beside the records with `rszoo tfrecords`"
        )
    if not images.num_classes and not start.arch.num_classes:
        raise UsageError(
            f"neither {images.title} nor {start.title}, which has no classifier, says how many classes there are; "
            "write class names beside the records with `rszoo tfrecords`"
        )
    recipe = load_recipe(name, overrides)
    arch = dataclasses.replace(
        start.arch,
        num_classes=images.num_classes or start.arch.num_classes,
        dropout_rate=recipe.model.dropout_rate,
        drop_connect_rate=recipe.model.drop_connect_rate,
    )
    settings = start.preprocessing
    changes: dict[str, Any] = {
        "title": f"{start.title}, fine-tuned on {images.title}",
        "model": arch.to_dict(),
        "data.image_size": settings.image_size,
        "data.crop": settings.crop,
        "data.interpolation": settings.interpolation,
        "data.mean": list(settings.mean),
        "data.std": list(settings.std),
    }
    if images.num_images is not None:
        changes["data.train_images"] = images.num_images
    elif name == RECIPE and not any(override.startswith("data.train_images") for override in overrides):
        raise ConfigError(f"how many images {images.title} has is not known; add data.train_images=N")
    return load_recipe(name, [*(f"{key}={_to_yaml(value)}" for key, value in changes.items()), *overrides])


def lost_start(recipe: str) -> str | None:
    """Return a note for a user who trains by the recipe of a fine-tuned run, but from initial values.

    `recipe`: a name, or the path of a .yaml file. Returns None if it is not in a run's folder, or
    that run started from initial values.
    """
    path = expand_user(recipe)
    try:
        init = RunFolder(path.parent).init if path.name == RECIPE_FILE and path.is_file() else None
    except (ConfigError, NewerFormatError):
        return None
    if init is None:
        return None
    return (
        f"{recipe} is of a run that started from the weights {init}, and this one starts from initial values; a recipe "
        f"does not name weights: add --init {init}, and --data"
    )


def _to_yaml(value: Any) -> str:
    # Not JSON: its 1e-05 is a text in YAML.
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n")
