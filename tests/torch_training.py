"""Small trainings of the PyTorch engine on a stream of random images, in this process or in several under torchrun.

`python -m torch.distributed.run --nproc-per-node 2 -m tests.torch_training RECIPE.json RESULT.npz` takes three steps,
evaluates, and has rank 0 write the state and what the methods returned.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rszoo.arch.config import ArchConfig
from rszoo.pipeline import tensorflow_reader
from rszoo.pipeline.share import Position, Share
from rszoo.recipes.recipe import DataSettings, OptimizerSettings, Recipe, TrainSettings
from rszoo.train.torch.engine import TorchEngine
from tests.tf1_training import random_weights

# Few activations: the more there are, the sooner one lies so near the kink of its ReLU that rounding decides.
TINY = ArchConfig((1, 1, 1, 1), num_classes=7, width_multiplier=0.0625)
NOISY = replace(TINY, blocks=(1, 2, 1, 1), dropout_rate=0.3, drop_connect_rate=0.4)
SIZE, BATCH = 32, 16
RATES = [0.01 * step / 20 for step in range(1, 21)]


def make_recipe(arch: ArchConfig = TINY, optimizer: OptimizerSettings | None = None, **train: Any) -> Recipe:
    settings = TrainSettings(**{"batch_size": BATCH, "epochs": 10, "precision": "float32", **train})
    data = DataSettings(image_size=SIZE, train_images=1000)
    return Recipe(
        name="tiny",
        title="tiny",
        status="run",
        follows="the tests",
        sources=(),
        model=arch,
        data=data,
        train=settings,
        optimizer=optimizer or OptimizerSettings(),
    )


class Images:
    """An endless stream of random images, cut into batches; what tf.data would give, without TensorFlow.

    A batch of step n is dealt out to micro-batches and processes in the order of its images.
    """

    def __init__(self, share: Share, size: int, position: Position) -> None:
        self._share, self._size, self._start = share, size, position.image

    def as_numpy_iterator(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield the batches."""
        for number in range(self._start // self._size, 10**6):
            first = (number * self._share.count + self._share.index) * self._size
            images, labels = images_and_labels(range(first, first + self._size))
            own = range(number * self._size, (number + 1) * self._size)
            yield {"image": images, "label": labels, "position": np.array([(0, 0, image) for image in own])}


class Validation:
    """Images 0 to 40 of the same stream in batches of which the last is padded, every `count`-th for each share."""

    def __init__(self, share: Share, size: int) -> None:
        self._numbers, self._size = list(range(41))[share.index :: share.count], size

    def as_numpy_iterator(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield the batches."""
        for start in range(0, len(self._numbers), self._size):
            numbers = self._numbers[start : start + self._size]
            padding = self._size - len(numbers)
            images, labels = images_and_labels([*numbers, *[0] * padding])
            weights = np.array([1.0] * len(numbers) + [0.0] * padding, np.float32)
            yield {"image": images, "label": labels, "weight": weights}


def images_and_labels(numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    drawn = [np.random.default_rng([7, number]) for number in numbers]
    images = np.stack([rng.standard_normal((SIZE, SIZE, 3), np.float32) for rng in drawn])
    images.setflags(write=False)
    return images, np.array([rng.integers(TINY.num_classes) for rng in drawn], np.int32)


def start_engine(recipe: Recipe, weights: Mapping[str, np.ndarray] | None = None) -> TorchEngine:
    """Return an engine that reads `Images`, from given weights: the averages start as they are."""
    engine = TorchEngine(recipe)
    if weights is not None:
        copies = {f"{prefix}/{name}": values for name, values in weights.items() for prefix in ("model", "ema")}
        momenta = {f"momentum/{name}": np.zeros_like(values) for name, values in weights.items()}
        engine.load_state({**copies, **momenta, "step": np.array(0)})
    engine.start(Images, [])
    return engine


def take_steps(engine: TorchEngine, rates: Sequence[float]) -> np.ndarray:
    return engine.read([engine.step(rate) for rate in rates])


def main() -> None:
    recipe, result = Recipe.from_dict(json.loads(Path(sys.argv[1]).read_text())), sys.argv[2]
    # TensorFlow has nothing to read here, and takes seconds to import.
    tensorflow_reader.keep_off_accelerators = lambda: None
    engine = start_engine(recipe, random_weights(recipe.model))
    figures = take_steps(engine, RATES[-3:])
    scores = [engine.evaluate(Validation, "raw").to_array(), engine.evaluate(Validation, "ema").to_array()]
    agreed = [engine.agree(engine.rank == 1), engine.agree(False)]
    positions, state = engine.positions(), engine.state()
    if engine.rank == 0:
        np.savez(result, figures=figures, scores=scores, agreed=agreed, positions=positions, **state)
    engine.close()


if __name__ == "__main__":
    main()
