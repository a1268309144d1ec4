"""The moving statistics of batch normalization in PyTorch, as a recipe defines them.

Every micro-batch of every device normalizes with its own mean and variance. The statistics of a step are the mean of
theirs, the variances with Bessel's correction as in TensorFlow's fused normalization; they replace the moving ones, or
are blended with them by the recipe's momentum.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rszoo.train.torch.world import World


class BatchStatistics:
    """The moving statistics of a network's normalizations, except frozen ones.

    Takes the network in training mode, on its device. From then on its normalizations store the statistics of each
    batch as they are (PyTorch's momentum 1), and count no batches.
    """

    def __init__(self, network: nn.Module, momentum: float, world: World) -> None:
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
            norm.num_batches_tracked = None
        active = [norm for norm in norms if norm.training]
        self._moving = [tensor for norm in active for tensor in norm.buffers()]
        self._sizes = [tensor.numel() for tensor in self._moving]
        self._momentum, self._world = momentum, world
        self._before: Tensor | None = None
        self._collected: list[Tensor] = []

    def begin(self) -> None:
        """Call before a step."""
        self._collected = []
        self._before = self._flat() if self._moving and self._momentum else None

    def collect(self) -> None:
        """Call after each micro-batch except the last, whose statistics are in the network."""
        if self._moving:
            self._collected.append(self._flat())

    def finish(self) -> None:
        """Call at the end of a step: set the moving statistics."""
        if not self._moving or not (self._collected or self._world.ranks > 1 or self._momentum):
            return
        values = torch.stack([*self._collected, self._flat()]).mean(0)
        values = self._world.sum_(values) / self._world.ranks
        if self._before is not None:
            values = values.lerp(self._before, self._momentum)
        torch._foreach_copy_(self._moving, list(values.split(self._sizes)))

    def _flat(self) -> Tensor:
        return torch.cat(self._moving)
