"""Checkpoints written by a genuine TF1 training graph, with values that tell every tensor and every set apart."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters.formats.tf1 import EMA_SUFFIX, tf1_names
from rszoo.arch.config import ArchConfig
from rszoo.arch.walk import Initial, Kind, iter_tensors

TINY = ArchConfig((1, 2, 2, 1), num_classes=7, width_multiplier=0.125)


@dataclass(frozen=True)
class Tf1Checkpoint:
    """A saved checkpoint: its prefix, an archive of it in the published layout, and the values that were saved."""

    config: ArchConfig
    prefix: Path
    archive: Path
    values: dict[str, np.ndarray]


def write_checkpoint(config: ArchConfig, folder: Path, seed: int = 0) -> Tf1Checkpoint:
    """Build the training graph, set weights, averages and momenta to random values, and save."""
    import tensorflow.compat.v1 as tf

    from rszoo.verify.tf1_graph import build_training

    rng = np.random.default_rng(seed)
    training = build_training(config, seed)
    with training.graph.as_default(), tf.Session() as session:
        variables = {variable.op.name: variable for variable in tf.global_variables()}
        values = {name: _values(name, tuple(variable.shape.as_list()), rng) for name, variable in variables.items()}
        _damp(config, values)
        # One run for all: each further run of a graph this size costs a tenth of a second.
        feed = {variables[name].initializer.inputs[1]: value for name, value in values.items()}
        session.run([variable.initializer for variable in variables.values()], feed)
        prefix = Path(tf.train.Saver().save(session, str(folder / "model.ckpt")))
    archive = folder / "checkpoint.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for suffix in (".data-00000-of-00001", ".index", ".meta"):
            tar.add(f"{prefix}{suffix}", prefix.name + suffix)
    return Tf1Checkpoint(config, prefix, archive, values)


def _damp(config: ArchConfig, values: dict[str, np.ndarray]) -> None:
    """Make the residual branches small, as in trained networks.

    With branches as large as their shortcuts, rounding errors grow with every block, in TensorFlow as in PyTorch: at
    depth 270 the two then differ by 1.7e-6.
    """
    specs = list(iter_tensors(config))
    for spec, name in zip(specs, tf1_names(specs), strict=True):
        if spec.initial is Initial.ZEROS and spec.kind is Kind.GAMMA:
            for variable in (name, name + EMA_SUFFIX):
                values[variable] *= np.float32(0.3)


def _values(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if name == "global_step":
        return np.array(1234, np.int64)
    if "gamma" in name or "moving_variance" in name:
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if "kernel" in name:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)
    return (0.1 * rng.standard_normal(shape)).astype(np.float32)
