"""The processes that train together in PyTorch: which one this is, its device, and what passes between them.

torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK) determine this; without them there is one process. Communication is
`torch.distributed`'s: NCCL between GPUs, Gloo between CPUs.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rszoo.errors import NetworkError, UsageError

log = logging.getLogger("rszoo")

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
        UsageError: there are more processes on this machine than GPUs, or torchrun's variables are incomplete.
        NetworkError: the other processes are not reached.
    """
    device = _device(_number("LOCAL_RANK", 0))
    joined = not dist.is_initialized() and "RANK" in os.environ and _number("WORLD_SIZE", 1) > 1
    if joined:
        _join("nccl" if device.type == "cuda" else "gloo")
    if not dist.is_initialized():
        return World(0, 1, device, joined=False)
    return World(dist.get_rank(), dist.get_world_size(), device, joined)


def _join(backend: str) -> None:
    """Join the process group that torchrun's variables describe."""
    rank, ranks = _number("RANK", 0), _number("WORLD_SIZE", 1)
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing or not 0 <= rank < ranks:
        wrong = f"{' and '.join(missing)} not set" if missing else "there is no such process"
        raise UsageError(
            f"RANK is {rank} and WORLD_SIZE {ranks}, but {wrong}, as if they were left over from another program. "
            "Start several processes with torchrun, or one after `unset RANK WORLD_SIZE LOCAL_RANK`"
        )
    host, port = os.environ["MASTER_ADDR"], _number("MASTER_PORT", 0)
    if not 0 < port < 1 << 16:
        raise UsageError(f"MASTER_PORT is {port}, not a port, 1 to 65535; start with torchrun, or unset it")
    place = f"{host}:{port}"
    log.info("process %d of %d; meeting the others at %s", rank, ranks, place)
    try:
        # PyTorch would wait for a name that is none.
        socket.getaddrinfo(host, port)
        with _stoppable():
            dist.init_process_group(backend)
    except (RuntimeError, ValueError, OSError) as error:
        raise NetworkError(
            f"process {rank} of {ranks} does not reach the others at {place}: {str(error).splitlines()[0]}; check "
            "MASTER_ADDR and MASTER_PORT, and that all processes run"
        ) from error


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let signals end the process at once in the block: C++ code that waits never comes back to Python's handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    former = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, former, strict=True):
            signal.signal(number, handler)


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, "").strip()
    if text and not text.isdecimal():
        raise UsageError(f"{variable} is {text!r}, not a number; start with torchrun, or unset it")
    return int(text) if text else default


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
