"""The network that a PyTorch training starts with: the recipe's architecture, with initial or given weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from rszoo.config import ArchConfig
from rszoo.errors import ConfigError
from rszoo.factory import create
from rszoo.models.torch_resnet_rs import ResNetRS, assign_weights
from rszoo.train.freezing import freeze
from rszoo.train.recipe import Recipe

#: Act in training only: they are the recipe's, whatever the weights were trained with.
_REGULARIZATION = ("dropout_rate", "drop_connect_rate")


def build_network(recipe: Recipe, init: Any | None) -> ResNetRS:
    """Return the network on the CPU, frozen as the recipe says, in training mode.

    `init`: what `rszoo.create` takes to load weights, or None for the published initial values, drawn from the recipe's
    seed. Another number of classes than the weights' starts a new head.

    Raises:
        ConfigError: the weights are of another architecture than the recipe's.
        RszooError: `rszoo.create` cannot load them.
    """
    torch.manual_seed(recipe.train.seed)
    with torch.device("meta"):
        network = ResNetRS(recipe.model)
    if init is None:
        assign_weights(network, {})
    else:
        arch = recipe.model
        given = create(init, pretrained=True, num_classes=arch.num_classes, in_chans=arch.in_chans)
        _check_same(given.config, arch, str(init))
        assign_weights(network, given.state_dict())
        # For `rszoo.save`: what the model was trained from.
        setattr(network, "origin", given.origin)  # noqa: B010
    setattr(network, "preprocessing", recipe.data.preprocessing)  # noqa: B010
    freeze(network, through=recipe.train.freeze_through, bn=recipe.train.bn)
    network.set_grad_checkpointing(recipe.train.gradient_checkpointing)
    return network.train()


def _check_same(given: ArchConfig, wanted: ArchConfig, init: str) -> None:
    names = [field.name for field in dataclasses.fields(ArchConfig) if field.name not in _REGULARIZATION]
    differing = [name for name in names if getattr(given, name) != getattr(wanted, name)]
    if differing:
        name = differing[0]
        raise ConfigError(
            f"{init} is a {given.label}, the recipe's model a {wanted.label}: {', '.join(differing)} differ "
            f"({name} is {getattr(given, name)}, in the recipe {getattr(wanted, name)}); choose the recipe of that "
            f"model, or override its model section (model.{name}=...)"
        )
