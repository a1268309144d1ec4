"""JPEG as TensorFlow decodes it by default: libjpeg-turbo's fast inverse DCT and smooth upsampling, by simplejpeg.

Facts: tensorflow `core/lib/jpeg/jpeg_mem.cc` (CMYK, and which end of a file is truncated) and `core/lib/jpeg/
jpeg_handle.cc`; the order of a file's markers is libjpeg's `jdmarker.c`. Pillow has the accurate DCT only.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import numpy as np

MAGIC = b"\xff\xd8\xff"
END = b"\xff\xd9"

_MARKER = b"\xff"
_APP0, _APP14, _FRAMES = 0xE0, 0xEE, (0xC0, 0xC1, 0xC2)
# A stuffed 0, TEM and RST0 to RST7: without a length, and without a meaning in a header.
_ALONE = (0x00, 0x01, *range(0xD0, 0xD8))
# SOI, EOI and SOS: after these come other things than segments.
_LAST = (0xD8, 0xD9, 0xDA)
# libjpeg takes a shorter one for something else.
_ADOBE_LENGTH = 2 + 2 + 12
# Where it says how colours are transformed, and what that is, for 3 and 4 components, if it does not say 0, not at all.
_TRANSFORM, _TRANSFORMS = 15, {3: b"\1", 4: b"\2"}


def decode_exactly(encoded: bytes, check_size: Callable[[int, int], None]) -> np.ndarray:
    """Decode a JPEG as `tf.io.decode_jpeg(encoded, channels=3)` does; return uint8 (H, W, 3).

    `check_size` is called with width and height before anything is decoded, and may raise.

    Raises:
        ModuleNotFoundError: simplejpeg is not installed.
        ValueError: simplejpeg cannot decode it.
    """
    import simplejpeg

    encoded, by_adobe = _tidy_header(encoded)
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded, strict=False)
    except KeyError as error:
        raise ValueError("its header is damaged") from error
    check_size(width, height)
    if colours in ("CMYK", "YCCK"):
        return cmyk_to_rgb(_decode(encoded, "CMYK", (height, width, 4)), by_adobe=by_adobe)
    return _decode(encoded, "RGB", (height, width, 3))


def _decode(encoded: bytes, colours: str, shape: tuple[int, int, int]) -> np.ndarray:
    import simplejpeg

    decode: Callable[..., np.ndarray] = partial(
        simplejpeg.decode_jpeg, encoded, colours, fastdct=True, fastupsample=False
    )
    with suppress(ValueError):
        return decode()
    # Damaged. What libjpeg warned of it has filled in, and TensorFlow takes that. After an error it has not written
    # all pixels: then those of two buffers differ.
    first, second = (decode(buffer=np.full(shape, fill, np.uint8), strict=False) for fill in (0, 255))
    if not np.array_equal(first, second):
        raise ValueError("it is damaged")
    return first


def cmyk_to_rgb(stored: np.ndarray, *, by_adobe: bool) -> np.ndarray:
    """Return the colours of CMYK as it is stored, uint8 (H, W, 4), by TensorFlow's formula.

    `by_adobe`: the file has Adobe's marker, which means that 255 is no ink.
    """
    ink_free = stored.astype(np.uint16) if by_adobe else 255 - stored.astype(np.uint16)
    return (ink_free[..., :3] * ink_free[..., 3:] // 255).astype(np.uint8)


def _tidy_header(encoded: bytes) -> tuple[bytes, bool]:
    """Return a JPEG without what simplejpeg refuses in a header but libjpeg only warns of; and whether Adobe wrote it.

    That is stray bytes between the segments, a JFIF version other than 1, and an unknown transform of colours.
    """
    segments, rest = _split(encoded)
    components = next((segment[9] for segment in segments if segment[1] in _FRAMES and len(segment) > 9), 0)
    by_adobe = False
    for index, segment in enumerate(segments):
        if segment[1] == _APP0 and segment[4:9] == b"JFIF\0":
            segments[index] = segment[:9] + b"\1" + segment[10:]
        if segment[1] == _APP14 and segment[4:9] == b"Adobe" and len(segment) >= _ADOBE_LENGTH:
            by_adobe = True
            known = _TRANSFORMS.get(components, b"")
            if segment[_TRANSFORM : _TRANSFORM + 1] not in (b"\0", known):
                segments[index] = segment[:_TRANSFORM] + known + segment[_TRANSFORM + 1 :]
    return b"".join([encoded[:2], *segments, rest]), by_adobe


def _split(encoded: bytes) -> tuple[list[bytes], bytes]:
    """Return the segments of a JPEG's header, with their markers, and all that follows."""
    segments: list[bytes] = []
    position = 2
    while (position := encoded.find(_MARKER, position)) >= 0:
        # Any number of these may stand before a marker.
        while encoded[position + 1 : position + 2] == _MARKER:
            position += 1
        if position + 4 > len(encoded) or encoded[position + 1] in _LAST:
            return segments, encoded[position:]
        if encoded[position + 1] in _ALONE:
            position += 2
            continue
        end = position + 2 + max(2, int.from_bytes(encoded[position + 2 : position + 4], "big"))
        segments.append(encoded[position:end])
        position = end
    return segments, b""
