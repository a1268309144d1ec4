"""Evaluation images: each once whatever the shares, and the pixels that the published preprocessing gives."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from rszoo.inference.images import preprocess
from rszoo.pipeline.evaluation import evaluation_dataset, timm_transform
from rszoo.pipeline.faults import Faults
from rszoo.pipeline.share import Share
from rszoo.pipeline.sources import open_source
from rszoo.registry.preprocessing import Preprocessing
from rszoo.verify.demo import held_out_digits
from tests.pipeline_data import PHOTOS, encode, example, piece, write_images, write_shard, write_shards

SIZES = (4, 1, 6, 2)
SETTINGS = Preprocessing(32)
WHOLE = Share()


def read(source, settings=SETTINGS, share=WHOLE, batch_size=5, transform="published", faults=None):
    """Return a share's elements, put together, padding and all."""
    faults = faults or Faults()
    dataset = evaluation_dataset(
        source, settings, share=share, batch_size=batch_size, faults=faults, transform=transform
    )
    batches = list(dataset.as_numpy_iterator())
    assert all(len(batch["image"]) == batch_size for batch in batches)
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


@pytest.mark.parametrize(
    ("kind", "shares"),
    [
        ("folder", 2),
        ("shards", 3),
        *(pytest.param(kind, 7, marks=pytest.mark.slow) for kind in ("folder", "shards")),
    ],
)
def test_each_image_is_in_exactly_one_share(tmp_path, kind, shares):
    if kind == "folder":
        source = open_source(str(write_images(tmp_path / "images", (5, 3, 5))), "all")
        labels = [0] * 5 + [1] * 3 + [2] * 5
    else:
        source = open_source(str(write_shards(tmp_path, "validation", SIZES)), "validation")
        labels = [number % 3 for number in range(13)]
    for batch_size in (1, 20) if (kind, shares) == ("shards", 3) else (4,):
        parts = [read(source, share=Share(i, shares), batch_size=batch_size) for i in range(shares)]
        # As many batches in each, so that devices in lockstep do not wait for one another.
        assert {len(part["index"]) for part in parts} == {math.ceil(math.ceil(13 / shares) / batch_size) * batch_size}
        index = np.concatenate([part["index"] for part in parts])
        weight = np.concatenate([part["weight"] for part in parts])
        assert index[weight > 0].tolist() == list(range(13))
        assert set(weight) <= {0, 1}
        assert set(index[weight == 0]) <= {-1}
        found = np.concatenate([part["label"] for part in parts])
        assert found[weight > 0].tolist() == labels
        for part in parts:
            for number, image in zip(part["index"], part["image"], strict=True):
                expected = np.zeros((32, 32, 3)) if number < 0 else preprocess(piece(number), SETTINGS)[0]
                np.testing.assert_allclose(image, expected, atol=1e-5)


def test_equals_the_published_preprocessing_for_images_of_many_sizes(tmp_path):
    shapes = [(427, 640), (640, 427), (100, 100), (57, 211), (333, 500), (500, 375), (2, 9), (225, 226), (224, 256)]
    rng = np.random.default_rng(0)
    images = [PHOTOS[0][:rows, :columns] for rows, columns in shapes if rows <= 427]
    images += [rng.integers(0, 256, (rows, columns, 3), dtype=np.uint8) for rows, columns in shapes if rows > 427]
    write_shard(tmp_path / "validation-00000-of-00001", [example(encode(image), 1) for image in images])
    source = open_source(str(tmp_path), "validation")
    for size in (64, 224):
        found = read(source, Preprocessing(size))
        for image, pixels in zip(found["image"], images, strict=False):
            # In units of the normalized input, whose range is about 4.5.
            assert np.abs(image - preprocess(pixels, Preprocessing(size))[0]).max() < 2e-5


def test_a_jpeg_is_decoded_as_published_and_nearly_as_by_pillow(tmp_path):
    stored = encode(PHOTOS[1], "JPEG")
    write_shard(tmp_path / "validation-00000-of-00001", [example(stored, 1)])
    found = read(open_source(str(tmp_path), "validation"), Preprocessing(224))["image"][0]
    # The published code: decode_and_crop_jpeg with its default, which is not libjpeg's most accurate.
    side = int(np.float32(0.875) * np.float32(427))
    box = [(427 - side + 1) // 2, (640 - side + 1) // 2, side, side]
    decoded = tf.image.decode_and_crop_jpeg(stored, box, channels=3)
    expected = tf.compat.v1.image.resize_bicubic(decoded[None], (224, 224))[0]
    std = np.array([0.229, 0.224, 0.225]) * 255
    levels = found * std + np.array([0.485, 0.456, 0.406]) * 255
    np.testing.assert_allclose(levels, expected, atol=1e-3)
    # Pillow takes the accurate inverse DCT, TensorFlow the fast one; all else is the same library.
    pillow = np.asarray(Image.open(io.BytesIO(stored)))
    accurate = tf.image.decode_and_crop_jpeg(stored, box, channels=3, dct_method="INTEGER_ACCURATE").numpy()
    cut = pillow[box[0] : box[0] + side, box[1] : box[1] + side]
    assert np.abs(accurate.astype(int) - cut).mean() < 0.05
    difference = np.abs(found - preprocess(pillow, Preprocessing(224))[0]) * std
    assert 0.1 < difference.mean() < 1.5
    assert difference.max() < 12


def test_the_digits_are_the_shipped_ones_that_training_never_sees():
    images, labels = held_out_digits()
    settings = Preprocessing(64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    validation, train = open_source("digits", "validation"), open_source("digits", "train")
    assert (validation.num_images, train.num_images, validation.num_classes) == (360, 1437, 10)
    found = read(validation, settings, batch_size=90)
    assert found["label"].tolist() == labels.tolist()
    for image, pixels in zip(found["image"], images, strict=True):
        np.testing.assert_allclose(image, preprocess(pixels, settings)[0], atol=1e-5)
    assert not set(train.images) & set(validation.images)


def test_broken_images_count_nothing_and_are_named(tmp_path):
    good = encode(piece(0))
    records = [example(good, 1), example(b"\xff\xd8\xff broken", 2), example(good, -1), b"no example", example(good, 3)]
    write_shard(tmp_path / "validation-00000-of-00001", records)
    for transform in ("published", "timm"):
        faults = Faults()
        found = read(open_source(str(tmp_path), "validation"), faults=faults, transform=transform)
        assert found["weight"].tolist() == [1, 0, 0, 0, 1]
        assert found["index"].tolist() == [0, 1, 2, 3, 4]
        assert faults.count == 3
        names = [text.split(":")[0] for text in faults.first]
        assert names == [f"validation-00000-of-00001 record {number}" for number in (1, 2, 3)]
    small = tmp_path / "small"
    write_shard(small / "validation-00000-of-00001", [example(encode(PHOTOS[0][:1, :9]), 1), example(good, 1)])
    faults = Faults()
    assert read(open_source(str(small), "validation"), faults=faults)["weight"].tolist() == [0, 1, 0, 0, 0]
    assert "too small" in faults.first[0]


@pytest.mark.parametrize(("rows", "columns"), [(427, 640), (300, 201), (64, 64), (20, 31)])
def test_timms_transform(tmp_path, rows, columns):
    pixels = PHOTOS[0][:rows, :columns]
    settings = Preprocessing(32)
    # 32 / 0.875, truncated; the longer side in proportion, truncated.
    short = 36
    height, width = (int(36 * rows / columns), short) if rows > columns else (short, int(36 * columns / rows))
    resized = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
    top, left = round((height - 32) / 2), round((width - 32) / 2)
    expected = resized[top : top + 32, left : left + 32] / 255
    expected = (expected - np.array(settings.mean)) / np.array(settings.std)
    np.testing.assert_allclose(timm_transform(pixels, settings), expected, atol=1e-6)
    write_shard(tmp_path / "validation-00000-of-00001", [example(encode(pixels), 1)])
    found = read(open_source(str(tmp_path), "validation"), transform="timm", batch_size=1)
    np.testing.assert_allclose(found["image"][0], expected, atol=1e-6)
