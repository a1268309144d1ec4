"""Runs of the Keras engine on made-up images, in this process or, with other devices, in processes of their own.

`python -m tests.keras_worker JOB.json` does what `Job` says and writes an .npz file: the last state by its names,
`figures`, `positions`, `counts` (images, right ones, whether the processes agree, replicas) and perhaps `curve`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rszoo.arch.config import ArchConfig
from rszoo.arch.names import torch_name
from rszoo.arch.walk import iter_tensors
from rszoo.pipeline.share import Position, Share
from rszoo.recipes.recipe import DataSettings, OptimizerSettings, Recipe, TrainSettings
from tests.tf1_training import random_weights

IMAGES, CLASSES, SIZE, BATCH = 48, 7, 32, 16
# Few activations: the more there are, the sooner one lies so near the kink of its ReLU that rounding decides.
ARCH = {"blocks": (1, 1, 1, 1), "num_classes": CLASSES, "width_multiplier": 0.0625}


@dataclass
class Job:
    """Steps to take from `random_weights`. `cpus`: how many TensorFlow is to see. `curve`: whether to take 20 more."""

    output: str
    steps: int
    cpus: int = 1
    curve: bool = False
    model: dict[str, Any] = field(default_factory=dict)


def make_recipe(
    model: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    optimizer: Mapping[str, Any] | None = None,
) -> Recipe:
    """Return a recipe for a small network, float32, with other settings where they are given."""
    settings = {"batch_size": BATCH, "epochs": 10, "precision": "float32", **(train or {})}
    return Recipe(
        name="small",
        title="Small",
        status="run",
        follows="nothing",
        sources=(),
        model=ArchConfig(**{**ARCH, **(model or {})}),
        data=DataSettings(SIZE, IMAGES),
        train=TrainSettings(**settings),
        optimizer=OptimizerSettings(**(optimizer or {})),
    )


def make_images() -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, H, W, C) and labels (N,)."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, IMAGES).astype(np.int32)
    patterns = rng.standard_normal((CLASSES, SIZE, SIZE, 3))
    images = patterns[labels] + rng.standard_normal((IMAGES, SIZE, SIZE, 3))
    return images.astype(np.float32), labels


def open_training(share: Share, size: int, position: Position) -> Any:
    """Open the images in their order; a reader has every `share.count`-th."""
    import tensorflow as tf

    images, labels = (values[share.index :: share.count] for values in make_images())
    numbers = np.arange(len(labels), dtype=np.int64)
    places = np.stack([numbers * 0, numbers * 0, numbers], axis=1)
    dataset = tf.data.Dataset.from_tensor_slices({"image": images, "label": labels, "position": places}).repeat()
    return dataset.skip(position.image).batch(size, drop_remainder=True)


def open_evaluation(share: Share, size: int) -> Any:
    """Open the images once; the last batch is filled up with images of weight 0."""
    import tensorflow as tf

    images, labels = (values[share.index :: share.count] for values in make_images())
    weights = np.ones(len(labels), np.float32)
    more = -len(labels) % size
    images = np.pad(images, ((0, more), (0, 0), (0, 0), (0, 0)))
    labels, weights = np.pad(labels, (0, more)), np.pad(weights, (0, more))
    dataset = tf.data.Dataset.from_tensor_slices({"image": images, "label": labels, "weight": weights})
    return dataset.batch(size, drop_remainder=True)


def rates(steps: int) -> list[float]:
    """Return learning rates that change from step to step."""
    return [0.01 * (step + 1) / 20 for step in range(steps)]


def started(engine: Any, weights: Mapping[str, np.ndarray] | None = None) -> Any:
    """Have an engine begin with weights, by PyTorch's key, as its averages too; `random_weights` if left out."""
    weights = random_weights(make_recipe().model) if weights is None else weights
    state = {name: np.zeros_like(value) for name, value in engine.state().items() if not name.startswith("random/")}
    given = {f"{kind}/{name}": value for name, value in weights.items() for kind in ("model", "ema")}
    engine.load_state({**state, **given})
    engine.start(open_training, [])
    return engine


def take_steps(engine: Any, steps: int) -> dict[str, np.ndarray]:
    """Take steps; return the state behind them, figures and positions."""
    figures = engine.read([engine.step(rate) for rate in rates(steps)])
    return {**engine.state(), "figures": figures, "positions": np.array(engine.positions())}


def loss_curve(engine: Any) -> np.ndarray:
    """Return the losses of 20 steps from calm weights, with the published L2 term."""
    started(engine, random_weights(make_recipe().model, calm=True))
    return np.array([l2_term(engine.state()) + engine.read([engine.step(rate)])[0, 0] for rate in rates(20)])


def l2_term(state: Mapping[str, np.ndarray]) -> float:
    """Return wd * sum(v^2) / 2 over all variables but those of batch normalizations, with the published wd."""
    decayed = [value.astype(np.float64) for name, value in state.items() if decays(name.removeprefix("model/"))]
    return 4e-5 / 2 * sum(float(np.sum(value**2)) for value in decayed)


def decays(name: str) -> bool:
    """Whether a tensor, by PyTorch's key, is one that the L2 term counts."""
    return name in {torch_name(spec) for spec in iter_tensors(make_recipe().model) if spec.kind.layer_type != "bn"}


def start_worker(job: Job, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Begin a job in a process of its own."""
    path = Path(job.output).with_suffix(".json")
    path.write_text(json.dumps(asdict(job)))
    command = [sys.executable, "-m", "tests.keras_worker", str(path)]
    return subprocess.Popen(command, cwd=Path(__file__).parent.parent, env={**os.environ, **environment})


def result(worker: subprocess.Popen[bytes], job: Job) -> dict[str, np.ndarray]:
    """Wait for a worker, and return what it wrote."""
    assert worker.wait(timeout=600) == 0
    with np.load(job.output) as written:
        return dict(written)


def main(path: str) -> None:
    """Do a job."""
    job = Job(**json.loads(Path(path).read_text()))
    if job.cpus > 1:
        import tensorflow as tf

        devices = [tf.config.LogicalDeviceConfiguration()] * job.cpus
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)
    from rszoo.train.keras.engine import KerasEngine

    engine = started(KerasEngine(make_recipe(job.model)))
    taken = take_steps(engine, job.steps)
    scores = engine.evaluate(open_evaluation, "ema")
    counts = np.array([scores.images, scores.right, engine.agree(engine.rank == 0), engine.replicas])
    if job.curve:
        taken["curve"] = loss_curve(engine)
    engine.close()
    np.savez(job.output, counts=counts, **taken)


if __name__ == "__main__":
    main(sys.argv[1])
