"""What is known of a model, as JSON values for `rszoo info`."""

from __future__ import annotations

import dataclasses
from typing import Any

from rszoo.arch.walk import count_parameters
from rszoo.cache.find import ModelLike, find, find_folder, find_local, find_place
from rszoo.cache.weights import load_weights
from rszoo.errors import UsageError
from rszoo.folder.model_folder import ModelFolder
from rszoo.hub.describe import describe_hub_model
from rszoo.refs import Hub, Registered, Url
from rszoo.registry.entry import PretrainedEntry
from rszoo.weights.mapping import Weights


def describe(model: ModelLike) -> dict[str, Any]:
    """Return what a registry entry, a model folder or a repository on the Hub says of a model.

    Raises:
        UsageError: it is a URL, whose tensors alone are known; else as `rszoo.cache.find.find`.
        WeightsError: the weights are missing or damaged.
    """
    place = find_place(model)
    if isinstance(place, Url):
        raise UsageError(f"only the tensors of a URL can be shown; run `rszoo info --tensors {place}`")
    if isinstance(place, Hub):
        return describe_hub_model(place)
    found = find(place)
    return describe_entry(found) if isinstance(found, PretrainedEntry) else _describe_folder(find_folder(found))


def describe_tensors(model: ModelLike) -> dict[str, Any]:
    """Return name, dtype, shape and bytes of each tensor of a model's weights, and totals.

    Of a URL or a repository only the header is fetched; nothing else is.

    Raises:
        SourceNotFoundError: a registered model is not in the cache; else as `rszoo.load_weights`.
    """
    place = find_place(model)
    shown = str(model if isinstance(model, str) and not isinstance(place, Url) else place)
    if isinstance(place, (Registered, PretrainedEntry)):
        place = find_local(place)
    with load_weights(place) as weights:
        listed = [{"name": name, **weights.facts(name)._asdict()} for name in weights]
        return {"model": shown, "tensors": listed, "count": len(listed), "nbytes": weights.nbytes}


def describe_entry(entry: PretrainedEntry) -> dict[str, Any]:
    """Return a registry entry as JSON values; ImageNet's labels are left to the number of classes."""
    facts = dataclasses.asdict(entry)
    labels, family = facts.pop("labels"), entry.family
    copies = {
        copy.pop("format"): {key: value for key, value in copy.items() if value is not None}
        for copy in facts.pop("copies")
    }
    return {
        **facts,
        "copies": copies,
        "family": family.name,
        "title": family.title,
        "license": family.license,
        "paper": family.paper,
        "code": family.code,
        "dataset": family.dataset.name,
        "golden_image": facts["family"]["golden_image"],
        "labels": f"{len(labels)} classes: {labels[0]} ... {labels[-1]}",
        "parameters": count_parameters(entry.arch),
    }


def _describe_folder(folder: ModelFolder) -> dict[str, Any]:
    config = folder.config
    with Weights(folder.weights_path) as weights:
        return {
            "path": str(folder.path),
            "title": config.title,
            "pair": config.pair,
            "weights": config.weights,
            "arch": config.arch.to_dict(),
            "preprocessing": dataclasses.asdict(config.preprocessing),
            "parameters": count_parameters(config.arch),
            "tensors": weights.count,
            "metadata": weights.metadata,
        }
