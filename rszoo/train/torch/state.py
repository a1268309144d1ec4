"""A PyTorch training as named numpy arrays, and back: what a checkpoint holds, except the position in the data.

Names and layouts are those of `rszoo.train.engine`, so that the Keras engine can resume from it; besides these, "step"
and the states of PyTorch's random numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from rszoo.train.state import check_state
from rszoo.train.torch.averages import set_steps
from rszoo.train.torch.world import World


class TrainingState:
    """All that the next step depends on. `steps` counts the optimizer steps, and is updated by the engine."""

    def __init__(
        self, network: nn.Module, averages: AveragedModel | None, optimizer: torch.optim.Optimizer, world: World
    ) -> None:
        self.steps = 0
        self._network, self._averages, self._optimizer, self._world = network, averages, optimizer, world

    def export(self) -> dict[str, np.ndarray]:
        """Return everything on rank 0, and nothing on the others; called by all."""
        random = self._world.gather(self._random())
        if self._world.rank:
            return {}
        arrays = {name: _to_numpy(tensor) for name, tensor in self._tensors().items()}
        for of_rank in random:
            arrays.update(of_rank)
        return {**arrays, "step": np.array(self.steps, np.int64)}

    @torch.no_grad()
    def load(self, arrays: Mapping[str, np.ndarray], seed: int) -> None:
        """Load a state, and its random numbers if they are of as many PyTorch processes on the same kind of devices.

        Raises:
            WeightsError: a tensor is missing or misshapen; nothing was changed.
        """
        tensors = self._tensors()
        check_state(arrays, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
        for name, tensor in tensors.items():
            tensor.copy_(torch.from_numpy(np.array(arrays[name], np.float32)))
        self.steps = int(arrays["step"])
        if self._averages is not None:
            set_steps(self._averages, self.steps)
        self._load_random(arrays, seed)

    def start_random(self, seed: int) -> None:
        """Start the random numbers of dropout and drop-connect, different in each process and from step to step."""
        mixed = np.random.SeedSequence([seed, self._world.rank, self.steps]).generate_state(1, np.uint64)
        torch.manual_seed(int(mixed[0]))

    def _tensors(self) -> dict[str, Tensor]:
        tensors = _named("model", self._network)
        if self._averages is not None:
            tensors |= _named("ema", self._averages.module)
        for name, parameter in self._network.named_parameters():
            # `get`, since indexing this mapping adds an entry.
            momentum = self._optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum/{name}"] = momentum
        return tensors

    def _random(self) -> dict[str, np.ndarray]:
        prefix = f"random/torch/{self._world.rank}"
        states = {f"{prefix}/cpu": torch.get_rng_state().numpy()}
        if self._world.device.type == "cuda":
            states[f"{prefix}/cuda"] = torch.cuda.get_rng_state(self._world.device).numpy()
        return states

    def _load_random(self, arrays: Mapping[str, np.ndarray], seed: int) -> None:
        mine = self._random()
        ranks = {name.split("/")[2] for name in arrays if name.startswith("random/torch/")}
        if len(ranks) != self._world.ranks or any(name not in arrays for name in mine):
            self.start_random(seed)
            return
        states = {name.rpartition("/")[2]: torch.from_numpy(np.array(arrays[name], np.uint8)) for name in mine}
        torch.set_rng_state(states["cpu"])
        if "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], self._world.device)


def _named(prefix: str, network: nn.Module) -> dict[str, Any]:
    return {f"{prefix}/{name}": tensor for name, tensor in network.state_dict().items()}


def _to_numpy(tensor: Tensor) -> np.ndarray:
    """Return a copy: the tensor itself changes with the next step."""
    return tensor.detach().to("cpu", copy=True).contiguous().numpy()
