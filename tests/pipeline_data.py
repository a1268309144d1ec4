"""Small data sets for the tests of the pipeline: pieces of scikit-learn's two photos, as folders and as TFRecords."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_images

from rszoo.arch.config import ArchConfig
from rszoo.recipes.recipe import AugmentSettings, DataSettings, Recipe, ScheduleSettings, TrainSettings

PHOTOS = load_sample_images().images
CLASSES = ("cat", "dog", "newt")
PLAIN = AugmentSettings()


def recipe(*, size: int = 32, classes: int = 3, seed: int = 0, augment: AugmentSettings = PLAIN) -> Recipe:
    """Return a recipe of which only what the pipeline looks at matters."""
    return Recipe(
        name="test",
        title="Test",
        status="transcribed",
        follows="nobody",
        sources=(),
        model=ArchConfig((1, 1, 1, 1), num_classes=classes),
        data=DataSettings(image_size=size, train_images=100),
        train=TrainSettings(batch_size=8, epochs=1, seed=seed),
        augment=augment,
        schedule=ScheduleSettings(kind="constant", warmup_epochs=0),
    )


def piece(number: int) -> np.ndarray:
    """Return a piece of a photo, uint8 (H, W, 3) of 40 to 90 pixels, another for each number."""
    rng = np.random.default_rng(number)
    height, width = rng.integers(40, 90, 2)
    top, left = rng.integers(0, 427 - height), rng.integers(0, 640 - width)
    return PHOTOS[number % 2][top : top + height, left : left + width]


def encode(pixels: np.ndarray, kind: str = "PNG", mode: str = "RGB") -> bytes:
    """Return an image's file."""
    stored = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stored, kind)
    return stored.getvalue()


def write_images(folder: Path, counts: tuple[int, ...], first: int = 0) -> Path:
    """Write a folder of PNG images, so many for each class; return it."""
    number = first
    for name, count in zip(CLASSES, counts, strict=True):
        (folder / name).mkdir(parents=True)
        for _ in range(count):
            (folder / name / f"{number:03}.png").write_bytes(encode(piece(number)))
            number += 1
    return folder


def example(encoded: bytes, label: int) -> bytes:
    """Return a record with nothing but what is read; labels count from 1."""
    features = {
        "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded])),
        "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def write_shard(path: Path, records: list[bytes]) -> None:
    """Write a TFRecord file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


def write_shards(folder: Path, split: str, sizes: tuple[int, ...]) -> Path:
    """Write files of so many records each, without a description; return the folder."""
    number = 0
    for index, size in enumerate(sizes):
        records = [example(encode(piece(n)), n % 3 + 1) for n in range(number, number + size)]
        write_shard(folder / f"{split}-{index:05}-of-{len(sizes):05}", records)
        number += size
    return folder
