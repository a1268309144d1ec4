"""Image files of every format that users have, made here, small, with what both readers must make of each.

docs/data.md has the same decisions in words.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.image_files import GRAY, IN_16_COLOURS, PALETTED, PIXELS, Case, gray, rotated, save
from tests.jpeg_corpus import jpegs
from tests.png_corpus import pngs


def corpus() -> Iterator[Case]:
    """Yield all files."""
    for cases in (jpegs, pngs, _gifs, _bmps, _webps, _tiffs, _others, _none):
        yield from cases()


def _gifs() -> Iterator[Case]:
    whole = save(PALETTED, "GIF")
    yield Case("GIF", whole, IN_16_COLOURS)
    yield Case("GIF interlaced", save(PALETTED, "GIF", interlace=1), IN_16_COLOURS)
    yield Case("GIF gray", save(GRAY, "GIF"), gray(GRAY))
    yield Case("GIF transparent", save(PALETTED, "GIF", transparency=3), IN_16_COLOURS)
    frames = {"save_all": True, "append_images": [PALETTED.transpose(Image.Transpose.ROTATE_180)]}
    yield Case("GIF animated", save(PALETTED, "GIF", **frames), IN_16_COLOURS)
    # The canvas is 3 wider and 2 higher than the picture on it, with the palette's first colour around it.
    larger = whole[:6] + struct.pack("<HH", PIXELS.shape[1] + 3, PIXELS.shape[0] + 2) + whole[10:]
    around = np.tile(np.asarray(PALETTED.getpalette()[:3], np.uint8), (26, 34, 1))
    around[:24, :31] = IN_16_COLOURS
    yield Case("GIF smaller than its canvas", larger, around)
    yield Case("GIF cut", whole[: len(whole) // 2], None, "not a readable image")


def bmp(
    body: bytes, size: tuple[int, int], bits: int, *, kind: int = 0, extra: bytes = b"", old: bool = False
) -> bytes:
    """Return a BMP of rows as they are stored; `extra`: masks or a palette; `old`: the header of OS/2."""
    height, width = size
    if old:
        header = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        colours = len(extra) // 4 if bits <= 8 else 0
        header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, kind, len(body), 0, 0, colours, 0)
    start = 14 + len(header) + len(extra)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + extra + body


def _bmps() -> Iterator[Case]:
    yield Case("BMP", save(PIXELS, "BMP"), PIXELS)
    yield Case("BMP of 32 bits", save(Image.fromarray(PIXELS).convert("RGBA"), "BMP"), PIXELS)
    yield Case("BMP gray", save(GRAY, "BMP"), gray(GRAY))
    yield Case("BMP palette", save(PALETTED, "BMP"), IN_16_COLOURS)
    black_and_white = Image.fromarray(PIXELS).convert("1")
    yield Case("BMP of 1 bit", save(black_and_white, "BMP"), np.asarray(black_and_white.convert("RGB")))
    two = bytes([3, 2, 1, 6, 5, 4, 0, 0, 9, 8, 7, 12, 11, 10, 0, 0])
    up = np.asarray([[[7, 8, 9], [10, 11, 12]], [[1, 2, 3], [4, 5, 6]]], np.uint8)
    yield Case("BMP from the bottom", bmp(two, (2, 2), 24), up)
    yield Case("BMP from the top", bmp(two, (-2, 2), 24), up[::-1])
    yield Case("BMP of OS/2", bmp(two, (2, 2), 24, old=True), up)
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    pure = struct.pack("<HHHH", 0xF800, 0x7E0, 0x1F, 0xFFFF)
    known = np.asarray([[[0, 0, 255], [255, 255, 255]], [[255, 0, 0], [0, 255, 0]]], np.uint8)
    yield Case("BMP of 16 bits", bmp(pure, (2, 2), 16, kind=3, extra=masks), known)
    palette = bytes([30, 20, 10, 0, 60, 50, 40, 0, 90, 80, 70, 0])
    colours = np.asarray([[10, 20, 30], [40, 50, 60], [70, 80, 90]], np.uint8)
    run = bmp(bytes([4, 1, 0, 0, 2, 0, 2, 2, 0, 1]), (2, 4), 8, kind=1, extra=palette)
    yield Case("BMP in runs", run, colours[np.asarray([[0, 0, 2, 2], [1, 1, 1, 1]])])
    four = bmp(bytes([0x01, 0x20, 0, 0, 0x21, 0x00, 0, 0]), (2, 3), 4, extra=palette)
    yield Case("BMP palette of 4 bits", four, colours[np.asarray([[2, 1, 0], [0, 1, 2]])])
    yield Case("BMP with bytes after its end", save(PIXELS, "BMP") + b"trailer", PIXELS)
    yield Case("BMP cut", save(PIXELS, "BMP")[:-500], None, "truncated")


def _webps() -> Iterator[Case]:
    translucent = Image.fromarray(np.dstack([PIXELS, GRAY]))
    yield Case("WebP lossy", save(PIXELS, "WEBP", quality=60), "Pillow's")
    yield Case("WebP lossless", save(PIXELS, "WEBP", lossless=True), PIXELS)
    yield Case("WebP with alpha", save(translucent, "WEBP", lossless=True, exact=True), PIXELS)
    frames = {"save_all": True, "append_images": [Image.fromarray(PIXELS[::-1])], "lossless": True}
    yield Case("WebP animated", save(PIXELS, "WEBP", **frames), PIXELS)
    yield Case("WebP cut", save(PIXELS, "WEBP", lossless=True)[:200], None, "not a readable image")


def _tiffs() -> Iterator[Case]:
    image = Image.fromarray(PIXELS)
    yield Case("TIFF", save(PIXELS, "TIFF"), PIXELS)
    yield Case("TIFF compressed", save(PIXELS, "TIFF", compression="tiff_lzw"), PIXELS)
    yield Case("TIFF palette", save(PALETTED, "TIFF"), IN_16_COLOURS)
    yield Case("TIFF CMYK", save(image.convert("CMYK"), "TIFF"), PIXELS)
    yield Case("TIFF with alpha", save(Image.fromarray(np.dstack([PIXELS, GRAY])), "TIFF"), PIXELS)
    yield Case("TIFF pages", save(PIXELS, "TIFF", save_all=True, append_images=[image.rotate(180)]), PIXELS)
    # Not EXIF's, but the format's own.
    yield Case("TIFF turned", rotated("TIFF"), np.rot90(PIXELS, -1))
    yield Case("TIFF gray of 16 bits", save(GRAY.astype(np.uint16) << 8, "TIFF"), None, "8 bits")
    yield Case("TIFF of floats", save(GRAY.astype(np.float32), "TIFF"), None, "8 bits")
    yield Case("TIFF cut", save(PIXELS, "TIFF")[:300], None, "not a readable image")


def _others() -> Iterator[Case]:
    yield Case("JPEG 2000", save(PIXELS, "JPEG2000"), PIXELS)
    yield Case("JPEG 2000 codestream", save(PIXELS, "JPEG2000", no_jp2=True), PIXELS)
    yield Case("AVIF", save(PIXELS, "AVIF"), "Pillow's")
    yield Case("PPM", save(PIXELS, "PPM"), PIXELS)
    yield Case("PGM", save(GRAY, "PPM"), gray(GRAY))
    yield Case("PBM", b"P4 8 1\n\xaa", gray(np.asarray([[0, 255] * 4])))
    yield Case("PGM of 16 bits", b"P5 2 1 65535\n\1\2\3\4", None, "8 bits")
    yield Case("AVIF cut", save(PIXELS, "AVIF")[:300], None, "not a readable image")


def _none() -> Iterator[Case]:
    yield Case("nothing", b"", None, "empty")
    yield Case("one byte", b"\xff", None, "not a readable image")
    yield Case("a text", b"no image", None, "not a readable image")
    yield Case("an SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>", None, "not a readable image")
    yield Case("a WAV", b"RIFF\x24\0\0\0WAVEfmt ", None, "not a readable image")
    # Pillow would start Ghostscript.
    yield Case("an EPS", save(PIXELS, "EPS"), None, "cannot identify")
