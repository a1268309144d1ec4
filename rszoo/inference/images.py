"""The published evaluation preprocessing, in numpy: from an image to the network's input.

TF1's: center crop (offsets rounded up), TensorFlow 1's legacy bicubic resize, normalization. Facts: tensorflow/tpu
`models/official/resnet/resnet_preprocessing.py` for the crop, and the kernel of `tf.compat.v1.image.resize_bicubic`
(align_corners and half_pixel_centers both off) for the resize. The Model Garden's: another center crop, and the
bilinear `tf.image.resize`. Facts: tensorflow/models `official/vision/ops/preprocess_ops.py` (`center_crop_image`) and
`dataloaders/classification_input.py`.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from rszoo.cache.find import ModelLike, find, names_model
from rszoo.disk.regular import read_regular
from rszoo.errors import ConfigError, ImageError, SourceNotFoundError
from rszoo.inference.reader import (
    MAX_FILE_BYTES,
    UPRIGHT,
    Decoded,
    decode,
    orientation_of,
    read_orientation,
    to_rgb,
    upright,
)
from rszoo.registry.preprocessing import LUMA, Preprocessing
from rszoo.terminal import warn_once

if TYPE_CHECKING:
    from PIL.Image import Image

# TensorFlow takes bicubic weights from a table with this many steps per pixel, with Keys's a = -0.75.
_TABLE_STEPS = 1024
_KEYS_A = -0.75

_IGNORED = (
    "the EXIF data of an image say that it is rotated or mirrored; that is ignored, as in the published code, unless "
    "you give --exif (in Python exif=True)"
)


class Preprocessed(Protocol):
    """Has its own preprocessing: a registry entry, a model folder, a model that `rszoo.create` made."""

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of images."""
        ...


def preprocess(
    image: str | os.PathLike[str] | Image | np.ndarray,
    spec: ModelLike | Preprocessing | Preprocessed,
    *,
    exif: bool = False,
) -> np.ndarray:
    """Return the network's input for one image: float32 (1, size, size, channels), NHWC, normalized RGB or gray.

    `image`: a path, a Pillow image, or uint8 (H, W, 3). `spec`: a `Preprocessing`, anything that has one as
    `.preprocessing` (a registry entry, a model that `rszoo.create` made), or what names a model: a registered name, a
    model folder's path, `hf-hub:OWNER/NAME`. As many channels as the model takes: 3, or 1, the image's luma.

    A file is decoded as TensorFlow does in training and evaluation (docs/data.md). A Pillow image has the pixels that
    Pillow gave it, which for a JPEG are others: give its path. `exif`: turn and mirror the image as its EXIF
    orientation says, which the published code ignores; without it a warning says that an orientation was ignored.

    Raises:
        SourceNotFoundError: there is no such file.
        ImageError: it is not an image, or too small to crop.
        UnknownModelError: `spec` is a name that the registry does not have.
        ConfigError: `spec` does not determine the preprocessing, or takes other channels than RGB or gray.
    """
    settings = _resolve(spec)
    pixels = _load(image, exif)
    top, left, side = crop_box(settings, *pixels.shape[:2])
    if side < 1:
        raise ImageError(f"image of {pixels.shape[1]}x{pixels.shape[0]} pixels is too small: its crop would be empty")
    resize = {"legacy-bicubic": resize_legacy_bicubic, "bilinear": resize_bilinear}[settings.interpolation]
    resized = resize(pixels[top : top + side, left : left + side], settings.image_size)
    mean, std = (np.asarray(values, np.float32) * np.float32(255) for values in (settings.mean, settings.std))
    if settings.channels == 1:
        resized = resized @ np.asarray(LUMA, np.float32)[:, None]
    normalized: np.ndarray = (resized - mean) / std
    return normalized[None]


def read_image(path: str | os.PathLike[str], *, exif: bool = False) -> Decoded:
    """Return the pixels of an image's file, with its EXIF orientation applied or, by default, ignored.

    Raises:
        SourceNotFoundError: there is no such file.
        ImageError: it is not a readable image.
    """
    path = Path(path)
    if not path.is_file():
        raise SourceNotFoundError(f"no image at {path}; give the path of a JPEG or PNG file")
    try:
        encoded = read_regular(path, MAX_FILE_BYTES)
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}") from error
    try:
        decoded = decode(encoded)
    except ImageError as error:
        raise ImageError(f"cannot read {path}: {error}") from error
    return replace(decoded, pixels=_turned(decoded.pixels, read_orientation(encoded), exif))


def crop_box(settings: Preprocessing, height: int, width: int) -> tuple[int, int, int]:
    """Return top, left and side, in pixels, of the square that is cropped from an image of this size."""
    if settings.interpolation == "bilinear":
        # float32, and the offsets are of the side before it is truncated, as in the graph.
        exact = np.float32(settings.crop) * np.float32(min(height, width))
        top, left = (int((np.float32(length) - exact) / np.float32(2)) for length in (height, width))
        return top, left, int(exact)
    padding = round(settings.image_size * (1 / settings.crop - 1))
    # float32 and truncated, as in the graph: another rounding moves the crop by a pixel for some sizes.
    ratio = np.float32(settings.image_size / (settings.image_size + padding))
    side = int(ratio * np.float32(min(height, width)))
    return (height - side + 1) // 2, (width - side + 1) // 2, side


def resize_legacy_bicubic(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resize (H, W, C) to float32 (size, size, C) as `tf.compat.v1.image.resize_bicubic` does by default.

    No half-pixel shift, no antialiasing, edges clamped; values may exceed the input's range.
    """
    rows, row_weights = _taps(pixels.shape[0], size)
    columns, column_weights = _taps(pixels.shape[1], size)
    result = np.zeros((size, pixels.shape[1], pixels.shape[2]), np.float32)
    for tap in range(4):
        result += row_weights[:, tap, None, None] * pixels[rows[:, tap]]
    narrow = np.zeros((size, size, pixels.shape[2]), np.float32)
    for tap in range(4):
        narrow += column_weights[None, :, tap, None] * result[:, columns[:, tap]]
    return narrow


def resize_bilinear(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resize (H, W, C) to float32 (size, size, C) as `tf.image.resize` does by default.

    Half-pixel centers, no antialiasing, edges clamped.
    """
    (top, bottom, down), (left, right, across) = (_neighbors(length, size) for length in pixels.shape[:2])
    columns = pixels.astype(np.float32)
    narrow = columns[:, left] + (columns[:, right] - columns[:, left]) * across[None, :, None]
    resized: np.ndarray = narrow[top] + (narrow[bottom] - narrow[top]) * down[:, None, None]
    return resized


def _neighbors(in_size: int, out_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the 2 source indices of each output pixel, and how far it is from the first to the second, float32."""
    scale = np.float32(in_size) / np.float32(out_size)
    source = (np.arange(out_size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    base = np.floor(source)
    lower = np.maximum(base.astype(np.int64), 0)
    upper = np.minimum(np.ceil(source).astype(np.int64), in_size - 1)
    return lower, upper, source - base


def _taps(in_size: int, out_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the 4 source indices and float32 weights of each output pixel, both (out_size, 4)."""
    source = np.arange(out_size, dtype=np.float32) * np.float32(in_size / out_size)
    base = np.floor(source).astype(np.int64)
    step = np.rint((source - base) * np.float32(_TABLE_STEPS)).astype(np.int64)
    near = step / _TABLE_STEPS
    weights = np.stack([_outer(near + 1), _inner(near), _inner(1 - near), _outer(2 - near)], axis=1)
    indices = np.clip(base[:, None] + np.arange(-1, 3), 0, in_size - 1)
    return indices, weights.astype(np.float32)


def _inner(x: np.ndarray) -> np.ndarray:
    """Keys's cubic for distances up to 1."""
    values: np.ndarray = ((_KEYS_A + 2) * x - (_KEYS_A + 3)) * x * x + 1
    return values


def _outer(x: np.ndarray) -> np.ndarray:
    """Keys's cubic for distances from 1 to 2."""
    values: np.ndarray = ((_KEYS_A * x - 5 * _KEYS_A) * x + 8 * _KEYS_A) * x - 4 * _KEYS_A
    return values


def _load(image: str | os.PathLike[str] | Image | np.ndarray, exif: bool) -> np.ndarray:
    """Return an image as uint8 (H, W, 3) RGB. Raises as `preprocess` does."""
    from PIL import Image as PillowImage

    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ImageError(f"an image array must be uint8 (H, W, 3), received {image.dtype} {image.shape}")
        return image
    if isinstance(image, PillowImage.Image):
        # In this order: once its pixels are loaded, Pillow has turned a TIFF and forgets its orientation.
        pixels = to_rgb(image)
        return _turned(pixels, orientation_of(image), exif)
    return read_image(image, exif=exif).pixels


def _turned(pixels: np.ndarray, orientation: int, exif: bool) -> np.ndarray:
    if exif:
        return upright(pixels, orientation)
    if orientation != UPRIGHT:
        warn_once(_IGNORED)
    return pixels


def _resolve(spec: ModelLike | Preprocessing | Preprocessed) -> Preprocessing:
    if names_model(spec):
        spec = find(spec)
    settings = getattr(spec, "preprocessing", spec)
    if not isinstance(settings, Preprocessing):
        raise ConfigError(
            f"cannot determine the preprocessing from {type(spec).__name__}; pass a model's name, "
            "rszoo.get_entry(...), or rszoo.Preprocessing(image_size=...)"
        )
    taken = _channels_of(spec)
    fitted = settings if taken is None else settings.for_channels(taken)
    if taken not in (None, fitted.channels):
        raise ConfigError(
            f"the model takes {taken} channels, and images become 3 (RGB) or 1 (gray); prepare its input yourself"
        )
    return fitted


def _channels_of(spec: object) -> int | None:
    """Return how many channels a model takes: of a registry entry, a model folder, or a live model."""
    arch = getattr(spec, "arch", None) or getattr(spec, "config", None)
    arch = getattr(arch, "arch", arch)
    return getattr(arch, "in_chans", None)
