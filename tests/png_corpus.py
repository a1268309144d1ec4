"""PNGs of every kind of pixel and chunk, whole and broken."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from tests.image_files import GRAY, IN_16_COLOURS, PALETTED, PIXELS, Case, gray, patched, rotated, save

SIZE = PIXELS.shape[:2]
RGBA = np.dstack([PIXELS, GRAY])
GRAY_ALPHA = np.dstack([GRAY, GRAY[::-1]])


def pngs() -> Iterator[Case]:
    """Yield all of them."""
    for cases in (_shallow, _usual, _of_16_bits, _odd, _broken):
        yield from cases()


def _chunk(name: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _png(
    rows: Iterable[np.ndarray],
    size: tuple[int, int],
    depth: int,
    colours: int,
    *,
    extra: bytes = b"",
    interlaced: bool = False,
) -> bytes:
    """Return a PNG of packed rows, uint8, without filters; `extra` are chunks before the pixels."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", size[1], size[0], depth, colours, 0, 0, interlaced))
    content = _chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + extra + content + _chunk(b"IEND", b"")


def _packed(levels: np.ndarray, depth: int) -> np.ndarray:
    """Return rows of samples of fewer than 8 bits as bytes."""
    bits = (levels[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    return np.packbits(bits.reshape(len(levels), -1).astype(np.uint8), axis=1)


def _deep(levels: np.ndarray) -> np.ndarray:
    """Return rows of 16-bit samples whose high bytes are the levels."""
    low = np.arange(levels.size, dtype=np.uint16).reshape(levels.shape) * 37 % 256
    return ((levels.astype(np.uint16) << 8) | low).astype(">u2").reshape(len(levels), -1).view(np.uint8)


def _rows(samples: np.ndarray) -> np.ndarray:
    return samples.reshape(len(samples), -1)


def _shallow() -> Iterator[Case]:
    for depth in (1, 2, 4):
        levels = GRAY >> (8 - depth)
        rows = _packed(levels, depth)
        full = gray(levels.astype(int) * 255 // (2**depth - 1))
        yield Case(f"PNG gray of {depth} bits", _png(rows, SIZE, depth, 0), full)
        colours = np.random.default_rng(depth).integers(0, 256, (2**depth, 3), dtype=np.uint8)
        palette = _chunk(b"PLTE", colours.tobytes())
        yield Case(f"PNG palette of {depth} bits", _png(rows, SIZE, depth, 3, extra=palette), colours[levels])


def _usual() -> Iterator[Case]:
    yield Case("PNG gray", save(GRAY, "PNG"), gray(GRAY))
    yield Case("PNG RGB", save(PIXELS, "PNG"), PIXELS)
    yield Case("PNG palette", save(PALETTED, "PNG"), IN_16_COLOURS)
    transparent = _chunk(b"PLTE", np.asarray(PALETTED.getpalette()[:48], np.uint8).tobytes())
    transparent += _chunk(b"tRNS", bytes(range(0, 160, 10)))
    yield Case("PNG palette with tRNS", _png(np.asarray(PALETTED), SIZE, 8, 3, extra=transparent), IN_16_COLOURS)
    yield Case("PNG gray with tRNS", _png(GRAY, SIZE, 8, 0, extra=_chunk(b"tRNS", b"\0\x40")), gray(GRAY))
    yield Case("PNG RGB with alpha", _png(_rows(RGBA), SIZE, 8, 6), PIXELS)
    yield Case("PNG gray with alpha", _png(_rows(GRAY_ALPHA), SIZE, 8, 4), gray(GRAY))
    # Rows of the seven passes of a 2 x 2 image: two of them have a pixel, the last one a row of two.
    square = PIXELS[:2, :2]
    passes = (square[0, 0], square[0, 1], square[1].reshape(-1))
    yield Case("PNG interlaced", _png(passes, (2, 2), 8, 2, interlaced=True), square)


def _of_16_bits() -> Iterator[Case]:
    yield Case("PNG RGB of 16 bits", _png(_deep(_rows(PIXELS)), SIZE, 16, 2), PIXELS)
    yield Case("PNG RGB with alpha of 16 bits", _png(_deep(_rows(RGBA)), SIZE, 16, 6), PIXELS)
    yield Case("PNG gray of 16 bits", _png(_deep(GRAY), SIZE, 16, 0), None, "8 bits")
    yield Case("PNG gray with alpha of 16 bits", _png(_deep(_rows(GRAY_ALPHA)), SIZE, 16, 4), None, "8 bits")


def _odd() -> Iterator[Case]:
    text = _chunk(b"tEXt", b"title\0of mine")
    extras = {
        "a text with a wrong checksum": text[:-4] + b"nope",
        "a damaged compressed text": _chunk(b"zTXt", b"title\0\0not zlib"),
        "a text of 2 MB": _chunk(b"zTXt", b"title\0\0" + zlib.compress(b"x" * 2**21)),
        "a wrong colour profile": _chunk(b"iCCP", b"profile\0\0not zlib"),
        "a gamma": _chunk(b"gAMA", struct.pack(">I", 100000)),
        "an unknown chunk": _chunk(b"abCd", b"whatever"),
    }
    for name, extra in extras.items():
        yield Case(f"PNG with {name}", _png(_rows(PIXELS), SIZE, 8, 2, extra=extra), PIXELS)
    animation = save(PIXELS, "PNG", save_all=True, append_images=[Image.fromarray(PIXELS[::-1])])
    yield Case("PNG animated", animation, PIXELS)
    yield Case("PNG with bytes after its end", _png(_rows(PIXELS), SIZE, 8, 2) + b"trailer", PIXELS)
    yield Case("PNG with EXIF orientation", rotated("PNG"), PIXELS)


def _broken() -> Iterator[Case]:
    plain = _png(_rows(PIXELS), SIZE, 8, 2)
    yield Case("PNG cut", plain[: len(plain) // 2], None, "not a readable image")
    yield Case("PNG with damaged pixels", patched(plain, b"IDAT", 40, b"\0\0\0\0"), None, "damaged")
    yield Case("PNG with a damaged header", patched(plain, b"IHDR", 4, b"\1"), None, "damaged")
    yield Case("PNG only its first bytes", plain[:8], None, "not a readable image")
    # Whole, of 90 million pixels: TensorFlow would decode it, and Pillow only warn.
    white = np.full((9000, 1250), 255, np.uint8)
    yield Case("PNG of too many pixels", _png(white, (9000, 10000), 1, 0), None, "too large")
