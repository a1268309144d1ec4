"""scikit-learn's hand-written digits (UCI, 8x8 gray) as images, and their split into training and held-out images."""

from __future__ import annotations

import numpy as np

from rszoo.extras import needs

_HELD_OUT, _SEED = 360, 0


def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """Return all digits as uint8 (1797, 10, 10, 3) and their labels (1797,).

    Each has a border of one black pixel, so that the published center crop of 10x10 is exactly the 8x8 digit.

    Raises:
        MissingPackageError: scikit-learn is not installed.
    """
    with needs("reading the digits", "sklearn"):
        from sklearn.datasets import load_digits
    digits = load_digits()
    gray = np.rint(digits.images * 255 / 16).astype(np.uint8)
    return np.pad(gray, ((0, 0), (1, 1), (1, 1)))[..., None].repeat(3, axis=3), digits.target


def split_digits(images: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """Return train images, held-out images, train labels, held-out labels: 1437 and 360, stratified."""
    from sklearn.model_selection import train_test_split

    return train_test_split(images, labels, test_size=_HELD_OUT, stratify=labels, random_state=_SEED)
