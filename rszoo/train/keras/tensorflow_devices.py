"""Where the Keras engine computes on TensorFlow: a `tf.distribute` strategy, its variables and its data.

Which strategy: `TPUStrategy` where there is a TPU, `MultiWorkerMirroredStrategy` where TF_CONFIG names several workers,
`MirroredStrategy` on several GPUs (or several virtual CPUs), else TensorFlow's default. TPUs and GPUs were not at hand
when this was written: what ran are one and several virtual CPUs, and several processes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import tensorflow as tf

from rszoo.errors import UsageError
from rszoo.pipeline.share import Position, Share
from rszoo.recipes.recipe import Recipe
from rszoo.train.engine import OpenTraining
from rszoo.train.keras.network import TrainingNetwork
from rszoo.train.keras.step import CHANGING, State, StepFunctions
from rszoo.train.keras.tf_config import process_place


class TensorflowDevices:
    """The devices of a strategy. `ranks` counts processes, `readers` the places that read data, `local` own replicas.

    On a TPU slice one process drives all hosts: there is one rank, and each host reads for its own cores.
    """

    def __init__(self) -> None:
        self.rank, self.ranks = process_place(os.environ.get("TF_CONFIG"))
        self._strategy = _choose_strategy(self.ranks)
        self._is_tpu = isinstance(self._strategy, tf.distribute.TPUStrategy)
        self.replicas = self._strategy.num_replicas_in_sync
        self.readers = self._strategy.extended.num_hosts if self._is_tpu else self.ranks
        self.local = self.replicas // self.ranks
        # Micro-batches that draw for themselves at a time.
        self.counters = self.replicas
        self._positions: Any = None
        self._iterator: Any = None

    def scope(self) -> AbstractContextManager[Any]:
        """Return the scope in which variables are made."""
        scope: AbstractContextManager[Any] = self._strategy.scope()
        return scope

    def prepare(self, network: TrainingNetwork, recipe: Recipe) -> None:
        """Take a network that was built in `scope`, and make the other variables of a step."""
        self._functions = StepFunctions(network, recipe, _value_and_gradients, tf.recompute_grad)
        state: State = {
            kind: [variable.value for variable in some.values()]
            for kind, some in (("moved", network.moved), ("statistics", network.statistics), ("fixed", network.fixed))
        }
        averaged = recipe.optimizer.ema_decay is not None
        with self.scope():
            state["momentum"] = [tf.Variable(tf.zeros(v.shape), trainable=False) for v in state["moved"]]
            for kind in ("moved", "statistics"):
                values = state[kind] if averaged else []
                state[f"ema_{kind}"] = [tf.Variable(v.numpy(), trainable=False) for v in values]
        self._state, self._compute = state, self._functions.micro_batches
        if recipe.train.compile and not self._is_tpu:
            self._compute = tf.function(self._compute, autograph=False, jit_compile=True)
        self._step = tf.function(self._distributed_step, autograph=False)
        self._evaluate = tf.function(self._distributed_logits, autograph=False)

    def start(
        self, open_dataset: OpenTraining, positions: Sequence[Position], micro_batch: int, accumulate: int
    ) -> None:
        """Start to read; each element that `step` takes has `accumulate` micro-batches for each replica."""

        def open_share(context: Any) -> Any:
            share = Share(context.input_pipeline_id, context.num_input_pipelines)
            dataset = open_dataset(share, micro_batch, positions[share.index])
            return dataset.batch(accumulate, drop_remainder=True)

        self._iterator = iter(self._strategy.distribute_datasets_from_function(open_share))

    def step(self, rate: float, decay: float, counter: int) -> Any:
        """Take a step on the next elements; return the figures, which may not be there yet."""
        batch = next(self._iterator)
        self._positions = batch.pop("position")
        return self._step(batch, tf.constant(rate), tf.constant(decay), tf.constant(counter, tf.int64))

    def read(self, handles: Sequence[Any]) -> np.ndarray:
        """Return figures as numpy, float32 (steps, 2)."""
        return tf.stack(list(handles)).numpy() if handles else np.zeros((0, 2), np.float32)

    def last_images(self) -> list[np.ndarray]:
        """Return the positions, int64 (3,), of the last images that each reader of this process has given to `step`."""
        values = self._strategy.experimental_local_results(self._positions)
        readers = self.readers // self.ranks
        # A reader's batches go to its replicas in turn, so its last image is on the last of them.
        return [values[(index + 1) * len(values) // readers - 1][-1, -1].numpy() for index in range(readers)]

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Add up int64 arrays over all processes."""
        if self.ranks == 1:
            return values
        zeros = np.zeros_like(values)

        def of_replica(context: Any) -> Any:
            return tf.constant(zeros if context.replica_id_in_sync_group % self.local else values)

        given = self._strategy.experimental_distribute_values_from_function(of_replica)
        total: np.ndarray = self._strategy.reduce(tf.distribute.ReduceOp.SUM, given, axis=None).numpy()
        return total

    def logits(self, images: np.ndarray, averaged: bool) -> Any:
        """Start to compute logits of images (N, H, W, C); `to_numpy` waits for them. N is a multiple of `local`."""
        parts = np.split(images, self.local)
        given = self._strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(parts[context.replica_id_in_sync_group % self.local])
        )
        return self._evaluate(given, averaged)

    def to_numpy(self, logits: Any) -> np.ndarray:
        """Return logits as numpy, float32 (N, classes)."""
        return np.concatenate([part.numpy() for part in self._strategy.experimental_local_results(logits)])

    def fetch(self) -> dict[str, list[np.ndarray]]:
        """Return copies of the whole state."""
        return {kind: [variable.numpy() for variable in some] for kind, some in self._state.items()}

    def load(self, values: Mapping[str, list[np.ndarray]]) -> None:
        """Replace the state."""
        for kind, some in values.items():
            for variable, value in zip(self._state[kind], some, strict=True):
                variable.assign(value)

    def close(self) -> None:
        """Stop reading."""
        self._iterator = None

    def _distributed_step(self, batch: Any, rate: Any, decay: Any, counter: Any) -> Any:
        figures = self._strategy.run(self._replica_step, args=(batch, rate, decay, counter))
        return self._strategy.experimental_local_results(figures)[0]

    def _replica_step(self, batch: Any, rate: Any, decay: Any, counter: Any) -> Any:
        context = tf.distribute.get_replica_context()
        state = {kind: [tf.convert_to_tensor(v) for v in some] for kind, some in self._state.items()}
        # No two micro-batches have the same counter: those of a replica come one after the other.
        counter += tf.cast(context.replica_id_in_sync_group, tf.int64) * batch["image"].shape[0]
        result = self._compute(state, batch["image"], batch["label"], counter)
        if self.replicas > 1:
            result = context.all_reduce(tf.distribute.ReduceOp.MEAN, result)
        gradients, statistics, figures = result
        new = self._functions.update(state, gradients, statistics, rate, decay)
        context.merge_call(self._assign, args=([new[kind] for kind in CHANGING],))
        return figures

    def _assign(self, strategy: Any, new: list[list[Any]]) -> None:
        """Give each replica's variables what it has computed itself: it is the same in all."""
        for kind, values in zip(CHANGING, new, strict=True):
            for variable, value in zip(self._state[kind], values, strict=True):
                strategy.extended.update(variable, _set, args=(value,))

    def _distributed_logits(self, images: Any, averaged: bool) -> Any:
        return self._strategy.run(self._replica_logits, args=(images, averaged))

    def _replica_logits(self, images: Any, averaged: bool) -> Any:
        prefix = "ema_" if averaged else ""
        chosen = {"moved": f"{prefix}moved", "statistics": f"{prefix}statistics", "fixed": "fixed"}
        state = {kind: [tf.convert_to_tensor(v) for v in self._state[name]] for kind, name in chosen.items()}
        return self._functions.logits(state, images)


def _set(variable: Any, value: Any) -> Any:
    return variable.assign(value)


def _value_and_gradients(function: Any) -> Any:
    def both(tensors: list[Any], *others: Any) -> tuple[Any, list[Any]]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(tensors)
            loss, more = function(tensors, *others)
        return (loss, more), tape.gradient(loss, tensors)

    return both


def _choose_strategy(processes: int) -> Any:
    # First: collective operations must be set up before anything else runs.
    if processes > 1:
        return tf.distribute.MultiWorkerMirroredStrategy()
    tpu = os.environ.get("TPU_NAME") or ("local" if tf.config.list_physical_devices("TPU") else None)
    if tpu is not None:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=tpu)
        if tpu != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    for kind in ("GPU", "CPU"):
        devices = [device.name for device in tf.config.list_logical_devices(kind)]
        if len(devices) > 1:
            return tf.distribute.MirroredStrategy(devices)
        if devices:
            return tf.distribute.get_strategy()
    raise UsageError("TensorFlow sees neither a CPU nor a GPU nor a TPU here; set CUDA_VISIBLE_DEVICES or TPU_NAME")
