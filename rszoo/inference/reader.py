"""The one reader of images in Python: the bytes of a file -> uint8 RGB. docs/data.md says what becomes of each format.

For JPEG and PNG the pixels are those of TensorFlow's decoders, with which the published networks were trained. Training
and evaluation leave to TensorFlow what it decodes alike, and bring everything else here (`rszoo.pipeline.decoding`).
"""

from __future__ import annotations

import functools
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from rszoo.errors import ImageError
from rszoo.inference import jpeg
from rszoo.terminal import warn_once

if TYPE_CHECKING:
    from PIL.Image import Image

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
#: More are not read: up to here, 2^28 bytes of RGB, Pillow opens images without a warning.
MAX_PIXELS = 2**28 // 3
#: A larger file is not read: as many bytes as the pixels may have.
MAX_FILE_BYTES = 3 * MAX_PIXELS
#: EXIF's orientation of an image that needs no turning.
UPRIGHT = 1
# Pillow's names of what is read. Not everything that Pillow has: it would start Ghostscript for EPS.
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
# The same, for error texts.
_READABLE = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, PPM"
_TOO_LARGE = f"it is too large: at most {MAX_PIXELS:,} pixels are read"
# Byte offsets in a PNG, whose first chunk is always the same: bits of a sample, and the type of its colours.
_PNG_DEPTH, _PNG_COLOURS, _PNG_GRAY = 24, 25, (0, 4)
_ORIENTATION = 0x0112
# Python's description of an object in memory, which differs between runs.
_ADDRESS = re.compile(r" *<[^<>]* at 0x[0-9a-f]+>")


@dataclass(frozen=True)
class Decoded:
    """An image's pixels, uint8 (H, W, 3) RGB, and which package decoded them.

    `exact`: a JPEG's are TensorFlow's, and another image's are the only ones that it has. Not so of a JPEG that Pillow
    decoded: by about one level of 255 on average.
    """

    pixels: np.ndarray
    decoder: Literal["simplejpeg", "Pillow"]
    exact: bool = True


def decode(encoded: bytes) -> Decoded:
    """Decode the bytes of an image's file. Transparency is dropped, EXIF's orientation is ignored.

    A JPEG that simplejpeg cannot decode, or any without simplejpeg, is decoded by Pillow, and a warning says so.

    Raises:
        ImageError: it is not a readable image, too large, or has gray levels of more than 8 bits.
    """
    if not encoded.startswith(jpeg.MAGIC):
        return Decoded(decode_by_pillow(encoded), "Pillow")
    # Some files have more after it, such as a second picture.
    end = encoded.rfind(jpeg.END)
    if end < 0:
        raise ImageError("not a readable image (it is truncated: a JPEG without an end)")
    encoded = encoded[: end + len(jpeg.END)]
    try:
        return Decoded(jpeg.decode_exactly(encoded, _check_size), "simplejpeg")
    except ModuleNotFoundError:
        reason = "simplejpeg is not installed; run: pip install simplejpeg"
    except ValueError as error:
        if isinstance(error, ImageError):
            raise
        reason = f"simplejpeg cannot decode it ({error})"
    with _opened(encoded) as image:
        pixels = _cmyk_of(image) if image.mode == "CMYK" else to_rgb(image)
    warn_once(f"a JPEG was decoded by Pillow, whose pixels are about 1 level of 255 off TensorFlow's: {reason}")
    return Decoded(pixels, "Pillow", exact=False)


def decode_by_pillow(encoded: bytes) -> np.ndarray:
    """Decode the bytes of an image's file by Pillow alone, as timm and torchvision do; return uint8 (H, W, 3).

    Raises:
        ImageError: as `decode`.
    """
    if encoded.startswith(PNG_MAGIC):
        encoded = _without_extras(encoded)
    with _opened(encoded) as image:
        return to_rgb(image)


def to_rgb(image: Image) -> np.ndarray:
    """Return the pixels of a Pillow image, uint8 (H, W, 3), without its transparency.

    Raises:
        ImageError: it cannot be decoded, or has gray levels of more than 8 bits.
    """
    with _no_other_errors():
        if image.mode.startswith(("I", "F")):
            raise ImageError(_too_deep(f"mode {image.mode}"))
        if "transparency" in image.info:
            # Pillow would look for a colour that stands for it, and warn if there is none.
            image = image.copy()
            del image.info["transparency"]
        return np.asarray(image.convert("RGB"))


def read_orientation(encoded: bytes) -> int:
    """Return EXIF's orientation of an image's file, 1 to 8; 1, upright, if it has none.

    TIFF's is not EXIF's but the format's own: `decode` obeys it, so this is 1.
    """
    from PIL import Image

    with suppress(ImageError), _no_other_errors(), Image.open(io.BytesIO(encoded), formats=_formats()) as image:
        return UPRIGHT if image.format == "TIFF" else orientation_of(image)
    return UPRIGHT


def orientation_of(image: Image) -> int:
    """Return EXIF's orientation of a Pillow image, 1 to 8; 1 if its EXIF data are damaged."""
    with suppress(ImageError), _no_other_errors():
        found: int = image.getexif().get(_ORIENTATION, UPRIGHT)
        return found if found in range(1, 9) else UPRIGHT
    return UPRIGHT


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return pixels (H, W, C) turned and mirrored so that an image with this EXIF orientation is upright."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


@contextmanager
def _opened(encoded: bytes) -> Iterator[Image]:
    """Open an image with Pillow; any error of the block becomes an ImageError."""
    from PIL import Image

    if not encoded:
        raise ImageError("it is empty")
    with _no_other_errors(), Image.open(io.BytesIO(encoded), formats=_formats()) as image:
        _check_size(*image.size)
        yield image


@contextmanager
def _no_other_errors() -> Iterator[None]:
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(_TOO_LARGE) from error
    except UnidentifiedImageError as error:
        raise ImageError(f"not a readable image (cannot identify image file); readable are {_READABLE}") from error
    except Exception as error:
        # Pillow's plug-ins raise whatever their arithmetic does with a damaged file.
        text = " ".join(_ADDRESS.sub("", str(error)).split()) or type(error).__name__
        raise ImageError(f"not a readable image ({text})") from error


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return those of the formats that the installed Pillow knows."""
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(_TOO_LARGE)


def _too_deep(found: str) -> str:
    return f"its gray levels have more than 8 bits ({found}), of an unknown range; convert it to 8 bits"


def _cmyk_of(image: Image) -> np.ndarray:
    # Pillow takes every file for Adobe's and inverts what is stored.
    return jpeg.cmyk_to_rgb(255 - np.asarray(image), by_adobe="adobe" in image.info)


def _without_extras(encoded: bytes) -> bytes:
    """Return a PNG without the chunks that do not make its pixels, as damaged or large texts make Pillow refuse it.

    Raises:
        ImageError: one that does is damaged, or the gray levels have 16 bits.
    """
    if encoded[_PNG_DEPTH : _PNG_DEPTH + 1] == b"\x10" and encoded[_PNG_COLOURS] in _PNG_GRAY:
        raise ImageError(_too_deep("16"))
    kept, position = [PNG_MAGIC], len(PNG_MAGIC)
    while (end := position + 12 + int.from_bytes(encoded[position : position + 4], "big")) <= len(encoded):
        name, stored_crc = encoded[position + 4 : position + 8], encoded[end - 4 : end]
        # The case of its first letter says whether a chunk may be ignored.
        if name[:1].isupper():
            if zlib.crc32(encoded[position + 4 : end - 4]) != int.from_bytes(stored_crc, "big"):
                raise ImageError("not a readable image (a PNG chunk is damaged)")
            kept.append(encoded[position:end])
        position = end
        if name == b"IEND":
            return b"".join(kept)
    # Truncated: Pillow says where.
    return b"".join([*kept, encoded[position:]])
