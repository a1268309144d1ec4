"""What the corpus of images is made of: a small picture, files of it by Pillow, and what must become of a file."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

_PHOTO = load_sample_images().images[0][40:64, 60:91]
#: 24 x 31 pixels, and what remains of them in fewer colours.
PIXELS = np.ascontiguousarray(_PHOTO)
GRAY = np.asarray(Image.fromarray(PIXELS).convert("L"))
PALETTED = Image.fromarray(PIXELS).quantize(16)
IN_16_COLOURS = np.asarray(PALETTED.convert("RGB"))


@dataclass(frozen=True)
class Case:
    """A file. `pixels`: what it must become, uint8 (H, W, 3), "TensorFlow's", "Pillow's", or None: both refuse it.

    `reason` is in the text of the refusal.
    """

    name: str
    encoded: bytes
    pixels: np.ndarray | str | None
    reason: str = ""


def save(pixels: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    """Return an image's file, by Pillow."""
    stored = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(stored, kind, **options)
    return stored.getvalue()


def rotated(kind: str = "JPEG", orientation: int = 6, **options: object) -> bytes:
    """Return a file whose EXIF says that it is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(PIXELS, kind, exif=exif, **options)


def gray(levels: np.ndarray) -> np.ndarray:
    """Return gray levels as RGB."""
    return np.repeat(levels.astype(np.uint8)[..., None], 3, 2)


def patched(encoded: bytes, marker: bytes, offset: int, values: bytes) -> bytes:
    """Return a file with other bytes so far after the first occurrence of a marker."""
    start = encoded.index(marker) + offset
    return encoded[:start] + values + encoded[start + len(values) :]
