"""The published evaluation preprocessing, in numpy and Pillow: from an image to the network's input.

Center crop (offsets rounded up), TensorFlow 1's legacy bicubic resize, normalization. Facts:
tensorflow/tpu `models/official/resnet/resnet_preprocessing.py` for the crop, and the kernel of
`tf.compat.v1.image.resize_bicubic` (align_corners and half_pixel_centers both off) for the resize.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from rszoo.cache.find import ModelLike, find, names_model
from rszoo.errors import ConfigError, ImageError, SourceNotFoundError
from rszoo.registry.preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL.Image import Image

# TensorFlow takes bicubic weights from a table with this many steps per pixel, with Keys's a = -0.75.
_TABLE_STEPS = 1024
_KEYS_A = -0.75


class Preprocessed(Protocol):
    """Has its own preprocessing: a registry entry, a model folder, a model that `rszoo.create` made."""

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of images."""
        ...


def preprocess(
    image: str | os.PathLike[str] | Image | np.ndarray, spec: ModelLike | Preprocessing | Preprocessed
) -> np.ndarray:
    """Return the network's input for one image: float32 (1, size, size, 3), NHWC, normalized RGB.

    `image`: a path, a Pillow image, or uint8 (H, W, 3). `spec`: a `Preprocessing`, anything that has one as
    `.preprocessing` (a registry entry, a model that `rszoo.create` made), or what names a model: a registered name, a
    model folder's path, `hf-hub:OWNER/NAME`.

    EXIF orientation is ignored, as in TensorFlow's decoder.

    Raises:
        SourceNotFoundError: there is no such file.
        ImageError: it is not an image, or too small to crop.
        UnknownModelError: `spec` is a name that the registry does not have.
        ConfigError: `spec` does not determine the preprocessing.
    """
    settings = _resolve(spec)
    pixels = load_rgb(image)
    top, left, side = crop_box(settings, *pixels.shape[:2])
    if side < 1:
        raise ImageError(f"image of {pixels.shape[1]}x{pixels.shape[0]} pixels is too small: its crop would be empty")
    resized = resize_legacy_bicubic(pixels[top : top + side, left : left + side], settings.image_size)
    mean, std = (np.asarray(values, np.float32) * np.float32(255) for values in (settings.mean, settings.std))
    normalized: np.ndarray = (resized - mean) / std
    return normalized[None]


def crop_box(settings: Preprocessing, height: int, width: int) -> tuple[int, int, int]:
    """Return top, left and side, in pixels, of the square that is cropped from an image of this size."""
    padding = round(settings.image_size * (1 / settings.crop - 1))
    # float32 and truncated, as in the graph: another rounding moves the crop by a pixel for some sizes.
    ratio = np.float32(settings.image_size / (settings.image_size + padding))
    side = int(ratio * np.float32(min(height, width)))
    return (height - side + 1) // 2, (width - side + 1) // 2, side


def load_rgb(image: str | os.PathLike[str] | Image | np.ndarray) -> np.ndarray:
    """Return an image as uint8 (H, W, 3) RGB. Raises as `preprocess` does."""
    from PIL import Image as PillowImage

    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ImageError(f"an image array must be uint8 (H, W, 3), received {image.dtype} {image.shape}")
        return image
    if isinstance(image, PillowImage.Image):
        return _to_rgb(image)
    path = Path(image)
    if not path.is_file():
        raise SourceNotFoundError(f"no image at {path}; give the path of a JPEG or PNG file")
    try:
        with PillowImage.open(path) as opened:
            return _to_rgb(opened)
    except ImageError:
        raise
    except (OSError, SyntaxError, ValueError, PillowImage.DecompressionBombError) as error:
        raise ImageError(f"cannot read {path} as an image ({error}); give a JPEG or PNG file, for example") from error


def _to_rgb(image: Image) -> np.ndarray:
    if image.mode.startswith(("I", "F")):
        # Pillow would silently clip values above 255.
        raise ImageError(f"an image of mode {image.mode} has more than 8 bits per channel; convert it to 8 bits first")
    return np.asarray(image.convert("RGB"))


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


def _resolve(spec: ModelLike | Preprocessing | Preprocessed) -> Preprocessing:
    if names_model(spec):
        spec = find(spec)
    settings = getattr(spec, "preprocessing", spec)
    if not isinstance(settings, Preprocessing):
        raise ConfigError(
            f"cannot determine the preprocessing from {type(spec).__name__}; pass a model's name, "
            "rszoo.get_entry(...), or rszoo.Preprocessing(image_size=...)"
        )
    return settings
