"""Predictions of a model folder: images in, logits or the most likely classes out, in either framework."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rszoo.cache.find import ModelLike, find_folder
from rszoo.errors import UsageError, WeightsError
from rszoo.inference.images import preprocess
from rszoo.models.factory import Framework, create

_BATCH = 32


@dataclass(frozen=True)
class Prediction:
    """One of an image's most likely classes; `probability` is the softmax of the logits."""

    index: int
    label: str
    probability: float


class Classifier:
    """A model ready to predict, in memory with its weights.

    `exif`: turn images as their EXIF orientation says.

    Raises:
        UsageError: the network takes neither RGB nor gray images, or has no classifier; else as `rszoo.create`.
    """

    def __init__(self, model: ModelLike, framework: Framework = "torch", *, exif: bool = False) -> None:
        folder = find_folder(model)
        if (channels := folder.config.arch.in_chans) not in (1, 3):
            raise UsageError(f"{folder.path} takes {channels} channels; only RGB and gray images can be predicted")
        folder.check_classifier()
        self.folder = folder
        self.exif = exif
        self.framework = framework
        self.model = create(folder, pretrained=True, framework=framework, dtype="float32")

    def logits(self, images: Iterable[str | os.PathLike[str] | np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the logits of each image, float32 (num_classes,). Images as `rszoo.preprocess` takes them."""
        batch: list[np.ndarray] = []
        for image in images:
            batch.append(preprocess(image, self.folder, exif=self.exif))
            if len(batch) == _BATCH:
                yield from self._run(np.concatenate(batch))
                batch = []
        if batch:
            yield from self._run(np.concatenate(batch))

    def predict(
        self, images: Iterable[str | os.PathLike[str] | np.ndarray], count: int = 5
    ) -> Iterator[list[Prediction]]:
        """Yield the most likely classes of each image, the likeliest first. Images as `rszoo.preprocess` takes them."""
        return (self.top(logits, count) for logits in self.logits(images))

    def top(self, logits: np.ndarray, count: int = 5) -> list[Prediction]:
        """Return the most likely classes, the likeliest first. Raises WeightsError if a logit is not finite."""
        if not np.isfinite(logits).all():
            raise WeightsError(f"{self.folder.path} gives logits that are not finite; check it with `rszoo verify`")
        exponentials = np.exp(logits.astype(np.float64) - logits.max())
        probabilities = exponentials / exponentials.sum()
        labels: Sequence[str] = self.folder.config.labels or [f"class {index}" for index in range(len(logits))]
        best = np.argsort(-probabilities, kind="stable")[:count]
        return [Prediction(int(index), labels[index], float(probabilities[index])) for index in best]

    def _run(self, batch: np.ndarray) -> Any:
        if self.framework == "keras":
            import keras

            return keras.ops.convert_to_numpy(self.model(batch, training=False))
        import torch

        with torch.inference_mode():
            return self.model(torch.from_numpy(batch).permute(0, 3, 1, 2)).numpy()
