"""Preprocessing against TensorFlow's own ops, on the photos that scikit-learn ships."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_images

import rszoo
from converters.convert import convert
from rszoo.errors import ConfigError, ImageError, SourceNotFoundError
from rszoo.inference.images import crop_box, preprocess, resize_legacy_bicubic
from rszoo.registry.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

PHOTOS = dict(zip(("china", "flower"), load_sample_images().images, strict=True))
SIZES = (64, 160, 192, 224, 256, 320)


def tf_crop_and_resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """The published code's crop and resize, in TensorFlow's ops."""
    height, width = pixels.shape[:2]
    padding = round(size * (1 / 0.875 - 1))
    side = tf.cast(((size / (size + padding)) * tf.cast(tf.minimum(height, width), tf.float32)), tf.int32)
    top, left = ((height - side) + 1) // 2, ((width - side) + 1) // 2
    crop = tf.image.crop_to_bounding_box(pixels, top, left, side, side)
    return tf.compat.v1.image.resize_bicubic(crop[None], (size, size)).numpy()[0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("photo", PHOTOS)
def test_equals_tensorflow_on_every_pixel(photo, size):
    ours = preprocess(PHOTOS[photo], Preprocessing(size))
    assert (ours.shape, ours.dtype) == ((1, size, size, 3), np.float32)
    gray_levels = ours[0] * (np.array(IMAGENET_STD) * 255) + np.array(IMAGENET_MEAN) * 255
    theirs = tf_crop_and_resize(PHOTOS[photo], size)
    assert np.abs(gray_levels - theirs).max() <= 1e-3
    # Outside the range of a byte: nothing was clipped or rounded.
    assert theirs.max() > 255


def test_resize_equals_tensorflow_on_odd_shapes():
    rng = np.random.default_rng(0)
    for height, width, size in [(1, 1, 5), (7, 13, 32), (301, 200, 75), (33, 64, 64), (500, 3, 17)]:
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        theirs = tf.compat.v1.image.resize_bicubic(pixels[None], (size, size)).numpy()[0]
        assert np.abs(resize_legacy_bicubic(pixels, size) - theirs).max() <= 1e-3


def test_crop_equals_the_published_formula_for_every_image_size():
    for size in SIZES:
        padding = round(size * (1 / 0.875 - 1))
        shorts = np.arange(8, 2000)
        sides = tf.cast((size / (size + padding)) * tf.cast(shorts, tf.float32), tf.int32).numpy()
        boxes = [crop_box(Preprocessing(size), int(short), int(short) + 5) for short in shorts]
        np.testing.assert_array_equal([side for _, _, side in boxes], sides)
        np.testing.assert_array_equal([top for top, _, _ in boxes], (shorts - sides + 1) // 2)
        np.testing.assert_array_equal([left for _, left, _ in boxes], (shorts + 5 - sides + 1) // 2)


def test_a_rounded_down_crop_would_be_seen():
    photo = PHOTOS["china"][:, :-2]
    top, left, side = crop_box(Preprocessing(160), *photo.shape[:2])
    rounded_down = (photo.shape[1] - side) // 2
    assert rounded_down == left - 1
    wrong = resize_legacy_bicubic(photo[top : top + side, rounded_down : rounded_down + side], 160)
    assert np.abs(wrong - tf_crop_and_resize(photo, 160)).max() > 10


@pytest.mark.parametrize("method", ["BICUBIC", "BILINEAR"])
def test_pillows_resize_is_not_the_published_one(method):
    """What timm and torchvision do differs by whole grey levels: the reason for a resize of our own."""
    top, left, side = crop_box(Preprocessing(160), 427, 640)
    crop = Image.fromarray(PHOTOS["china"][top : top + side, left : left + side])
    theirs = np.asarray(crop.resize((160, 160), getattr(Image.Resampling, method)), np.float32)
    assert np.abs(theirs - tf_crop_and_resize(PHOTOS["china"], 160)).mean() > 3


def test_files_arrays_and_pillow_images_give_the_same(tmp_path):
    entry = rszoo.get_entry("resnet-rs-50-i160")
    picture = Image.fromarray(PHOTOS["flower"])
    picture.save(tmp_path / "flower.png")
    convert("resnet-rs-demo", tmp_path / "m")
    expected = rszoo.preprocess(PHOTOS["flower"], entry)
    for image in (tmp_path / "flower.png", str(tmp_path / "flower.png"), picture):
        np.testing.assert_array_equal(rszoo.preprocess(image, "resnet-rs-50-i160"), expected)
    expected = rszoo.preprocess(picture, "resnet-rs-demo")
    for spec in (tmp_path / "m", str(tmp_path / "m")):
        np.testing.assert_array_equal(rszoo.preprocess(picture, spec), expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_any_colour_mode_becomes_rgb(mode):
    stored = io.BytesIO()
    Image.fromarray(PHOTOS["flower"]).convert(mode).save(stored, "TIFF")
    assert preprocess(Image.open(stored), Preprocessing(32)).shape == (1, 32, 32, 3)


def test_sixteen_bit_images_are_not_cut_silently(tmp_path):
    Image.fromarray(np.full((40, 40), 32639, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ImageError, match="8 bits"):
        preprocess(tmp_path / "deep.png", Preprocessing(32))


def test_unusable_images_are_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    truncated = io.BytesIO()
    Image.fromarray(PHOTOS["china"]).save(truncated, "JPEG")
    (tmp_path / "b.jpg").write_bytes(truncated.getvalue()[:3000])
    for name in ("a.jpg", "b.jpg"):
        with pytest.raises(ImageError, match=name):
            preprocess(tmp_path / name, Preprocessing(32))
    with pytest.raises(SourceNotFoundError, match=r"c\.jpg"):
        preprocess(tmp_path / "c.jpg", Preprocessing(32))
    with pytest.raises(ImageError, match="uint8"):
        preprocess(np.zeros((5, 5, 3)), Preprocessing(32))
    with pytest.raises(ImageError, match="too small"):
        preprocess(np.zeros((1, 1, 3), np.uint8), Preprocessing(32))
    with pytest.raises(ConfigError, match="get_entry"):
        preprocess(PHOTOS["china"], 224)
