"""Counting accuracy: against scikit-learn, at ties and at what is not a number, in parts and at once."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, top_k_accuracy_score

from rszoo.errors import ImageError
from rszoo.evaluate.scores import Scores, wilson_interval


def random_batch(images: int, classes: int, seed: int = 0, levels: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and labels; with `levels` the logits are so few values that many are equal."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(images, classes)).astype(np.float32)
    if levels:
        logits = generator.integers(levels, size=(images, classes)).astype(np.float32)
    return logits, generator.integers(classes, size=images)


def counted(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> Scores:
    scores = Scores.empty(logits.shape[1])
    scores.add(logits, labels, weights)
    return scores


@pytest.mark.parametrize("classes", [6, 10, 1000])
def test_scikit_learn_counts_the_same(classes):
    logits, labels = random_batch(2000, classes)
    # So that something is right.
    logits[np.arange(700), labels[:700]] += 2
    scores, every = counted(logits, labels), np.arange(classes)
    assert np.array_equal(scores.confusion, confusion_matrix(labels, logits.argmax(axis=1), labels=every))
    assert scores.right == top_k_accuracy_score(labels, logits, k=1, labels=every, normalize=False)
    assert scores.in_top5.sum() == top_k_accuracy_score(labels, logits, k=5, labels=every, normalize=False)
    for label in np.unique(labels)[:5]:
        of_class = labels == label
        expected = top_k_accuracy_score(labels[of_class], logits[of_class], k=5, labels=every, normalize=False)
        assert scores.in_top5[label] == expected
    assert (scores.images, scores.broken.sum()) == (2000, 0)
    assert math.isclose(scores.top1, 100 * top_k_accuracy_score(labels, logits, k=1, labels=every))
    assert math.isclose(scores.top5, 100 * top_k_accuracy_score(labels, logits, k=5, labels=every))


@pytest.mark.parametrize("classes", [1, 2, 3, 4, 5])
def test_of_up_to_five_classes_the_top_five_has_each(classes):
    scores = counted(*random_batch(100, classes))
    assert scores.top5 == 100
    assert scores.top1 < 100 or classes == 1


@pytest.mark.parametrize("levels", [1, 3])
def test_of_equal_logits_the_first_class_is_the_likelier(levels):
    logits, labels = random_batch(500, 12, levels=levels)
    scores = counted(logits, labels)
    # A stable sort leaves equals in their order, as argmax does.
    ranked = np.argsort(-logits, axis=1, kind="stable")
    assert scores.right == (ranked[:, 0] == labels).sum()
    assert scores.in_top5.sum() == (ranked[:, :5] == labels[:, None]).any(axis=1).sum()
    if levels == 1:
        # All logits equal: nothing but classes 0 and 0 to 4, not 100 %.
        assert (scores.right, scores.in_top5.sum()) == ((labels == 0).sum(), (labels < 5).sum())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_wrong_and_counted_apart(value):
    logits, labels = random_batch(50, 8)
    logits[np.arange(50), labels] += 20
    logits[[3, 7], [0, labels[7]]] = value
    scores = counted(logits, labels)
    assert (scores.images, scores.right, scores.in_top5.sum(), scores.broken.sum()) == (50, 48, 48, 2)
    assert scores.broken.tolist() == np.bincount(labels[[3, 7]], minlength=8).tolist()
    assert scores.top1 == 96


def test_padding_counts_nowhere():
    logits, labels = random_batch(40, 8)
    weights = np.ones(40, np.float32)
    weights[[0, 13, 39]] = 0
    # What stands in the padding does not matter, not even if it could not be counted.
    logits[0], labels[13] = np.nan, -1
    kept = weights > 0
    for scores, expected in zip(
        (counted(logits, labels, weights), counted(logits, labels, np.zeros(40))),
        (counted(logits[kept], labels[kept]), Scores.empty(8)),
        strict=True,
    ):
        assert np.array_equal(scores.to_array(), expected.to_array())
    assert math.isnan(Scores.empty(8).top1)
    assert math.isnan(Scores.empty(8).top5)


@pytest.mark.parametrize("processes", [1, 3, 7])
def test_parts_add_up_to_the_whole(processes):
    logits, labels = random_batch(100, 9, levels=4)
    logits[5] = np.nan
    parts = [counted(logits[rank::processes], labels[rank::processes]) for rank in range(processes)]
    together = Scores.from_array(sum(part.to_array() for part in parts), 9)
    whole = counted(logits, labels)
    for name in ("confusion", "in_top5", "broken"):
        assert np.array_equal(getattr(together, name), getattr(whole, name))
    assert together.to_array().dtype == np.int64
    batches = Scores.empty(9)
    for start in range(0, 100, 13):
        batches.add(logits[start : start + 13], labels[start : start + 13])
    assert np.array_equal(batches.to_array(), whole.to_array())


@pytest.mark.parametrize("label", [-1, 8, 1000])
def test_a_label_of_no_class_is_an_error_and_counts_nothing(label):
    logits, labels = random_batch(10, 8)
    labels[4] = label
    scores = Scores.empty(8)
    with pytest.raises(ImageError, match=rf"1 images have labels that are not among the 8 classes.*{label}"):
        scores.add(logits, labels)
    assert scores.images == 0


# Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17 (1998), table I,
# method 3 (Wilson's score without continuity correction).
@pytest.mark.parametrize(
    ("right", "images", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_the_published_one(right, images, low, high):
    assert np.round(np.divide(wilson_interval(right, images), 100), 4).tolist() == [low, high]
    mirrored = wilson_interval(images - right, images)
    assert np.round(np.divide(mirrored, 100), 4).tolist() == [round(1 - high, 4), round(1 - low, 4)]


@pytest.mark.parametrize(("right", "images"), [(0, 1), (1, 1), (359, 360), (360, 360), (39_450, 50_000)])
def test_the_interval_s_ends_solve_its_equation(right, images):
    share, z2 = right / images, Fraction("1.959963984540054") ** 2
    low, high = (end / 100 for end in wilson_interval(right, images))
    assert 0 <= low <= share <= high <= 1
    # By its definition: at both ends the share is as far off as a normal deviate of 1.96 standard errors.
    for end in (low, high):
        assert math.isclose((share - end) ** 2, float(z2) * end * (1 - end) / images, rel_tol=1e-9, abs_tol=1e-12)
    assert wilson_interval(0, 0) == (0.0, 100.0)
