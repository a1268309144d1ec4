"""The Keras engine: a recipe in, optimizer steps as published out. Implements `rszoo.train.engine.Engine`.

On TensorFlow (TPU, GPUs and several workers by `tf.distribute`) or JAX (`keras.distribution`), as KERAS_BACKEND says.
Weights, averages and momenta are float32; with `train.precision: bfloat16` Keras's policy mixed_bfloat16 computes.
A step depends only on weights and the number of steps: dropout's draws follow from the seed and that number.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rszoo.arch.names import to_tf_layout, to_torch_layout, torch_name, torch_shape
from rszoo.arch.walk import TensorSpec
from rszoo.errors import UsageError
from rszoo.evaluate.scores import Scores
from rszoo.folder.model_folder import WeightSet
from rszoo.models.adapt import keras_weights
from rszoo.models.factory import import_model_module
from rszoo.pipeline.share import Position, Share
from rszoo.recipes.recipe import Recipe
from rszoo.recipes.schedule import ema_decay
from rszoo.train.engine import OpenEvaluation, OpenTraining, micro_batch
from rszoo.train.memory import memory_errors
from rszoo.train.state import check_state

_BACKENDS = ("tensorflow", "jax")


class KerasEngine:
    """A network in training in Keras; `rszoo.train.engine.Engine` says what the methods mean.

    `replicas` counts devices, over all processes; `readers` the places that read training images (the processes; on a
    TPU slice under TensorFlow the hosts). Without averages (`optimizer.ema_decay: null`), the "ema" weights are the
    raw ones. `train.channels_last` has no effect: Keras always uses that layout. On JAX batch normalization sees the
    micro-batches of all devices as one, and `train.compile` is always on.

    Args:
        recipe: the recipe.
        init: None for the published initial values, or what `rszoo.create` takes to load weights.
        classes: names of the data's classes, in the order of their labels; None if they have none. If the
            weights' classes have other names, the head is new; if only the order differs, the head is reordered.

    Raises:
        ConfigError: the batch cannot be divided by the devices, or the weights are of another architecture.
        UsageError: KERAS_BACKEND is neither tensorflow nor jax.
        MissingPackageError: Keras or its backend is not installed.
    """

    def __init__(self, recipe: Recipe, *, init: Any | None = None, classes: Sequence[str] | None = None) -> None:
        self._recipe = recipe
        self._devices = _find_devices()
        self.rank, self.ranks = self._devices.rank, self._devices.ranks
        self.replicas, self.readers = self._devices.replicas, self._devices.readers
        if self.rank:
            # Every process would log the same.
            logging.getLogger("rszoo").setLevel(logging.ERROR)
        self._micro_batch = micro_batch(recipe, self.replicas, "devices")
        from rszoo.train.keras.network import build_network, start_values

        weights, origin = start_values(recipe, init, classes)
        with self._devices.scope():
            self._network = build_network(recipe, weights, origin)
        self._devices.prepare(self._network, recipe)
        self._steps = 0
        self._positions: list[Position] = []
        self._has_read = False

    def start(self, open_dataset: OpenTraining, positions: Sequence[Position]) -> None:
        """Start to read training images at each reader's position; without positions, at the start.

        Raises:
            UsageError: the positions are of another number of readers.
        """
        self._positions = list(positions) or [Position()] * self.readers
        if len(self._positions) != self.readers:
            raise UsageError(
                f"the data were read by {len(positions)} readers, and {self.readers} cannot resume that; start as many "
                "processes, or TPU hosts, as before"
            )
        self._devices.start(open_dataset, self._positions, self._micro_batch, self._recipe.train.accumulate)
        self._has_read = False

    def step(self, learning_rate: float) -> Any:
        """Take one optimizer step; return a handle on its figures, which `read` waits for.

        Raises:
            UsageError: `start` was not called.
            TrainingError: a micro-batch does not fit into a device's memory.
        """
        if not self._positions:
            raise UsageError("step() needs images; call start() before")
        decay = self._recipe.optimizer.ema_decay
        counter = self._steps * self._devices.counters * self._recipe.train.accumulate
        self._steps += 1
        self._has_read = True
        average = 0.0 if decay is None else ema_decay(decay, self._steps)
        with memory_errors(self._recipe, self._micro_batch):
            return self._devices.step(learning_rate, average, counter)

    def read(self, handles: Sequence[Any]) -> np.ndarray:
        """Return the figures of steps, over all processes: float64 (steps, 2), cross-entropy and top-1 fraction."""
        # JAX may find only here that the memory does not suffice.
        with memory_errors(self._recipe, self._micro_batch):
            return self._devices.read(handles).astype(np.float64)

    def positions(self) -> list[Position]:
        """Return where each reader would resume."""
        if not self._has_read:
            return list(self._positions)
        own = self._devices.last_images()
        places = np.zeros((self.ranks, len(own), 3), np.int64)
        places[self.rank] = own
        last = self._devices.sum(places).reshape(-1, 3).tolist()
        return [Position(epoch, group, image + 1) for epoch, group, image in last]

    def agree(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return bool(self._devices.sum(np.array([int(flag)], np.int64))[0])

    def state(self) -> dict[str, np.ndarray]:
        """Return all that the next step depends on; every process gets it all."""
        values = self._devices.fetch()
        tensors = {name: _torch_form(spec, values[kind][index]) for name, kind, index, spec in self._entries()}
        return {**tensors, "step": np.array(self._steps, np.int64)}

    def load_state(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Load a state of any engine and number of processes.

        Raises:
            WeightsError: a tensor is missing or misshapen; nothing was changed.
        """
        entries = list(self._entries())
        check_state(tensors, {name: torch_shape(spec) for name, _, _, spec in entries})
        values = self._devices.fetch()
        for name, kind, index, spec in entries:
            if kind == "fixed" and not name.startswith("model/"):
                continue
            values[kind][index] = np.ascontiguousarray(to_tf_layout(spec.kind, tensors[name]), np.float32)
        self._devices.load(values)
        self._steps = int(tensors["step"])

    def evaluate(self, open_dataset: OpenEvaluation, weights: WeightSet) -> Scores:
        """Count the accuracy over all processes' shares, each image once."""
        averaged, local = self._averaged(weights), self._devices.local
        classes = self._recipe.model.num_classes
        scores = Scores.empty(classes)
        # Each of the devices takes the same part of a batch.
        size = -(-self._recipe.evaluation.batch_size // local) * local
        waiting: tuple[Any, Any] | None = None
        for batch in open_dataset(Share(self.rank, self.ranks), size).as_numpy_iterator():
            computing = self._devices.logits(batch["image"], averaged), batch
            # Counted one batch later, so that the devices have work while the next images are read.
            self._count(scores, waiting)
            waiting = computing
        self._count(scores, waiting)
        return Scores.from_array(self._devices.sum(scores.to_array()), classes)

    def network(self, weights: WeightSet) -> Any:
        """Return a new model of stock layers, float32, with the values as they are now, for `rszoo.save`."""
        from rszoo.models.keras_resnet_rs import build_model

        prefix = "ema/" if self._averaged(weights) else "model/"
        state = self.state()
        tensors = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        arch = self._recipe.model
        model = build_model(arch, keras_weights(tensors, arch))
        model.config, model.origin = arch, self._network.origin
        model.preprocessing = self._recipe.data.preprocessing
        return model

    def close(self) -> None:
        """Stop reading."""
        self._devices.close()

    def _averaged(self, weights: WeightSet) -> bool:
        return weights == "ema" and self._recipe.optimizer.ema_decay is not None

    def _count(self, scores: Scores, computed: tuple[Any, Any] | None) -> None:
        if computed is not None:
            logits, batch = computed
            scores.add(self._devices.to_numpy(logits), batch["label"], batch["weight"])

    def _entries(self) -> Iterator[tuple[str, str, int, TensorSpec]]:
        """Yield each name of a state, and where its values are: kind of the step's state, index, spec."""
        network, settings = self._network, self._recipe.optimizer
        for kind, specs in (("moved", network.moved), ("statistics", network.statistics), ("fixed", network.fixed)):
            for index, spec in enumerate(specs):
                yield f"model/{torch_name(spec)}", kind, index, spec
                if settings.ema_decay is not None:
                    # What is fixed is its own average.
                    yield f"ema/{torch_name(spec)}", kind if kind == "fixed" else f"ema_{kind}", index, spec
                if kind == "moved" and settings.momentum:
                    yield f"momentum/{torch_name(spec)}", "momentum", index, spec


def _find_devices() -> Any:
    import_model_module("keras")
    import keras

    backend = keras.backend.backend()
    if backend not in _BACKENDS:
        raise UsageError(
            f"Keras runs on {backend}, on which the Keras engine does not train; set KERAS_BACKEND to tensorflow or "
            "jax, or use --framework torch"
        )
    if backend == "jax":
        from rszoo.train.keras.jax_devices import JaxDevices

        return JaxDevices()
    from rszoo.train.keras.tensorflow_devices import TensorflowDevices

    return TensorflowDevices()


def _torch_form(spec: TensorSpec, values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(to_torch_layout(spec.kind, values), np.float32)
