"""What the training loop asks of an engine: PyTorch or Keras, one device or many, one process or several.

Tensors leave and enter an engine under canonical names: `model/NAME`, `ema/NAME` and `momentum/NAME`, NAME and layout
being those of the weights file (`rszoo.arch.names.torch_name`), float32; so a run can be resumed in the other engine.
`step` is how many steps were taken, int64 of no axes: the decay of the averages depends on it. The state of random
numbers, which only one engine can use, is under `random/ENGINE/RANK/...`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from rszoo.errors import ConfigError
from rszoo.evaluate.scores import Scores
from rszoo.folder.model_folder import WeightSet
from rszoo.pipeline.share import Position, Share
from rszoo.recipes.recipe import Recipe

EngineName = Literal["torch", "keras"]

#: (share, images per batch, position) to an endless `tf.data.Dataset` of {"image": float32 (B, H, W, 3), "label":
#: int32 (B,), "position": int64 (B, 3)}. The position is each image's own, so reading resumes after the last.
OpenTraining = Callable[[Share, int, Position], Any]
#: (share, images per batch) to a finite one of {"image", "label", "weight": float32 (B,)}; weight 0 marks padding.
OpenEvaluation = Callable[[Share, int], Any]


class Engine(Protocol):
    """A network in training. Every method is called by all processes at the same point (they may communicate)."""

    #: This process, and how many there are.
    rank: int
    ranks: int
    #: Devices that compute a micro-batch each, over all processes; the batch is divided by it times `accumulate`.
    replicas: int
    #: Places that read training images, each its share: the processes, or with TensorFlow on a TPU slice the hosts.
    readers: int

    def start(self, open_dataset: OpenTraining, positions: Sequence[Position]) -> None:
        """Start to read training images at each reader's position; without positions, at the start."""

    def step(self, learning_rate: float) -> Any:
        """Take one optimizer step; return a handle on its figures, which `read` waits for."""

    def read(self, handles: Sequence[Any]) -> np.ndarray:
        """Return the figures of steps, over all processes: float64 (steps, 2), cross-entropy and top-1 fraction.

        Cross-entropy is of the training batch with label smoothing, without the L2 term.
        """

    def positions(self) -> list[Position]:
        """Return where each reader would resume: after the images of the steps so far."""

    def agree(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""

    def state(self) -> dict[str, np.ndarray]:
        """Return all that the next step depends on, except the position, by canonical name; complete on rank 0."""

    def load_state(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Load a state. Random numbers of another engine or number of processes are restarted."""

    def evaluate(self, open_dataset: OpenEvaluation, weights: WeightSet) -> Scores:
        """Count the accuracy over all readers' shares, each image once: of the averaged weights, or of the raw ones."""

    def network(self, weights: WeightSet) -> Any:
        """Return a model that `rszoo.save` takes."""

    def close(self) -> None:
        """Stop reading and release the processes."""


def micro_batch(recipe: Recipe, replicas: int, kind: str) -> int:
    """Return how many images each of `replicas` devices takes at once; `kind` is what they are called in the error.

    Raises:
        ConfigError: the batch cannot be divided.
    """
    batch, accumulate = recipe.train.batch_size, recipe.train.accumulate
    parts = replicas * accumulate
    size, rest = divmod(batch, parts)
    if rest:
        nearest = f"{size * parts} or {(size + 1) * parts}" if size else str(parts)
        raise ConfigError(
            f"train.batch_size {batch} cannot be divided by {replicas} {kind} times {accumulate} accumulated "
            f"micro-batches; nearest: {nearest}"
        )
    return size
