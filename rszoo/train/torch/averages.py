"""The averages of weights and batch statistics (EMA): PyTorch's `AveragedModel` with the published decay.

TensorFlow's averages start as the initial values, and the decay of each update depends on the steps so far.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rszoo.recipes.schedule import ema_decay

_Tensors = list[Tensor] | tuple[Tensor, ...]


def start_averages(network: nn.Module, decay: float) -> AveragedModel:
    """Return averages that start as the network's values; `update_parameters(network)` goes after each step.

    `decay`: what `optimizer.ema_decay` of a recipe says. The averaged network, `module`, is in evaluation mode.
    """

    def average_(averages: _Tensors, values: _Tensors, steps: Tensor | int) -> None:
        get_ema_multi_avg_fn(ema_decay(decay, int(steps)))(averages, values, steps)

    averages = AveragedModel(network, multi_avg_fn=average_, use_buffers=True)
    averages.module.eval().requires_grad_(False)
    set_steps(averages, 0)
    return averages


def set_steps(averages: AveragedModel, steps: int) -> None:
    """Tell the averages how many steps the network has taken."""
    # With a count of 0, `AveragedModel` would copy at the first update; TensorFlow averages there, with decay 2 / 11.
    averages.n_averaged.fill_(steps + 1)
