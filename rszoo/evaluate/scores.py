"""Exact accuracy: takes logits and labels, returns top-1, top-5, per-class counts and a confusion matrix.

These are counts, not averages: the counts of several processes add up to those of a single process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rszoo.errors import ImageError

# The normal quantile of a 95 % interval.
_Z95 = 1.959963984540054


@dataclass
class Scores:
    """`confusion`: images by true class and predicted class, int64 (C, C); `in_top5`: by true class, int64 (C,).

    `broken`: images whose logits are not all finite, by true class; they count as wrong and are in no other count.
    """

    confusion: np.ndarray
    in_top5: np.ndarray
    broken: np.ndarray

    @classmethod
    def empty(cls, num_classes: int) -> Scores:
        """Return scores of no images."""
        return cls(*(np.zeros(shape, np.int64) for shape in ((num_classes, num_classes), num_classes, num_classes)))

    def add(self, logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Count a batch: logits (N, C), labels int (N,), weights (N,), of which 0 marks padding.

        Raises:
            ImageError: a label is not one of the classes; no image of the batch is counted.
        """
        if weights is not None:
            logits, labels = logits[weights > 0], labels[weights > 0]
        check_labels(labels, len(self.broken))
        finite = np.isfinite(logits).all(axis=1)
        np.add.at(self.broken, labels[~finite], 1)
        logits, labels = logits[finite], labels[finite]
        np.add.at(self.confusion, (labels, logits.argmax(axis=1)), 1)
        # Ties are broken as in argmax: among equal logits the lower class number ranks first.
        own = logits[np.arange(len(labels)), labels][:, None]
        before = (logits > own) | ((logits == own) & (np.arange(logits.shape[1]) < labels[:, None]))
        np.add.at(self.in_top5, labels[before.sum(axis=1) < 5], 1)

    def to_array(self) -> np.ndarray:
        """Return all counts as one int64 array to sum over processes; `from_array` is the inverse."""
        return np.concatenate([self.confusion.ravel(), self.in_top5, self.broken])

    @classmethod
    def from_array(cls, counts: np.ndarray, num_classes: int) -> Scores:
        """Return the scores of `to_array`."""
        square = num_classes * num_classes
        return cls(
            counts[:square].reshape(num_classes, num_classes),
            counts[square : square + num_classes],
            counts[square + num_classes :],
        )

    @property
    def images(self) -> int:
        """How many images were counted."""
        return int(self.confusion.sum() + self.broken.sum())

    @property
    def right(self) -> int:
        """How many images were predicted correctly."""
        return int(np.trace(self.confusion))

    @property
    def top1(self) -> float:
        """Top-1 accuracy in percent; NaN if there are no images."""
        return 100 * self.right / self.images if self.images else math.nan

    @property
    def top5(self) -> float:
        """Top-5 accuracy in percent; NaN if there are no images."""
        return 100 * int(self.in_top5.sum()) / self.images if self.images else math.nan


def check_labels(labels: np.ndarray, num_classes: int) -> None:
    """Raise ImageError if a label, int (N,), is not from 0 to `num_classes` - 1; -1 would count as the last class."""
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if wrong.size:
        raise ImageError(
            f"{wrong.size} images have labels that are not among the {num_classes} classes, counted from 0: first "
            f"{int(wrong[0])}; the data have other classes (in TFRecords labels count from 1)"
        )


def wilson_interval(right: int, images: int) -> tuple[float, float]:
    """Return the 95 % interval of an accuracy, in percent, after Wilson (1927), which stays within 0 to 100.

    Without images it is 0 to 100.
    """
    if images == 0:
        return 0.0, 100.0
    share, z2 = right / images, _Z95**2
    center = (share + z2 / (2 * images)) / (1 + z2 / images)
    half = _Z95 / (1 + z2 / images) * math.sqrt(share * (1 - share) / images + z2 / (4 * images**2))
    # If none or all are right, the exact bound is 0 or 100; the formula would add a rounding error.
    return 0.0 if right == 0 else 100 * (center - half), 100.0 if right == images else 100 * (center + half)
