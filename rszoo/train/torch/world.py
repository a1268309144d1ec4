"""The processes that train together in PyTorch: which one this is, its device, and what passes between them.

torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK) determine this; without them there is one process. Communication is
`torch.distributed`'s: NCCL between GPUs, Gloo between CPUs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rszoo.errors import UsageError

_T = TypeVar("_T")


@dataclass(frozen=True)
class World:
    """This process among all. `joined`: the process group is this object's to end."""

    rank: int
    ranks: int
    device: torch.device
    joined: bool

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up a tensor on `device` over all processes, in place, and return it."""
        if self.ranks > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: _T) -> list[_T]:
        """Return the values of all processes, by rank. Any value that can be pickled will do."""
        if self.ranks == 1:
            return [value]
        values: list[Any] = [None] * self.ranks
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process. With one process, the device is not waited for."""
        if self.ranks == 1:
            return flag
        return bool(self.sum_(torch.tensor(int(flag), device=self.device)).item())

    def leave(self) -> None:
        """End the process group, if it was started here."""
        if self.joined and dist.is_initialized():
            dist.destroy_process_group()


def join_world() -> World:
    """Join the processes that torchrun started, if any. An existing process group is used.

    Raises:
        UsageError: there are more processes on this machine than GPUs.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = _device(local_rank)
    joined = not dist.is_initialized() and "RANK" in os.environ and "WORLD_SIZE" in os.environ
    if joined:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if not dist.is_initialized():
        return World(0, 1, device, joined=False)
    return World(dist.get_rank(), dist.get_world_size(), device, joined)


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UsageError(
            f"process {local_rank} of this machine has no GPU of its own: there are {torch.cuda.device_count()}; start "
            f"torchrun with --nproc-per-node {torch.cuda.device_count()}"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
