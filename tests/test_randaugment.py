"""The choice among RandAugment's operations: frequencies, signs, places, and the seed that decides them."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import chi2
from sklearn.datasets import load_sample_images

from rszoo.errors import ConfigError
from rszoo.pipeline import randaugment as policy
from rszoo.pipeline.randaugment import NAMES, Chance, randaugment

PHOTO = load_sample_images().images[1][100:197, 150:281]


def outcomes(monkeypatch, *, layers: int, operations: str, count: int) -> np.ndarray:
    """Return what is drawn for each seed: after one layer 1 + the operation's number, or 0; after two 17 a + b."""

    def mark(name, image, magnitude, chance):
        return image * 17 + tf.constant(NAMES.index(name) + 1, tf.uint8)

    monkeypatch.setattr(policy, "apply", mark)
    data = tf.data.Dataset.range(count).map(
        lambda i: randaugment(
            tf.zeros((3, 3, 3), tf.uint8), tf.stack([i, 7]), layers=layers, magnitude=10, operations=operations
        )[0, 0, 0],
        num_parallel_calls=2,
    )
    return np.array(list(data.as_numpy_iterator()))


def assert_uniform(counts: np.ndarray) -> None:
    expected = counts.sum() / counts.size
    assert ((counts - expected) ** 2 / expected).sum() < chi2.ppf(0.999, counts.size - 1), counts


def test_each_of_16_operations_is_drawn_equally_often_and_the_17th_outcome_is_a_switch(monkeypatch):
    assert len(set(NAMES)) == 16
    drawn = outcomes(monkeypatch, layers=1, operations="tf1", count=6400)
    assert set(drawn) == set(range(1, 17))
    assert_uniform(np.bincount(drawn)[1:])
    drawn = outcomes(monkeypatch, layers=1, operations="model-garden", count=6400)
    assert set(drawn) == set(range(17))
    assert_uniform(np.bincount(drawn))


def test_layers_draw_independently(monkeypatch):
    drawn = outcomes(monkeypatch, layers=2, operations="tf1", count=6400)
    expected = np.bincount([(a * 17 + b) % 256 for a in range(1, 17) for b in range(1, 17)], minlength=256) * 25.0
    counts = np.bincount(drawn, minlength=256)
    used = expected > 0
    assert not counts[~used].any()
    statistic = ((counts - expected)[used] ** 2 / expected[used]).sum()
    assert statistic < chi2.ppf(0.999, used.sum() - 1)


def test_signs_and_places_are_uniform(monkeypatch):
    def mark(name, image, magnitude, chance):
        bytes_ = tf.stack([tf.cast(chance.sign + 1, tf.int32), chance.row, chance.column])
        return tf.cast(bytes_, tf.uint8)[None, None] + tf.zeros_like(image)

    monkeypatch.setattr(policy, "apply", mark)
    image = tf.zeros((7, 11, 3), tf.uint8)
    data = tf.data.Dataset.range(6000).map(
        lambda i: randaugment(image, tf.stack([3, i]), layers=1, magnitude=10, operations="tf1")[0, 0]
    )
    sign, row, column = np.array(list(data.as_numpy_iterator())).T
    assert (set(sign), set(row), set(column)) == ({0, 2}, set(range(7)), set(range(11)))
    assert_uniform(np.bincount(sign)[[0, 2]])
    assert_uniform(np.bincount(row * 11 + column))


def test_the_seed_decides_everything_in_every_way_of_running():
    image = tf.constant(PHOTO)
    settings = {"layers": 2, "magnitude": 13.7, "operations": "model-garden"}
    data = tf.data.Dataset.range(60).map(
        lambda i: randaugment(image, tf.stack([i, 1]), **settings), num_parallel_calls=2
    )
    first, second = ([*data.as_numpy_iterator()] for _ in range(2))
    assert data.element_spec.shape == image.shape
    for number in range(60):
        eager = randaugment(image, tf.constant([number, 1]), **settings).numpy()
        np.testing.assert_array_equal(first[number], eager)
        np.testing.assert_array_equal(first[number], second[number])
    assert len({value.tobytes() for value in first}) > 45


def test_no_layers_change_nothing_and_one_layer_is_the_first_of_two(monkeypatch):
    image, seed = tf.constant(PHOTO), tf.constant([5, 6])
    settings = {"magnitude": 10, "operations": "tf1"}
    np.testing.assert_array_equal(randaugment(image, seed, layers=0, **settings), image)
    called = []

    def note(name, image, magnitude, chance):
        called.append((name, float(chance.sign), int(chance.row), int(chance.column)))
        return tf.identity(image)

    monkeypatch.setattr(policy, "apply", note)
    randaugment(image, seed, layers=1, **settings)
    randaugment(image, seed, layers=2, **settings)
    assert called[0] == called[1] != called[2]


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"layers": -1}, "layers must be 0 or more, received -1"),
        ({"magnitude": float("nan")}, "magnitude must be 0 or more, received nan"),
        ({"operations": "timm"}, "tf1 or model-garden, received 'timm'"),
        ({"image": np.zeros((8, 8, 3), np.float32)}, "uint8"),
        ({"image": np.zeros((8, 8, 1), np.uint8)}, r"\(8, 8, 1\)"),
    ],
)
def test_impossible_arguments_are_refused(changed, text):
    settings = {"image": np.zeros((8, 8, 3), np.uint8), "layers": 1, "magnitude": 10, "operations": "tf1", **changed}
    with pytest.raises(ConfigError, match=text):
        randaugment(tf.constant(settings.pop("image")), tf.constant([0, 0]), **settings)
    with pytest.raises(ConfigError, match=r"AutoContrast, .*SolarizeAdd"):
        policy.apply("Blur", tf.zeros((8, 8, 3), tf.uint8), 10, Chance(1.0, 0, 0))
