"""The optimizer of a recipe in PyTorch: which parameters decay, and the share of the learning rate that each gets."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Parameter

from rszoo.arch.layer_groups import rate_factor
from rszoo.arch.names import torch_name
from rszoo.models.torch_resnet_rs import ResNetRS
from rszoo.recipes.recipe import OptimizerSettings


def make_optimizer(network: ResNetRS, settings: OptimizerSettings) -> torch.optim.SGD:
    """Return SGD over the parameters that are not frozen, its momenta at 0.

    Each group's "rate" is what the learning rate of a step is to be multiplied with, see `set_learning_rate`.
    """
    groups: dict[tuple[float, float], list[Parameter]] = {}
    specs = {torch_name(spec): spec for spec in network.iter_tensors()}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            rate = rate_factor(specs[name], settings.layer_decay)
            # The published L2 term excludes batch normalization, and nothing else.
            decay = 0.0 if specs[name].kind.layer_type == "bn" else settings.weight_decay
            groups.setdefault((rate, decay), []).append(parameter)
    listed: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": decay, "rate": rate} for (rate, decay), parameters in groups.items()
    ]
    # Without momentum Nesterov's rule is the plain one, and PyTorch refuses it.
    nesterov = settings.nesterov and settings.momentum > 0
    optimizer = torch.optim.SGD(listed, lr=0.0, momentum=settings.momentum, nesterov=nesterov, fused=True)
    if settings.momentum:
        for parameters in groups.values():
            for parameter in parameters:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of the next step, scaled for each group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["rate"]
