"""JPEG as TensorFlow decodes it by default: libjpeg-turbo's fast inverse DCT and smooth upsampling, by simplejpeg.

Facts: tensorflow `core/lib/jpeg/jpeg_mem.cc` (CMYK, and which end of a file is truncated) and `core/lib/jpeg/
jpeg_handle.cc`; the order of a file's markers is libjpeg's `jdmarker.c`. Pillow has the accurate DCT only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

MAGIC = b"\xff\xd8\xff"
END = b"\xff\xd9"

_MARKER = b"\xff"
_STUFFED, _APP0, _APP14 = 0x00, 0xE0, 0xEE
# TEM and RST0 to RST7: two bytes without a length, which mean nothing in a header.
_ALONE = {0x01, *range(0xD0, 0xD8)}
# SOI, EOI and SOS: after these come other things than segments.
_LAST = {0xD8, 0xD9, 0xDA}
# libjpeg takes a shorter one for something else.
_ADOBE_LENGTH = 2 + 2 + 12


def decode_exactly(encoded: bytes, check_size: Callable[[int, int], None]) -> np.ndarray:
    """Decode a JPEG as `tf.io.decode_jpeg(encoded, channels=3)` does; return uint8 (H, W, 3).

    `check_size` is called with width and height before anything is decoded, and may raise.

    Raises:
        ModuleNotFoundError: simplejpeg is not installed.
        ValueError: simplejpeg cannot decode it.
    """
    import simplejpeg

    encoded, by_adobe = _tidy_header(encoded)
    height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded, strict=False)
    check_size(width, height)
    # Not strict: TensorFlow decodes what libjpeg only warns of, too.
    if colours in ("CMYK", "YCCK"):
        return cmyk_to_rgb(simplejpeg.decode_jpeg(encoded, "CMYK", fastdct=True, strict=False), by_adobe=by_adobe)
    pixels: np.ndarray = simplejpeg.decode_jpeg(encoded, "RGB", fastdct=True, fastupsample=False, strict=False)
    return pixels


def cmyk_to_rgb(stored: np.ndarray, *, by_adobe: bool) -> np.ndarray:
    """Return the colours of CMYK as it is stored, uint8 (H, W, 4), by TensorFlow's formula.

    `by_adobe`: the file has Adobe's marker, which means that 255 is no ink.
    """
    ink_free = stored.astype(np.uint16) if by_adobe else 255 - stored.astype(np.uint16)
    return (ink_free[..., :3] * ink_free[..., 3:] // 255).astype(np.uint8)


def _tidy_header(encoded: bytes) -> tuple[bytes, bool]:
    """Return a JPEG without what simplejpeg refuses in a header but libjpeg skips, and whether it has Adobe's marker.

    That is stray bytes between the segments, and a JFIF version other than 1.
    """
    kept, by_adobe, position = [encoded[:2]], False, 2
    while (position := encoded.find(_MARKER, position)) >= 0:
        # Any number of these may stand before a marker.
        while encoded[position + 1 : position + 2] == _MARKER:
            position += 1
        if position + 4 > len(encoded):
            break
        marker = encoded[position + 1]
        if marker in _LAST:
            return b"".join([*kept, encoded[position:]]), by_adobe
        if marker == _STUFFED or marker in _ALONE:
            position += 2
            continue
        end = position + 2 + int.from_bytes(encoded[position + 2 : position + 4], "big")
        segment = encoded[position:end]
        by_adobe |= marker == _APP14 and segment[4:9] == b"Adobe" and len(segment) >= _ADOBE_LENGTH
        if marker == _APP0 and segment[4:9] == b"JFIF\0":
            segment = segment[:9] + b"\1" + segment[10:]
        kept.append(segment)
        position = end
    return encoded, by_adobe
