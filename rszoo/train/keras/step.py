"""The arithmetic of one optimizer step in Keras, as pure functions of tensors: values in, new values out.

The same for TensorFlow and JAX, which differ in how they take gradients and in where the values live. Facts:
tensorflow/tpu `models/official/resnet/resnet_main.py` (loss, L2, momentum, averages). What TF1's `MomentumOptimizer`
does with Nesterov is accum = momentum * accum + g; w -= rate * (g + momentum * accum): Keras's own SGD keeps the rate
inside its velocity, which is another rule as soon as the rate changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from rszoo.arch.layer_groups import rate_factor
from rszoo.recipes.recipe import Recipe
from rszoo.train.keras.network import TrainingNetwork

#: Lists of tensors or variables by what they are: `moved`, `statistics` and `fixed` as in `TrainingNetwork`;
#: `momentum` and `ema_moved` go with `moved`, `ema_statistics` with `statistics`. Without averages the last two are
#: empty.
State = dict[str, list[Any]]
#: What a step changes.
CHANGING = ("moved", "statistics", "momentum", "ema_moved", "ema_statistics")
#: Of a function (tensors, ...) -> (loss, more): a function that returns that, and the gradients for the tensors.
ValueAndGradients = Callable[[Callable[..., Any]], Callable[..., Any]]
#: Of a function of tensors: one that computes its inner values again for the gradients.
Recompute = Callable[[Callable[..., Any]], Callable[..., Any]]


class StepFunctions:
    """What a step computes, for a network and a recipe."""

    def __init__(
        self, network: TrainingNetwork, recipe: Recipe, gradients: ValueAndGradients, recompute: Recompute
    ) -> None:
        self._network, self._recipe = network, recipe
        self._gradients = gradients(self._loss)
        self._recompute = recompute
        self._variables = {
            "moved": list(network.moved.values()),
            "statistics": list(network.statistics.values()),
            "fixed": list(network.fixed.values()),
        }
        # The seed of each dropout layer, besides which its draws depend on the counter alone.
        drawn = np.random.SeedSequence(recipe.train.seed).generate_state(max(1, len(network.seeds)))
        self._seeds = [int(seed) for seed in drawn[: len(network.seeds)]]
        settings = recipe.optimizer
        self._rates = [rate_factor(spec, settings.layer_decay) for spec in network.moved]
        self._decays = [0.0 if spec.kind.layer_type == "bn" else settings.weight_decay for spec in network.moved]

    def micro_batches(self, state: State, images: Any, labels: Any, counter: Any) -> tuple[list[Any], list[Any], Any]:
        """Return the mean over micro-batches of gradients (without L2), moving statistics, and the figures (2,).

        Args:
            state: `moved`, `statistics` and `fixed`; every micro-batch starts from the same.
            images: float32 (micro-batches, N, H, W, C).
            labels: int32 (micro-batches, N).
            counter: whole number that no other step, replica or of the next micro-batches has; decides the dropout.
        """

        def one(index: Any) -> tuple[list[Any], list[Any], Any]:
            batch = images[index], labels[index], ops.add(counter, ops.cast(index, counter.dtype))
            (loss, (statistics, right)), gradients = self._gradients(state["moved"], state, *batch)
            return gradients, statistics, ops.stack([loss, right])

        count = images.shape[0]
        if count == 1:
            return one(0)
        zeros = [ops.zeros(v.shape) for v in state["moved"]], [ops.zeros(v.shape) for v in state["statistics"]]
        total = ops.fori_loop(
            0, count, lambda index, sums: keras.tree.map_structure(ops.add, sums, one(index)), (*zeros, ops.zeros((2,)))
        )
        return keras.tree.map_structure(lambda value: ops.divide(value, float(count)), total)

    def update(self, state: State, gradients: list[Any], statistics: list[Any], rate: Any, decay: Any) -> State:
        """Return the `CHANGING` values after the step. `gradients`, `statistics`: the means over all micro-batches.

        `rate`: the learning rate. `decay`: that of the averages in this step. Both float32 of no axes.
        """
        settings = self._recipe.optimizer
        new: State = {"moved": [], "momentum": [], "statistics": statistics}
        given = zip(state["moved"], state["momentum"], gradients, self._rates, self._decays, strict=True)
        for value, momentum, gradient, factor, weight_decay in given:
            if weight_decay:
                gradient = gradient + weight_decay * value
            momentum = settings.momentum * momentum + gradient
            direction = gradient + settings.momentum * momentum if settings.nesterov else momentum
            new["moved"].append(value - (rate * factor if factor != 1 else rate) * direction)
            new["momentum"].append(momentum)
        for kind in ("moved", "statistics"):
            # TensorFlow's form, in which the average of an unchanged value is exact.
            pairs = zip(state[f"ema_{kind}"], new[kind], strict=False)
            new[f"ema_{kind}"] = [average - (1 - decay) * (average - value) for average, value in pairs]
        return new

    def logits(self, state: State, images: Any) -> Any:
        """Return logits (N, classes), float32, as in evaluation."""
        with keras.StatelessScope(self._mapping(state)):
            return ops.cast(self._network.model(images, training=False), "float32")

    def _mapping(self, state: State) -> list[tuple[Any, Any]]:
        return [pair for kind, some in self._variables.items() for pair in zip(some, state[kind], strict=True)]

    def _loss(self, moved: list[Any], state: State, images: Any, labels: Any, counter: Any) -> tuple[Any, Any]:
        """Return the cross-entropy, and beside it the moving statistics and the top-1 fraction."""
        mapping = self._mapping({**state, "moved": moved})
        for variable, seed in zip(self._network.seeds, self._seeds, strict=True):
            pair = ops.stack([ops.convert_to_tensor(seed, variable.dtype), ops.cast(counter, variable.dtype)])
            mapping.append((variable, pair))
        with keras.StatelessScope(mapping) as scope:
            logits = ops.cast(self._call(images, scope), "float32")
        classes, smoothing = self._recipe.model.num_classes, self._recipe.optimizer.label_smoothing
        targets = ops.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
        loss = -ops.mean(ops.sum(targets * ops.log_softmax(logits), axis=-1))
        right = ops.mean(ops.cast(ops.equal(ops.argmax(logits, axis=-1), ops.cast(labels, "int32")), "float32"))
        return loss, ([scope.get_current_value(variable) for variable in self._variables["statistics"]], right)

    def _call(self, images: Any, scope: keras.StatelessScope) -> Any:
        model = self._network.model
        if not self._recipe.train.gradient_checkpointing:
            return model(images, training=True)
        x = images
        # At the top level the model is a chain; blocks are models of their own.
        for layer in model.layers[1:]:
            x = self._recomputed(layer, x, scope) if isinstance(layer, keras.Model) else layer(x, training=True)
        return x

    def _recomputed(self, block: keras.Model, x: Any, scope: keras.StatelessScope) -> Any:
        """Call a block so that only its input is kept for the gradients."""
        variables = block.variables
        changing = [variable for variable in variables if any(variable is v for v in self._variables["statistics"])]

        def call(x: Any, *values: Any) -> Any:
            with keras.StatelessScope(list(zip(variables, values, strict=True))) as inner:
                y = block(x, training=True)
            return (y, *(inner.get_current_value(variable) for variable in changing))

        y, *statistics = self._recompute(call)(x, *(scope.get_current_value(variable) for variable in variables))
        for update in zip(changing, statistics, strict=True):
            scope.add_update(update)
        return y
