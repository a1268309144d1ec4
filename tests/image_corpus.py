"""Image files of every format that users have, made here, small, with what both readers must make of each.

`corpus()` yields `Case`s. docs/data.md has the same decisions in words.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg
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


def corpus() -> Iterator[Case]:
    """Yield all files."""
    for cases in (_jpegs, _cmyk_jpegs, _broken_jpegs, _pngs, _odd_pngs, _gifs, _bmps, _webps, _tiffs, _others, _none):
        yield from cases()


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


def without(encoded: bytes, marker: bytes) -> bytes:
    """Return a JPEG without the first segment of this marker."""
    start = encoded.index(marker)
    return encoded[:start] + encoded[start + 2 + int.from_bytes(encoded[start + 2 : start + 4], "big") :]


def patched(encoded: bytes, marker: bytes, offset: int, values: bytes) -> bytes:
    """Return a file with other bytes so far after the first occurrence of a marker."""
    start = encoded.index(marker) + offset
    return encoded[:start] + values + encoded[start + len(values) :]


def _jpegs() -> Iterator[Case]:
    tensorflows = {
        **{
            f"quality {quality}, {sampling}": save(PIXELS, "JPEG", quality=quality, subsampling=sampling)
            for quality in (5, 50, 95)
            for sampling in ("4:4:4", "4:2:2", "4:2:0")
        },
        **{f"sampling {kind}": simplejpeg.encode_jpeg(PIXELS, 90, "RGB", kind) for kind in ("440", "411")},
        "one pixel": save(PIXELS[:1, :1], "JPEG"),
        "odd sides": save(PIXELS[:7, :5], "JPEG"),
        "narrow": save(PIXELS[:, :3], "JPEG"),
        "progressive": save(PIXELS, "JPEG", progressive=True),
        "optimized": save(PIXELS, "JPEG", optimize=True),
        "restart markers": save(PIXELS, "JPEG", restart_marker_blocks=1),
        "progressive with restart markers": save(PIXELS, "JPEG", progressive=True, restart_marker_blocks=2),
        "gray": save(GRAY, "JPEG"),
        "gray, progressive": save(GRAY, "JPEG", progressive=True),
        "RGB without conversion": save(PIXELS, "JPEG", keep_rgb=True),
        "EXIF orientation": rotated(),
        "comment": save(PIXELS, "JPEG", comment=b"x" * 5000),
    }
    whole = save(PIXELS, "JPEG")
    table = whole.index(b"\xff\xdb")
    tensorflows |= {
        "bytes after the end": whole + b"trailer",
        "a second picture": whole + save(GRAY, "JPEG"),
        "stray bytes in the header": whole[:table] + b"stray" + whole[table:],
        "fill bytes before a marker": whole[:table] + b"\xff\xff" + whole[table:],
        "JFIF version 2": patched(whole, b"JFIF\0", 5, b"\2"),
        "unknown transform of colours": patched(save(PIXELS, "JPEG", keep_rgb=True), b"Adobe", 11, b"\7"),
        "a large thumbnail": whole[:2] + _exif(save(GRAY, "JPEG")) + whole[2:],
        # Ends as it should; libjpeg warns and fills in, here and in TensorFlow.
        "damaged in the middle": patched(whole, b"\xff\xda", 60, b"\xff\xd9\0\0") + whole[-40:],
    }
    yield from (Case(f"JPEG {name}", encoded, "TensorFlow's") for name, encoded in tensorflows.items())
    # The first two scans; TensorFlow's older libjpeg-turbo smooths what is missing otherwise, by 4 levels at most.
    scans = save(PIXELS, "JPEG", progressive=True, subsampling="4:2:2").split(b"\xff\xc4")
    yield Case("JPEG without its last scans", b"\xff\xc4".join(scans[:3]) + b"\xff\xd9", "near TensorFlow's")
    # Three times as many columns of luma as of colour: simplejpeg cannot, so both readers call Pillow.
    thirds = patched(save(PIXELS, "JPEG", subsampling="4:4:4"), b"\xff\xc0", 11, b"\x31")
    yield Case("JPEG of a rare sampling", thirds, "near TensorFlow's")


def _exif(thumbnail: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", 2 + 6 + len(thumbnail)) + b"Exif\0\0" + thumbnail


def _cmyk_jpegs() -> Iterator[Case]:
    cmyk = np.asarray(Image.fromarray(PIXELS).convert("CMYK"))
    adobe = save(Image.fromarray(PIXELS).convert("CMYK"), "JPEG", quality=95)
    yield Case("JPEG CMYK, Adobe", adobe, "TensorFlow's")
    yield Case("JPEG CMYK without Adobe's marker", without(adobe, b"\xff\xee"), "TensorFlow's")
    for sampling in ("444", "420"):
        yield Case(f"JPEG YCCK {sampling}", simplejpeg.encode_jpeg(cmyk, 90, "CMYK", sampling), "TensorFlow's")
    # simplejpeg cannot; Pillow's DCT differs a little from TensorFlow's, but both readers call it.
    thinned = save(Image.fromarray(PIXELS).convert("CMYK"), "JPEG", subsampling="4:2:0")
    yield Case("JPEG CMYK with less of one ink", thinned, "near TensorFlow's")
    yield Case("JPEG the same without Adobe's marker", without(thinned, b"\xff\xee"), "near TensorFlow's")


def _broken_jpegs() -> Iterator[Case]:
    whole = save(PIXELS, "JPEG", quality=95)
    frame = b"\xff\xc0"
    broken = {
        "cut in the middle": (whole[: len(whole) // 2], "truncated"),
        # TensorFlow's crop would be whole, though the image is not.
        "without its last rows": (whole[:-30], "truncated"),
        "without its end marker": (whole[:-2], "truncated"),
        "cut, with a whole thumbnail": (whole[:2] + _exif(whole) + whole[2:-30], ""),
        "only a header": (whole[: whole.index(b"\xff\xda")] + b"\xff\xd9", ""),
        "only its first bytes": (b"\xff\xd8\xff", "truncated"),
        "nothing between start and end": (b"\xff\xd8\xff\xd9", ""),
        "of 12 bits": (patched(whole, frame, 4, b"\x0c"), ""),
        "of 2 components": (patched(whole, frame, 9, b"\2"), ""),
        "without width": (patched(whole, frame, 7, b"\0\0"), ""),
        "hierarchical": (patched(whole, frame, 1, b"\xc5"), ""),
        "of too many pixels": (patched(whole, frame, 5, struct.pack(">HH", 65000, 65000)), "too large"),
        "of too many pixels, progressive": (
            patched(save(PIXELS, "JPEG", progressive=True), b"\xff\xc2", 5, struct.pack(">HH", 65000, 65000)),
            "too large",
        ),
    }
    yield from (Case(f"JPEG {name}", encoded, None, reason) for name, (encoded, reason) in broken.items())


def chunk(name: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(
    rows: Iterable[np.ndarray],
    size: tuple[int, int],
    depth: int,
    colours: int,
    *,
    extra: bytes = b"",
    interlaced: bool = False,
) -> bytes:
    """Return a PNG of packed rows, uint8, without filters; `extra` are chunks before the pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", size[1], size[0], depth, colours, 0, 0, interlaced))
    content = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + extra + content + chunk(b"IEND", b"")


def _packed(levels: np.ndarray, depth: int) -> np.ndarray:
    """Return rows of samples of fewer than 8 bits as bytes."""
    bits = (levels[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    return np.packbits(bits.reshape(len(levels), -1).astype(np.uint8), axis=1)


def _deep(levels: np.ndarray) -> np.ndarray:
    """Return rows of 16-bit samples whose high bytes are the levels."""
    low = np.arange(levels.size, dtype=np.uint16).reshape(levels.shape) * 37 % 256
    return ((levels.astype(np.uint16) << 8) | low).astype(">u2").reshape(len(levels), -1).view(np.uint8)


def _pngs() -> Iterator[Case]:
    size = PIXELS.shape[:2]
    for depth in (1, 2, 4):
        levels = GRAY >> (8 - depth)
        full = gray(levels.astype(int) * 255 // (2**depth - 1))
        yield Case(f"PNG gray of {depth} bits", png(_packed(levels, depth), size, depth, 0), full)
        colours = np.random.default_rng(depth).integers(0, 256, (2**depth, 3), dtype=np.uint8)
        extra = chunk(b"PLTE", colours.tobytes())
        yield Case(
            f"PNG palette of {depth} bits", png(_packed(levels, depth), size, depth, 3, extra=extra), colours[levels]
        )
    alpha = np.dstack([PIXELS, GRAY])
    gray_alpha = np.dstack([GRAY, GRAY[::-1]])
    transparent = chunk(b"PLTE", np.asarray(PALETTED.getpalette()[:48], np.uint8).tobytes())
    transparent += chunk(b"tRNS", bytes(range(0, 160, 10)))
    indices = np.asarray(PALETTED)
    yield Case("PNG gray", save(GRAY, "PNG"), gray(GRAY))
    yield Case("PNG RGB", save(PIXELS, "PNG"), PIXELS)
    yield Case("PNG palette", save(PALETTED, "PNG"), IN_16_COLOURS)
    yield Case("PNG palette with tRNS", png(indices, size, 8, 3, extra=transparent), IN_16_COLOURS)
    yield Case("PNG gray with tRNS", png(GRAY, size, 8, 0, extra=chunk(b"tRNS", b"\0\x40")), gray(GRAY))
    yield Case("PNG RGB with alpha", png(alpha.reshape(len(alpha), -1), size, 8, 6), PIXELS)
    yield Case("PNG gray with alpha", png(gray_alpha.reshape(len(alpha), -1), size, 8, 4), gray(GRAY))
    yield Case("PNG RGB of 16 bits", png(_deep(PIXELS.reshape(len(PIXELS), -1)), size, 16, 2), PIXELS)
    yield Case("PNG RGB with alpha of 16 bits", png(_deep(alpha.reshape(len(alpha), -1)), size, 16, 6), PIXELS)
    yield Case("PNG gray of 16 bits", png(_deep(GRAY), size, 16, 0), None, "8 bits")
    deep = png(_deep(gray_alpha.reshape(len(alpha), -1)), size, 16, 4)
    yield Case("PNG gray with alpha of 16 bits", deep, None, "8 bits")
    # Rows of the seven passes of a 2 x 2 image: two of them have a pixel, the last one a row of two.
    square = PIXELS[:2, :2]
    passes = (square[0, 0], square[0, 1], square[1].reshape(-1))
    yield Case("PNG interlaced", png(passes, (2, 2), 8, 2, interlaced=True), square)


def _odd_pngs() -> Iterator[Case]:
    rows, size = PIXELS.reshape(len(PIXELS), -1), PIXELS.shape[:2]
    plain, text = png(rows, size, 8, 2), chunk(b"tEXt", b"title\0of mine")
    extras = {
        "a text with a wrong checksum": text[:-4] + b"nope",
        "a damaged compressed text": chunk(b"zTXt", b"title\0\0not zlib"),
        "a text of 2 MB": chunk(b"zTXt", b"title\0\0" + zlib.compress(b"x" * 2**21)),
        "a wrong colour profile": chunk(b"iCCP", b"profile\0\0not zlib"),
        "a gamma": chunk(b"gAMA", struct.pack(">I", 100000)),
        "an unknown chunk": chunk(b"abCd", b"whatever"),
    }
    for name, extra in extras.items():
        yield Case(f"PNG with {name}", png(rows, size, 8, 2, extra=extra), PIXELS)
    animation = save(PIXELS, "PNG", save_all=True, append_images=[Image.fromarray(PIXELS[::-1])])
    yield Case("PNG animated", animation, PIXELS)
    yield Case("PNG with bytes after its end", plain + b"trailer", PIXELS)
    yield Case("PNG with EXIF orientation", rotated("PNG"), PIXELS)
    yield Case("PNG cut", plain[: len(plain) // 2], None, "not a readable image")
    yield Case("PNG with damaged pixels", patched(plain, b"IDAT", 40, b"\0\0\0\0"), None, "damaged")
    yield Case("PNG with a damaged header", patched(plain, b"IHDR", 4, b"\1"), None, "")
    huge = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    yield Case("PNG of too many pixels", plain[:8] + chunk(b"IHDR", huge) + plain[33:], None, "too large")
    yield Case("PNG only its first bytes", plain[:8], None, "not a readable image")


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
    yield Case("an EPS", save(PIXELS, "EPS"), None, "not a readable image")
