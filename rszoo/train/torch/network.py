"""The network that a PyTorch training starts with: the recipe's architecture, with initial or given weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rszoo.models.factory import create
from rszoo.models.torch_resnet_rs import ResNetRS, assign_weights
from rszoo.recipes.recipe import Recipe
from rszoo.train.heads import check_architecture, decide_head
from rszoo.train.torch.freezing import freeze

_HEAD = ("fc.weight", "fc.bias")


def build_network(recipe: Recipe, init: Any | None, classes: Sequence[str] | None = None) -> ResNetRS:
    """Return the network on the CPU, frozen as the recipe says, in training mode.

    `init`: what `rszoo.create` takes to load weights, or None for the published initial values, drawn from the recipe's
    seed. `classes`: the data's class names. Another number of classes than the weights', or other names, starts a new
    head; the same in another order puts the head into that order.

    Raises:
        ConfigError: the weights are of another architecture than the recipe's.
        RszooError: `rszoo.create` cannot load them.
    """
    torch.manual_seed(recipe.train.seed)
    network = ResNetRS(recipe.model, "meta")
    if init is None:
        assign_weights(network, {})
    else:
        arch = recipe.model
        given = create(init, pretrained=True, num_classes=arch.num_classes, in_chans=arch.in_chans)
        check_architecture(given.config, arch, given.origin)
        order, origin = decide_head(given.origin, classes)
        tensors = given.state_dict()
        for name in _HEAD:
            if order is None:
                del tensors[name]
            elif order:
                tensors[name] = tensors[name][list(order)]
        assign_weights(network, tensors)
        # For `rszoo.save`: what the model was trained from.
        network.origin = origin
    network.preprocessing = recipe.data.preprocessing
    freeze(network, through=recipe.train.freeze_through, bn=recipe.train.bn)
    network.set_grad_checkpointing(recipe.train.gradient_checkpointing)
    return network.train()
