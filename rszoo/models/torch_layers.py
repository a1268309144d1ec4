"""Layers that PyTorch lacks or computes differently from the two published networks. All map (N, C, H, W)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class DropConnect(nn.Module):
    """Drops the residual branch of whole samples in training, and scales the others by 1 / keep."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        if not self.training or self.rate == 0:
            return x
        return x * F.dropout(x.new_ones(x.shape[0], 1, 1, 1), self.rate, self.training)

    def extra_repr(self) -> str:
        """Show the rate."""
        return f"rate={self.rate:g}"


class SameConv2d(nn.Conv2d):
    """A strided convolution with TensorFlow's SAME padding: an odd cell is added at the bottom and the right."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', ceil(H / stride), ceil(W / stride))."""
        pads = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))


class SamePool2x2(nn.Module):
    """2x2 average pool of stride 1 with TensorFlow's SAME padding: padded cells do not count.

    Repeating the last row and column gives the same averages as excluding the padding.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return F.avg_pool2d(F.pad(x, (0, 1, 0, 1), mode="replicate"), 2, 1)


class SamePool3x3(nn.Module):
    """3x3 max pool of stride 2 with TensorFlow's SAME padding: an odd cell is added at the bottom and the right."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, ceil(H / 2), ceil(W / 2))."""
        # One cell before an odd side, none before an even one; ceil_mode replaces SAME's padding at the end.
        height, width = x.shape[2] % 2, x.shape[3] % 2
        padded = F.pad(x, (width, 0, height, 0), value=float("-inf"))
        return F.max_pool2d(padded, 3, 2, ceil_mode=True)


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from the mean of all channels; ReLU inside in both lineages."""

    def __init__(self, channels: int, reduced: int, device: str | torch.device | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, reduced, 1, device=device)
        self.fc2 = nn.Conv2d(reduced, channels, 1, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        gate = self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()


def checkpointed(module: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return `function(x)`, a part of the module, keeping only `x` for the backward pass.

    Moving statistics are updated once, not again when the backward pass recomputes the function.
    """
    if torch.compiler.is_compiling():
        # The compiler handles this itself, and does not support a context.
        return checkpoint(function, x, use_reentrant=False)
    return checkpoint(function, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _untracked(module)))


@contextmanager
def _untracked(module: nn.Module) -> Iterator[None]:
    """Keep batch normalizations in training mode from updating their moving statistics."""
    norms = [norm for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # `track_running_stats` does not work here: autograd must save the same tensors as in the first pass.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
