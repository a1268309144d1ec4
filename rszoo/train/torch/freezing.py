"""Freezing of parts of a PyTorch ResNet-RS for fine-tuning, in a way that `.train()` does not undo."""

from __future__ import annotations

from torch import nn

from rszoo.errors import UsageError
from rszoo.models.torch_resnet_rs import Backbone
from rszoo.recipes.recipe import BatchNorm

_STEM = ("conv1", "bn1", "maxpool")


def freeze(model: Backbone, *, through: int = 0, bn: BatchNorm = "train") -> None:
    """Freeze the front of a network, or its batch normalizations, or both; all else becomes trainable.

    What is frozen has no gradients and computes as in evaluation, also after `model.train()` and inside
    `torch.compile`, `DistributedDataParallel` and the like: moving statistics stay, and drop-connect does nothing. Make
    the optimizer afterwards, of the parameters with `requires_grad`.

    Args:
        model: of `rszoo.create`, a classifier or with `features_only=True`.
        through: 1 to 4: the stem and the stages up to this one; 0: none.
        bn: "frozen": every batch normalization uses its stored statistics, and keeps these, gamma and beta.

    Raises:
        UsageError: a value is not allowed, or the model is another.
    """
    if not isinstance(model, Backbone):
        raise UsageError(f"cannot freeze a {type(model).__name__}; give a PyTorch model of rszoo.create, unwrapped")
    if through not in range(5):
        raise UsageError(f"through must be a stage from 1 to 4, or 0 for nothing, received {through!r}")
    if bn not in ("train", "frozen"):
        raise UsageError(f"bn must be train or frozen, received {bn!r}")
    front = (*_STEM, *(f"layer{stage}" for stage in range(1, through + 1))) if through else ()
    frozen = [name for name in front if name in dict(model.named_children())]
    if bn == "frozen":
        frozen += [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    model.requires_grad_(True)
    for name in frozen:
        model.get_submodule(name).requires_grad_(False)
    model.frozen = tuple(frozen)
    model.train(model.training)
