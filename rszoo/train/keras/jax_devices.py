"""Where the Keras engine computes on JAX: `keras.distribution.DataParallel` over all devices of all processes.

One program computes on the global batch, of which each device has its part. So batch normalization sees the whole
micro-batch of all devices, and not each device's own as in the published training: with 8 devices and 4096 images, 4096
images where it were 512. TPUs and GPUs were not at hand when this was written: what ran are one and several virtual
CPUs, and several processes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import jax
import keras
import numpy as np
from jax import numpy as jnp
from jax.experimental import multihost_utils

from rszoo.pipeline.share import Position, Share
from rszoo.recipes.recipe import Recipe
from rszoo.train.engine import OpenTraining
from rszoo.train.keras.network import TrainingNetwork
from rszoo.train.keras.step import State, StepFunctions


class JaxDevices:
    """The devices of a `DataParallel` distribution; attributes as those of `TensorflowDevices`.

    Several processes join by Keras's variables (KERAS_DISTRIBUTION_JOB_ADDRESSES and so on), or, on the hosts of a TPU
    slice, by what JAX finds there.
    """

    def __init__(self) -> None:
        _join()
        # The input pipeline is TensorFlow's, which would take the accelerators away from JAX.
        from rszoo.pipeline.tensorflow_reader import keep_off_accelerators

        keep_off_accelerators()
        self._distribution = keras.distribution.DataParallel(auto_shard_dataset=False)
        self.rank, self.ranks = jax.process_index(), jax.process_count()
        self.replicas = self._distribution.device_mesh.devices.size
        self.readers = self.ranks
        self.local = jax.local_device_count()
        # The draws of the global micro-batch are one, however many devices have a part of it.
        self.counters = 1
        mesh = self._distribution.device_mesh
        self._batches = keras.distribution.TensorLayout([None, self._distribution.batch_dim_name], mesh).backend_layout
        self._everywhere = keras.distribution.TensorLayout([], mesh).backend_layout
        self._own_mesh = jax.sharding.Mesh(np.array(jax.local_devices()), ("batch",))
        self._iterator: Any = None

    def scope(self) -> AbstractContextManager[Any]:
        """Return the scope in which variables are made."""
        scope: AbstractContextManager[Any] = self._distribution.scope()
        return scope

    def prepare(self, network: TrainingNetwork, recipe: Recipe) -> None:
        """Take a network that was built in `scope`. Its variables lose their values to the step's state."""
        gradients = partial(jax.value_and_grad, has_aux=True)
        self._functions = StepFunctions(network, recipe, gradients, jax.checkpoint)
        state: State = {
            kind: [jax.device_put(variable.value, self._everywhere) for variable in some.values()]
            for kind, some in (("moved", network.moved), ("statistics", network.statistics), ("fixed", network.fixed))
        }
        averaged = recipe.optimizer.ema_decay is not None
        state["momentum"] = [jnp.zeros_like(value) for value in state["moved"]]
        for kind in ("moved", "statistics"):
            state[f"ema_{kind}"] = [jnp.copy(value) for value in state[kind]] if averaged else []
        self._fixed = state.pop("fixed")
        self._state = state
        # Always compiled, whatever `train.compile` says: JAX has no other way.
        self._step = jax.jit(self._whole_step, donate_argnums=0, out_shardings=self._everywhere)
        self._evaluate = jax.jit(self._functions.logits)

    def start(
        self, open_dataset: OpenTraining, positions: Sequence[Position], micro_batch: int, accumulate: int
    ) -> None:
        """Start to read; each element that `step` takes has `accumulate` micro-batches for each device."""
        dataset = open_dataset(Share(self.rank, self.ranks), micro_batch * self.local, positions[self.rank])
        self._iterator = dataset.batch(accumulate, drop_remainder=True).prefetch(2).as_numpy_iterator()

    def step(self, rate: float, decay: float, counter: int) -> Any:
        """Take a step on the next elements; return the figures, which may not be there yet."""
        batch = next(self._iterator)
        self._last = batch["position"][-1, -1]
        images, labels = (
            jax.make_array_from_process_local_data(self._batches, batch[name]) for name in ("image", "label")
        )
        scalars = np.float32(rate), np.float32(decay), np.uint32(counter % 2**32)
        self._state, figures = self._step(self._state, self._fixed, images, labels, *scalars)
        return figures

    def read(self, handles: Sequence[Any]) -> np.ndarray:
        """Return figures as numpy, float32 (steps, 2)."""
        return np.stack([np.asarray(handle) for handle in handles]) if handles else np.zeros((0, 2), np.float32)

    def last_images(self) -> list[np.ndarray]:
        """Return the position, int64 (3,), of the last image that this process has given to `step`."""
        return [self._last]

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Add up int64 arrays over all processes."""
        if self.ranks == 1:
            return values
        # As bytes: JAX has no int64 unless it is told to.
        gathered = np.asarray(multihost_utils.process_allgather(np.ascontiguousarray(values).view(np.uint8)))
        return gathered.view(np.int64).reshape(self.ranks, *values.shape).sum(0)

    def logits(self, images: np.ndarray, averaged: bool) -> Any:
        """Start to compute logits of images (N, H, W, C); `to_numpy` waits for them. N is a multiple of `local`."""
        prefix = "ema_" if averaged else ""
        chosen = {"moved": self._state[f"{prefix}moved"], "statistics": self._state[f"{prefix}statistics"]}
        own = jax.tree.map(self._own, {**chosen, "fixed": self._fixed})
        layout = jax.sharding.NamedSharding(self._own_mesh, jax.sharding.PartitionSpec("batch"))
        return self._evaluate(own, jax.device_put(images, layout))

    def to_numpy(self, logits: Any) -> np.ndarray:
        """Return logits as numpy, float32 (N, classes)."""
        return np.asarray(logits)

    def fetch(self) -> dict[str, list[np.ndarray]]:
        """Return copies of the whole state."""
        fetched: dict[str, list[np.ndarray]] = jax.tree.map(np.array, {**self._state, "fixed": self._fixed})
        return fetched

    def load(self, values: Mapping[str, list[np.ndarray]]) -> None:
        """Replace the state."""
        placed = {
            kind: [jax.device_put(np.asarray(value), self._everywhere) for value in some]
            for kind, some in values.items()
        }
        self._fixed = placed.pop("fixed")
        self._state = placed

    def close(self) -> None:
        """Stop reading."""
        self._iterator = None

    def _whole_step(
        self, state: State, fixed: list[Any], images: Any, labels: Any, rate: Any, decay: Any, counter: Any
    ) -> tuple[State, Any]:
        gradients, statistics, figures = self._functions.micro_batches(
            {**state, "fixed": fixed}, images, labels, counter
        )
        return self._functions.update(state, gradients, statistics, rate, decay), figures

    def _own(self, value: Any) -> Any:
        """Return this process's copy of a value as an array on its own devices: others need not take part."""
        layout = jax.sharding.NamedSharding(self._own_mesh, jax.sharding.PartitionSpec())
        copies = [shard.data for shard in value.addressable_shards]
        return jax.make_array_from_single_device_arrays(value.shape, layout, copies)


def _join() -> None:
    """Join the other processes, if there are any; once in a process."""
    if jax.distributed.is_initialized():
        return
    if os.environ.get("KERAS_DISTRIBUTION_JOB_ADDRESSES"):
        keras.distribution.initialize()
    elif "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
        jax.distributed.initialize()
