"""Optimizer steps of the TF1 graph from given weights: the reference for both engines.

The graph is `rszoo.verify.tf1_graph.build_training`: TensorFlow's own `MomentumOptimizer` and
`ExponentialMovingAverage`, L2 in the loss. Its names are TensorFlow's own; here they become the engines'.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.formats.tf1 import tf1_names
from rszoo.arch.config import ArchConfig
from rszoo.arch.names import to_tf_layout, to_torch_layout, torch_name
from rszoo.arch.walk import Initial, Kind, TensorSpec, iter_tensors

#: TensorFlow's names for what belongs to a variable, by the engines' prefix.
_SUFFIXES = {"model": "", "ema": "/ExponentialMovingAverage", "momentum": "/Momentum"}


@dataclass(frozen=True)
class Tf1Steps:
    """`losses`: float64 (steps,), cross-entropy and L2, before each step. `states`: all variables after chosen steps.

    States are by canonical name, `model/NAME`, `ema/NAME` and `momentum/NAME`, in PyTorch's layout, float32.
    """

    losses: np.ndarray
    states: dict[int, dict[str, np.ndarray]]


def random_weights(config: ArchConfig, *, calm: bool = False) -> dict[str, np.ndarray]:
    """Return weights by PyTorch's key and in its layout that let gradients into every tensor.

    With the published initial values most gradients would be 0, as every block starts as its shortcut. The residual
    branches are small, as in trained networks, for else rounding errors grow with every block.

    `calm`: normalizations lift nearly all values above the kink of the ReLU behind them. Else, within some ten steps,
    one lies so near it that rounding decides, and from then on two correct computations differ.
    """
    rng = np.random.default_rng(0)
    values = {spec: _values(spec, rng) for spec in iter_tensors(config)}
    for spec in values if calm else ():
        if spec.kind is Kind.GAMMA:
            values[spec] *= np.float32(0.3)
        elif spec.kind is Kind.BETA:
            values[spec] += np.float32(1)
    return {torch_name(spec): to_torch_layout(spec.kind, array).copy() for spec, array in values.items()}


def run_tf1_steps(
    config: ArchConfig,
    weights: Mapping[str, np.ndarray],
    batches: Sequence[tuple[np.ndarray, np.ndarray]],
    rates: Sequence[float],
    *,
    keep: Sequence[int],
) -> Tf1Steps:
    """Take a step for each batch, of images (N, H, W, C) float32 and labels (N,), and learning rate.

    Averages start as the weights, momenta at 0. `keep`: the numbers of steps, from 1, after which all is returned.
    """
    import tensorflow.compat.v1 as tf

    training, session = _training(config)
    named = dict(zip(tf1_names(iter_tensors(config)), iter_tensors(config), strict=True))
    losses, states = [], {}
    with training.graph.as_default():
        variables = {variable.op.name: variable for variable in tf.global_variables()}
        # One run for all: each further run of a graph this size costs a tenth of a second.
        feed = {
            variables[name + suffix].initializer.inputs[1]: to_tf_layout(spec.kind, weights[torch_name(spec)])
            for name, spec in named.items()
            for suffix in ("", _SUFFIXES["ema"])
        }
        session.run([variable.initializer for variable in variables.values()], feed)
        for number, ((images, labels), rate) in enumerate(zip(batches, rates, strict=True), start=1):
            fed = {training.images: images, training.labels: labels, training.learning_rate: rate}
            losses.append(session.run([training.loss, training.train_op], fed)[0])
            if number in keep:
                states[number] = _canonical(session.run(variables), named)
    return Tf1Steps(np.array(losses, np.float64), states)


@functools.cache
def _training(config: ArchConfig) -> tuple[Any, Any]:
    """Return the graph and a session in it: TensorFlow prepares the graph anew, for seconds, in each session."""
    import tensorflow.compat.v1 as tf

    from rszoo.verify.tf1_graph import build_training

    training = build_training(config, 0)
    return training, tf.Session(graph=training.graph)


def _canonical(values: Mapping[str, np.ndarray], named: Mapping[str, TensorSpec]) -> dict[str, np.ndarray]:
    return {
        f"{prefix}/{torch_name(spec)}": to_torch_layout(spec.kind, values[name + suffix])
        for name, spec in named.items()
        for prefix, suffix in _SUFFIXES.items()
        if name + suffix in values
    }


def _values(spec: TensorSpec, rng: np.random.Generator) -> np.ndarray:
    if spec.kind in (Kind.GAMMA, Kind.MOVING_VARIANCE):
        scale = 0.3 if spec.initial is Initial.ZEROS else 1.0
        return (scale * rng.uniform(0.5, 1.5, spec.shape)).astype(np.float32)
    if spec.kind in (Kind.CONV_KERNEL, Kind.DENSE_KERNEL):
        return (rng.standard_normal(spec.shape) / np.sqrt(np.prod(spec.shape[:-1]))).astype(np.float32)
    return (0.1 * rng.standard_normal(spec.shape)).astype(np.float32)
