"""RandAugment's operations against Pillow where it does the same, against NumPy where the published code differs."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_images

from rszoo.pipeline import randaugment as policy
from rszoo.pipeline.randaugment import NAMES, Chance

CHINA, FLOWER = load_sample_images().images
RNG = np.random.default_rng(0)
TWO_VALUES = np.where(RNG.random((31, 47, 3)) < 0.5, 60, 200).astype(np.uint8)
TWO_VALUES[..., 1] = 90
IMAGES = {
    "china": CHINA[40:204, 300:531],
    "flower": FLOWER[100:197, 150:281],
    "random": RNG.integers(0, 256, (64, 33, 3), dtype=np.uint8),
    "dark": RNG.integers(20, 90, (45, 60, 3), dtype=np.uint8),
    "two values": TWO_VALUES,
    "constant": np.full((40, 52, 3), 77, np.uint8),
}
LEVELS = (5, 10, 15)
F32 = np.float32


def ours(name: str, level: float, sign: float = 1.0, row: int = 0, column: int = 0):
    """Return an operation as a compiled graph for images of any size, as `tf.data` runs it."""
    chance = Chance(tf.constant(sign), tf.constant(row), tf.constant(column))

    @tf.function(input_signature=[tf.TensorSpec((None, None, 3), tf.uint8)])
    def graph(image):
        return policy.apply(name, image, level, chance)

    return lambda image: graph(tf.constant(image)).numpy()


def check(name: str, level: float, expected, **chance) -> None:
    """Compare every byte of every image with what `expected` makes of it."""
    graph = ours(name, level, **chance)
    for title, image in IMAGES.items():
        result = graph(image)
        assert (result.shape, result.dtype) == (image.shape, np.uint8)
        different = np.count_nonzero(result != expected(image))
        assert different == 0, f"{name} at {level}, {title}: {different} of {image.size} bytes differ"


def pillow(operation):
    return lambda image: np.asarray(operation(Image.fromarray(image)))


def blend(degenerate, image, factor):
    mixed = F32(degenerate) + F32(factor) * (image.astype(F32) - F32(degenerate))
    return np.clip(mixed, 0, 255).astype(np.uint8)


def test_invert_and_equalize_equal_pillow():
    check("Invert", 10, pillow(ImageOps.invert))
    check("Equalize", 10, pillow(ImageOps.equalize))


def test_autocontrast_is_the_float32_stretch_of_each_channel_and_pillow_to_one_grey_level():
    def stretch(channel):
        low, high = F32(channel.min()), F32(channel.max())
        if low == high:
            return channel
        scale = F32(255) / (high - low)
        return np.clip(channel.astype(F32) * scale + -low * scale, 0, 255).astype(np.uint8)

    check("AutoContrast", 10, lambda image: np.stack([stretch(image[..., c]) for c in range(3)], -1))
    graph = ours("AutoContrast", 10)
    for image in IMAGES.values():
        distance = np.abs(graph(image).astype(int) - pillow(ImageOps.autocontrast)(image))
        assert distance.max() <= 1


@pytest.mark.parametrize(("level", "bits"), [(2.5, 1), (5, 2), (10, 4), (13.7, 5), (15, 6), (20, 8)])
def test_posterize_equals_pillow_with_four_tenths_of_the_magnitude_as_bits(level, bits):
    check("Posterize", level, pillow(lambda image: ImageOps.posterize(image, bits)))


@pytest.mark.parametrize("level", [0, 2.4, 22.5, 30])
def test_posterize_beyond_its_range_keeps_one_bit(level):
    # What TensorFlow makes of the published shifts of 8 and below 0, as bytes.
    shift = tf.constant((8 - int(level / 10 * 4)) % 256, tf.uint8)
    check("Posterize", level, lambda image: tf.bitwise.left_shift(tf.bitwise.right_shift(image, shift), shift).numpy())
    check("Posterize", level, lambda image: np.where(image < 128, 0, 128))


@pytest.mark.parametrize(("level", "threshold"), [(0, 0), (5, 128), (7.3, 186), (10, 0), (15, 128), (17, 179)])
def test_solarize_equals_pillow_with_a_threshold_that_wraps_at_256(level, threshold):
    check("Solarize", level, pillow(lambda image: ImageOps.solarize(image, threshold)))
    # TensorFlow itself wraps the published threshold.

    def published(image):
        return tf.where(image < int(level / 10 * 256), image, 255 - image)

    check("Solarize", level, lambda image: published(tf.constant(image)).numpy())


@pytest.mark.parametrize(("level", "addition"), [(5, 55), (10, 110), (15, 165), (30, 330)])
def test_solarize_add_adds_below_128(level, addition):
    check(
        "SolarizeAdd", level, lambda image: np.where(image < 128, np.minimum(image.astype(int) + addition, 255), image)
    )


@pytest.mark.parametrize("level", [0, *LEVELS, 13.7])
def test_brightness_equals_pillow(level):
    check("Brightness", level, pillow(lambda image: ImageEnhance.Brightness(image).enhance(level / 10 * 1.8 + 0.1)))


def gray(image):
    pixels = image.astype(F32) * F32(1 / 255)
    mixed = pixels[..., 0] * F32(0.2989) + pixels[..., 1] * F32(0.587) + pixels[..., 2] * F32(0.114)
    return (mixed * F32(255.5)).astype(np.uint8)


@pytest.mark.parametrize("level", [0, *LEVELS, 13.7])
def test_color_blends_with_tensorflows_grey(level):
    factor = level / 10 * 1.8 + 0.1
    check("Color", level, lambda image: blend(gray(image)[..., None], image, factor))


@pytest.mark.parametrize("level", [0, *LEVELS, 13.7])
def test_contrast_blends_with_the_pixel_count_not_the_mean(level):
    factor = level / 10 * 1.8 + 0.1
    check("Contrast", level, lambda image: blend(int(min(image.shape[0] * image.shape[1] / 256, 255)), image, factor))
    graph = ours("Contrast", level)
    for height, width, expected in [(224, 224, 196), (160, 160, 100), (256, 256, 255), (320, 320, 255), (100, 67, 26)]:
        image = CHINA[:height, :width]
        np.testing.assert_array_equal(graph(image), blend(expected, image, factor))


def smooth(image):
    """Sum the weighted neighbours row by row in float32, as the kernel of the published convolution does."""
    pixels, (height, width) = image.astype(F32), image.shape[:2]
    total = np.zeros((height - 2, width - 2, 3), F32)
    for row in range(3):
        for column in range(3):
            weight = F32(5 if row == column == 1 else 1) / F32(13)
            total = total + pixels[row : row + height - 2, column : column + width - 2] * weight
    result = image.copy()
    result[1:-1, 1:-1] = np.clip(total, 0, 255).astype(np.uint8)
    return result


@pytest.mark.parametrize("level", [0, *LEVELS, 13.7])
def test_sharpness_blends_with_the_smoothed_image(level):
    check("Sharpness", level, lambda image: blend(smooth(image), image, level / 10 * 1.8 + 0.1))


def test_the_order_of_summing_matters_only_where_thirteen_divides_the_sum():
    pixels = IMAGES["flower"].astype(int)
    around = [np.roll(pixels, (row, column), (0, 1)) for row in (-1, 0, 1) for column in (-1, 0, 1)]
    weighted = (sum(around) + 4 * pixels)[1:-1, 1:-1]
    sure = weighted % 13 > 0
    np.testing.assert_array_equal(smooth(IMAGES["flower"])[1:-1, 1:-1][sure], (weighted // 13)[sure])


@pytest.mark.parametrize("name", ["Color", "Contrast", "Brightness", "Sharpness"])
def test_magnitude_5_leaves_the_image_to_the_four_blends(name):
    check(name, 5, lambda image: image)


def matrix(name: str, value: float, height: int, width: int):
    """Return (a, b, c, d, e, f): a pixel (x, y) comes from (a x + b y + c, d x + e y + f)."""
    if name == "Rotate":
        cos, sin = np.cos(np.deg2rad(value)), np.sin(np.deg2rad(value))
        middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
        shift_x, shift_y = middle_x - cos * middle_x + sin * middle_y, middle_y - sin * middle_x - cos * middle_y
        return (cos, -sin, shift_x, sin, cos, shift_y)
    return {
        "ShearX": (1, value, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, value, 1, 0),
        "TranslateX": (1, 0, value, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, value),
    }[name]


def sources(coefficients, shape, kind):
    """Return where every pixel comes from, x and y, computed in the float type `kind`."""
    a, b, c, d, e, f = (kind(value) for value in coefficients)
    x, y = np.arange(shape[1], dtype=kind), np.arange(shape[0], dtype=kind)[:, None]
    return a * x + b * y + c, d * x + e * y + f


def nearest(image, x, y):
    """Sample, a half away from zero, with 128 outside."""
    column, row = (np.trunc(v.astype(np.float64) + np.copysign(0.5, v)).astype(int) for v in (x, y))
    inside = (row >= 0) & (row < image.shape[0]) & (column >= 0) & (column < image.shape[1])
    height, width = image.shape[:2]
    return np.where(inside[..., None], image[row.clip(0, height - 1), column.clip(0, width - 1)], 128)


STRENGTH = {"Rotate": 30, "ShearX": 0.3, "ShearY": 0.3, "TranslateX": 100, "TranslateY": 100}


@pytest.mark.parametrize("level", [*LEVELS, 1.37])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("name", ["ShearX", "ShearY", "TranslateX", "TranslateY"])
def test_shears_and_translations_move_nearest_pixels_about_the_corner(name, sign, level):
    def expected(image):
        return nearest(image, *sources(matrix(name, sign * (level / 10) * STRENGTH[name], 0, 0), image.shape, F32))

    check(name, level, expected, sign=sign)


@pytest.mark.parametrize("level", [*LEVELS, 1.37])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("name", STRENGTH)
def test_geometry_equals_pillow_where_pillow_is_sure(name, sign, level):
    graph = ours(name, level, sign=sign)
    for title, image in IMAGES.items():
        a, b, c, d, e, f = matrix(name, sign * level / 10 * STRENGTH[name], *image.shape[:2])
        # Pillow samples the middles of pixels, and computes in 16.16 fixed point.
        corner = (a, b, c + (1 - a - b) / 2, d, e, f + (1 - d - e) / 2)
        size, affine = image.shape[1::-1], Image.Transform.AFFINE
        theirs = Image.fromarray(image).transform(size, affine, corner, Image.Resampling.NEAREST, fillcolor=(128,) * 3)
        x, y = np.broadcast_arrays(*sources((a, b, c, d, e, f), image.shape, np.float64))
        sure = (np.abs(x - np.floor(x) - 0.5) > 0.01) & (np.abs(y - np.floor(y) - 0.5) > 0.01)
        assert sure.mean() > 0.85, title
        np.testing.assert_array_equal(graph(image)[sure], np.asarray(theirs)[sure], err_msg=title)


def test_rotation_is_counter_clockwise_about_the_centre_and_exact_but_for_halves():
    image = IMAGES["china"]
    for level, sign in [(15, 1.0), (10, -1.0)]:
        x, y = sources(matrix("Rotate", sign * level * 3, *image.shape[:2]), image.shape, np.float64)
        sure = (np.abs(x - np.floor(x) - 0.5) > 1e-4) & (np.abs(y - np.floor(y) - 0.5) > 1e-4)
        assert sure.mean() > 0.999
        np.testing.assert_array_equal(ours("Rotate", level, sign=sign)(image)[sure], nearest(image, x, y)[sure])
    square = CHINA[:99, :99]
    np.testing.assert_array_equal(ours("Rotate", 30)(square), np.rot90(square))


@pytest.mark.parametrize(("row", "column"), [(0, 0), (20, 30), (30, 46), (3, 40)])
@pytest.mark.parametrize("level", [0.2, 2.6, *LEVELS])
def test_cutout_fills_a_square_that_ends_at_the_borders(level, row, column):
    def expected(image):
        half, result = int(level * 4), image.copy()
        result[max(row - half, 0) : row + half, max(column - half, 0) : column + half] = 128
        return result

    check("Cutout", level, expected, row=row, column=column)


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_for_one_size_gives_the_same(name):
    # Knowing the size, TensorFlow's graph optimizer merges constants, and sums in the order of the nodes' names: 10
    # comes before 2. The slice in front moves Sharpness's nine neighbours to such names.
    image, chance = IMAGES["china"], Chance(tf.constant(-1.0), tf.constant(20), tf.constant(30))
    graph = tf.function(lambda pixels: policy.apply(name, pixels[1:], 15, chance))
    expected = ours(name, 15, sign=-1.0, row=20, column=30)(image[1:])
    np.testing.assert_array_equal(graph(tf.constant(image)), expected)


@pytest.mark.parametrize("level", LEVELS)
def test_equals_the_model_garden_but_for_what_it_changed(level, monkeypatch):
    garden = pytest.importorskip("official.vision.ops.augment", reason="tf-models-official is not installed")
    project = tf.raw_ops.ImageProjectiveTransformV3
    # It reflects the image into the holes; the TF1 code fills them with 128.
    monkeypatch.setattr(
        tf.raw_ops, "ImageProjectiveTransformV3", lambda **settings: project(**{**settings, "fill_mode": "CONSTANT"})
    )
    for sign in (1.0, -1.0):
        monkeypatch.setattr(garden, "_randomly_negate_tensor", lambda value, sign=sign: tf.constant(value) * sign)
        # Its Contrast is tf.image.adjust_contrast today, and Cutout's place cannot be given.
        for name in sorted(set(NAMES) - {"Contrast", "Cutout"}):
            function, _, arguments = garden._parse_policy_info(name, 1.0, float(level), [128] * 3, 40.0, 100.0)
            for image in IMAGES.values():
                theirs = function(tf.constant(image), None, *arguments)[0].numpy()
                different = (theirs != ours(name, level, sign=sign)(image)).mean()
                # With oneDNN, TensorFlow's convolution sums in another order.
                assert different <= (0.02 if name == "Sharpness" else 0), name
