"""Model Garden checkpoints that TensorFlow writes, of objects called as in tensorflow/models, with random values."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from rszoo.arch.config import ArchConfig
from rszoo.verify.garden_graph import Classifier

#: What the Garden's configs say of the network.
OPS = {"activation": "silu", "strided_padding": "same", "shortcut_pool": "always"}
TINY = ArchConfig((1, 2, 2, 1), num_classes=7, width_multiplier=0.125, **OPS)
#: What can be saved: all that a trainer has, the model of it, the model itself; and without the optimizer.
SAVED = ("trainer", "model", "alone", "evaluation")


class _Averages(tf.Module):
    """What a checkpoint shows of an optimizer that keeps averages around another that keeps momenta."""

    def __init__(self, slots: dict[tuple[int, str], tf.Variable], name: str) -> None:
        super().__init__()
        # Of another type than dict, which TensorFlow would save as an object.
        self._slot_name, self._slots = name, _Slots(slots)

    def get_slot_names(self) -> list[str]:
        return [self._slot_name]

    def get_slot(self, variable: tf.Variable, name: str) -> tf.Variable:
        return self._slots.values[id(variable), name]

    def _create_or_restore_slot_variable(self, **_: object) -> None:
        """Tells TensorFlow that it has slots."""


@dataclass(frozen=True)
class _Slots:
    values: dict[tuple[int, str], tf.Variable]


@dataclass(frozen=True)
class GardenCheckpoint:
    """A saved checkpoint: its prefix, and the network with the plain values and with the averages."""

    prefix: Path
    raw: Classifier
    ema: Classifier

    def archive(self, path: Path) -> Path:
        """Pack it as published."""
        with tarfile.open(path, "w:gz", compresslevel=1) as tar:
            for suffix in (".data-00000-of-00001", ".index"):
                tar.add(f"{self.prefix}{suffix}", f"{path.name.removesuffix('.tar.gz')}/{self.prefix.name}{suffix}")
        return path


def write_garden(config: ArchConfig, folder: Path, *, saved: str = "trainer", seed: int = 0) -> GardenCheckpoint:
    """Build the network twice, plain and averaged, and save it; momenta are saved too."""
    rng = np.random.default_rng(seed)
    raw, ema = Classifier(config), Classifier(config)
    slots = {}
    for variable, average in zip(raw.variables, ema.variables, strict=True):
        for one in (variable, average):
            one.assign(_values(one, rng))
        slots[id(variable), "average"] = average
        slots[id(variable), "momentum"] = tf.Variable(tf.random.stateless_normal(variable.shape, (seed, 1)))
    for network in (raw, ema):
        damp(network)
    model = tf.Module()
    model._track_trackable(raw.backbone, "layer_with_weights-0")
    model._track_trackable(raw.dense, "layer_with_weights-1")
    optimizer = _Averages(slots, "average")
    optimizer.ema_base_optimizer = _Averages(slots, "momentum")
    optimizer.ema_base_optimizer.iter = tf.Variable(5, dtype=tf.int64)
    step = tf.Variable(5, dtype=tf.int64)
    objects = {
        "trainer": lambda: tf.train.Checkpoint(
            model=model, backbone=raw.backbone, optimizer=optimizer, global_step=step
        ),
        "model": lambda: tf.train.Checkpoint(model=model, optimizer=optimizer, global_step=step),
        "alone": lambda: tf.train.Checkpoint(model),
        "evaluation": lambda: tf.train.Checkpoint(model=model, backbone=raw.backbone, global_step=step),
    }[saved]()
    return GardenCheckpoint(Path(objects.save(str(folder / "ckpt"))), raw, ema)


def damp(network: Classifier) -> None:
    """Make the residual branches small, as in trained networks, see `tests.tf1`."""
    for _, block in network._blocks:
        block._norm3.gamma.assign(0.3 * block._norm3.gamma)


def _values(variable: tf.Variable, rng: np.random.Generator) -> np.ndarray:
    shape = tuple(variable.shape)
    if len(shape) > 1:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)
    return rng.uniform(0.5, 1.5, shape).astype(np.float32)
