"""An engine and data of a few lines of numpy: the training loop's own part, without a framework's seconds."""

# The methods are rszoo.train.engine's, and documented there.
# ruff: noqa: D102

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rszoo.evaluate.scores import Scores
from rszoo.pipeline.faults import Faults
from rszoo.pipeline.share import Position, Share
from rszoo.recipes.recipe import Recipe
from rszoo.train.loop import Data

IMAGES = 12


def fake_recipe(**changes: Any) -> Recipe:
    """A recipe of 30 steps, 6 an epoch; `train__keep_checkpoints=2` changes `train.keep_checkpoints`."""
    values: dict[str, Any] = {
        "name": "fake",
        "title": "A fake",
        "status": "run",
        "follows": "nothing",
        "sources": [],
        "model": {"blocks": [1, 1, 1, 1], "num_classes": 2},
        "data": {"image_size": 32, "train_images": IMAGES},
        "optimizer": {"learning_rate": 0.1},
        "schedule": {"warmup_epochs": 1},
        "train": {
            "batch_size": 2,
            "epochs": 5,
            "log_every_steps": 4,
            "checkpoint_every_steps": 5,
            "keep_checkpoints": 2,
            "evaluate_every_epochs": 1,
            "precision": "float32",
        },
    }
    for name, value in changes.items():
        section, key = name.split("__")
        values[section][key] = value
    return Recipe.from_dict(values)


def fake_data(*, held_out: bool = True, faults: Faults | None = None) -> Data:
    """Images that follow from their epoch and number; to measure with, what `FakeEngine.evaluate` ignores."""
    return Data(_stream, (lambda share, batch_size: None) if held_out else None, faults or Faults())


def _stream(share: Share, batch_size: int, position: Position) -> Iterator[dict[str, np.ndarray]]:
    epoch, _, image = position
    while True:
        elements = []
        while len(elements) < batch_size:
            if image >= IMAGES:
                epoch, image = epoch + 1, 0
            elements.append((epoch, 0, image))
            image += 1
        places = np.asarray(elements)
        yield {"image": np.sin(places @ [1.0, 0.0, 0.37]), "label": places[:, 2] % 2, "position": places}


class FakeEngine:
    """Moves two numbers about by momentum, with noise. `top1` by step is what its averages are said to reach."""

    rank = 0

    def __init__(self, *, top1: Mapping[int, int] | None = None, nan_at: int | None = None, ranks: int = 1) -> None:
        self.ranks = self.replicas = self.readers = ranks
        self._top1, self._nan_at = dict(top1 or {}), nan_at
        self._values = np.ones(2, np.float32)
        self._momentum, self._ema = np.zeros(2, np.float32), np.ones(2, np.float32)
        self._steps = 0
        self._random = np.random.default_rng(7)
        self._position = Position()
        self._images: Any = None
        #: The learning rate of each step.
        self.rates: list[float] = []

    def start(self, open_dataset: Any, positions: Sequence[Position]) -> None:
        self._position = positions[self.rank] if positions else Position()
        self._images = open_dataset(Share(self.rank, self.ranks), 2, self._position)

    def step(self, learning_rate: float) -> tuple[float, float]:
        self.rates.append(learning_rate)
        batch = next(self._images)
        epoch, group, image = map(int, batch["position"][-1])
        self._position = Position(epoch, group, image + 1)
        gradient = batch["image"].mean() * self._values + self._random.normal(size=2)
        self._momentum = (0.9 * self._momentum + gradient).astype(np.float32)
        self._values = (self._values - learning_rate * self._momentum).astype(np.float32)
        self._ema = (0.9 * self._ema + 0.1 * self._values).astype(np.float32)
        self._steps += 1
        loss = float("nan") if self._steps == self._nan_at else float(np.abs(self._values).sum())
        return loss, float(batch["label"].mean())

    def read(self, handles: Sequence[Any]) -> np.ndarray:
        return np.asarray(handles, np.float64)

    def positions(self) -> list[Position]:
        return [self._position] * self.ranks

    def agree(self, flag: bool) -> bool:
        return flag

    def state(self) -> dict[str, np.ndarray]:
        words = np.frombuffer(repr(self._random.bit_generator.state).encode(), np.uint8)
        return {
            "model/w": self._values,
            "ema/w": self._ema,
            "momentum/w": self._momentum,
            "step": np.asarray(self._steps),
            "random/fake/0": words,
        }

    def load_state(self, tensors: Mapping[str, np.ndarray]) -> None:
        self._values, self._ema, self._momentum = tensors["model/w"], tensors["ema/w"], tensors["momentum/w"]
        self._steps = int(tensors["step"])
        if "random/fake/0" in tensors:
            # Written by this class alone, a moment ago.
            self._random.bit_generator.state = eval(tensors["random/fake/0"].tobytes())  # noqa: S307

    def evaluate(self, open_dataset: Any, weights: str) -> Scores:
        scores = Scores.empty(2)
        right = self._top1.get(self._steps, 50) if weights == "ema" else 25
        scores.confusion[0] = right, 100 - right
        scores.in_top5[0] = 100
        return scores

    def network(self, weights: str) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        pass
