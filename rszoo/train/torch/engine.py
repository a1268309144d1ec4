"""The PyTorch engine: a recipe in, optimizer steps as published out. Implements `rszoo.train.engine.Engine`.

One process for each GPU under torchrun (`DistributedDataParallel`), else one process on one GPU or on the CPU. Weights,
averages and momenta are float32; with `train.precision: bfloat16`, training and evaluation compute under autocast.
Facts: tensorflow/tpu `resnet_main.py`; the tests compare every step with the TF1 graph.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from rszoo.errors import UsageError
from rszoo.evaluate.scores import Scores
from rszoo.folder.model_folder import WeightSet
from rszoo.pipeline import tensorflow_reader
from rszoo.pipeline.share import Position, Share
from rszoo.recipes.recipe import Recipe
from rszoo.train.engine import OpenEvaluation, OpenTraining, micro_batch
from rszoo.train.memory import memory_errors
from rszoo.train.torch.averages import start_averages
from rszoo.train.torch.batches import Batch, Batches
from rszoo.train.torch.groups import make_optimizer, set_learning_rate
from rszoo.train.torch.network import build_network
from rszoo.train.torch.state import TrainingState
from rszoo.train.torch.statistics import BatchStatistics
from rszoo.train.torch.world import join_world


class TorchEngine:
    """A network in training in PyTorch; `rszoo.train.engine.Engine` says what the methods mean.

    `replicas` and `readers` are the number of processes. Without averages (`optimizer.ema_decay: null`), the "ema"
    weights are the raw ones. Evaluation computes in the recipe's precision, and is not compiled.

    Args:
        recipe: the recipe.
        init: None for the published initial values, or what `rszoo.create` takes to load weights.
        classes: names of the data's classes, in the order of their labels; None if they have none. If the
            weights' classes have other names, the head is new; if only the order differs, the head is reordered.

    Raises:
        ConfigError: the batch cannot be divided by the processes, or the weights are of another architecture.
        UsageError: there are more processes than GPUs.
    """

    def __init__(self, recipe: Recipe, *, init: Any | None = None, classes: Sequence[str] | None = None) -> None:
        self._recipe = recipe
        self._world = join_world()
        self.rank, self.ranks = self._world.rank, self._world.ranks
        self.replicas = self.readers = self.ranks
        if self.rank:
            # Every process would log the same.
            logging.getLogger("rszoo").setLevel(logging.ERROR)
        self._micro_batch = micro_batch(recipe, self.replicas, "processes")
        device = self._world.device
        memory_format = torch.channels_last if recipe.train.channels_last else torch.contiguous_format
        # Typed `Any` for the overload of `to` that PyTorch's stubs lack.
        network: Any = build_network(recipe, init, classes)
        self._network = network.to(device=device, memory_format=memory_format)
        self._statistics = BatchStatistics(self._network, recipe.train.bn_momentum, self._world)
        decay = recipe.optimizer.ema_decay
        self._averages = None if decay is None else start_averages(self._network, decay)
        self._optimizer = make_optimizer(self._network, recipe.optimizer)
        self._state = TrainingState(self._network, self._averages, self._optimizer, self._world)
        self._state.start_random(recipe.train.seed)
        self._parallel = _parallel(self._network, device) if self.ranks > 1 else None
        self._forward = self._parallel or self._network
        if recipe.train.compile:
            self._forward = torch.compile(self._forward, dynamic=False)
        # All images have one size, so trying convolution algorithms pays off.
        torch.backends.cudnn.benchmark = device.type == "cuda"
        self._batches: Batches | None = None
        self._position = Position()

    def start(self, open_dataset: OpenTraining, positions: Sequence[Position]) -> None:
        """Start to read training images at each process's position; without positions, at the start.

        Raises:
            UsageError: the positions are of another number of processes.
        """
        if positions and len(positions) != self.ranks:
            raise UsageError(
                f"the data were read by {len(positions)} processes, and {self.ranks} cannot resume that; "
                f"start {len(positions)} processes"
            )
        self._close_batches()
        self._position = positions[self.rank] if positions else Position()
        tensorflow_reader.keep_off_accelerators()
        dataset = open_dataset(Share(self.rank, self.ranks), self._micro_batch, self._position)
        self._batches = Batches(dataset, self._world.device)

    def step(self, learning_rate: float) -> Tensor:
        """Take one optimizer step; return its figures, still on the device: cross-entropy and top-1 fraction.

        Raises:
            UsageError: `start` was not called.
            TrainingError: a micro-batch does not fit into the device's memory.
        """
        set_learning_rate(self._optimizer, learning_rate)
        with memory_errors(self._recipe, self._micro_batch):
            return self._step()

    def read(self, handles: Sequence[Tensor]) -> np.ndarray:
        """Return the figures of steps, over all processes: float64 (steps, 2), cross-entropy and top-1 fraction."""
        if not handles:
            return np.zeros((0, 2))
        return (self._world.sum_(torch.stack(list(handles)).double()) / self.ranks).cpu().numpy()

    def positions(self) -> list[Position]:
        """Return where each process would resume reading."""
        return self._world.gather(self._position)

    def agree(self, flag: bool) -> bool:
        """Return whether the flag is set in any process. With several, this waits for the device."""
        return self._world.any(flag)

    def state(self) -> dict[str, np.ndarray]:
        """Return all that the next step depends on, on rank 0; nothing on the others.

        Beside the common names, "step" (int64) and `random/torch/RANK/cpu` and `.../cuda` (uint8).
        """
        return self._state.export()

    def load_state(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Load a state. Random numbers of another engine or number of processes are restarted.

        Raises:
            WeightsError: a tensor is missing or misshapen.
        """
        self._state.load(tensors, self._recipe.train.seed)

    def evaluate(self, open_dataset: OpenEvaluation, weights: WeightSet) -> Scores:
        """Count the accuracy over all processes' shares, each image once."""
        network = self._chosen(weights)
        trains = network.training
        scores = Scores.empty(self._recipe.model.num_classes)
        tensorflow_reader.keep_off_accelerators()
        dataset = open_dataset(Share(self.rank, self.ranks), self._recipe.evaluation.batch_size)
        batches = Batches(dataset, self._world.device)
        try:
            with torch.inference_mode(), self._precision():
                network.eval()
                for batch in batches:
                    logits = network(self._laid_out(batch.images)).float().cpu().numpy()
                    scores.add(logits, batch.host["label"], batch.host["weight"])
        finally:
            network.train(trains)
            batches.close()
        counts = self._world.sum_(torch.from_numpy(scores.to_array()).to(self._world.device))
        return Scores.from_array(counts.cpu().numpy(), self._recipe.model.num_classes)

    def network(self, weights: WeightSet) -> nn.Module:
        """Return the network itself, not a copy, for `rszoo.save`."""
        return self._chosen(weights)

    def close(self) -> None:
        """Stop reading, and leave the other processes."""
        self._close_batches()
        self._world.leave()

    def _chosen(self, weights: WeightSet) -> nn.Module:
        return self._network if weights == "raw" or self._averages is None else self._averages.module

    def _next_batch(self) -> Batch:
        if self._batches is None:
            raise UsageError("step() needs images; call start() before")
        batch = next(self._batches, None)
        if batch is None:
            raise UsageError("the training images have ended, but training takes an endless dataset; repeat it")
        epoch, group, image = (int(value) for value in batch.host["position"][-1])
        self._position = Position(epoch, group, image + 1)
        return batch

    def _step(self) -> Tensor:
        count = self._recipe.train.accumulate
        figures = torch.zeros(2, device=self._world.device)
        self._statistics.begin()
        for number in range(1, count + 1):
            with self._unsynchronized() if number < count else nullcontext():
                figures += self._backward(self._next_batch()) / count
            if number < count:
                self._statistics.collect()
        self._statistics.finish()
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._averages is not None:
            self._averages.update_parameters(self._network)
        self._state.steps += 1
        return figures

    def _backward(self, batch: Batch) -> Tensor:
        """Add a micro-batch's share to the gradients; return its cross-entropy and top-1 fraction."""
        with self._precision():
            logits = self._forward(self._laid_out(batch.images))
        logits = logits.float()
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self._recipe.optimizer.label_smoothing)
        (loss / self._recipe.train.accumulate).backward()
        return torch.stack([loss.detach(), (logits.detach().argmax(1) == batch.labels).float().mean()])

    def _laid_out(self, images: Tensor) -> Tensor:
        return images if self._recipe.train.channels_last else images.contiguous()

    def _precision(self) -> AbstractContextManager[Any]:
        bfloat16 = self._recipe.train.precision == "bfloat16"
        return torch.autocast(self._world.device.type, torch.bfloat16, enabled=bfloat16)

    def _unsynchronized(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._parallel is None else self._parallel.no_sync()

    def _close_batches(self) -> None:
        if self._batches is not None:
            self._batches.close()
            self._batches = None


def _parallel(network: nn.Module, device: torch.device) -> DistributedDataParallel:
    # Each device keeps its own statistics within a step; `BatchStatistics` brings them together.
    ids = [device] if device.type == "cuda" else None
    known = inspect.signature(DistributedDataParallel).parameters
    # The former name is deprecated since PyTorch 2.13.
    broadcast = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    settings: dict[str, Any] = {broadcast: False}
    return DistributedDataParallel(network, device_ids=ids, gradient_as_bucket_view=True, **settings)
