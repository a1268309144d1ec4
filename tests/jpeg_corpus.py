"""JPEGs of every kind that users have, whole and broken."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
import simplejpeg
from PIL import Image

from tests.image_files import GRAY, PIXELS, Case, patched, rotated, save


def jpegs() -> Iterator[Case]:
    """Yield all of them."""
    for cases in (_plain, _odd, _cmyk, _broken):
        yield from cases()


def _plain() -> Iterator[Case]:
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
        "a header of 40 kB": save(PIXELS, "JPEG", comment=b"x" * 40000),
    }
    yield from (Case(f"JPEG {name}", encoded, "TensorFlow's") for name, encoded in tensorflows.items())


def _odd() -> Iterator[Case]:
    whole = save(PIXELS, "JPEG")
    table = whole.index(b"\xff\xdb")
    tensorflows = {
        "bytes after the end": whole + b"trailer",
        "a second picture": whole + save(GRAY, "JPEG"),
        "stray bytes in the header": whole[:table] + b"stray" + whole[table:],
        "fill bytes before a marker": whole[:table] + b"\xff\xff" + whole[table:],
        "JFIF version 2": patched(whole, b"JFIF\0", 5, b"\2"),
        "unknown transform of colours": patched(save(PIXELS, "JPEG", keep_rgb=True), b"Adobe", 11, b"\7"),
        "a thumbnail": whole[:2] + _exif(save(GRAY, "JPEG")) + whole[2:],
        # Ends as it should; libjpeg warns and fills in, here and in TensorFlow.
        "damaged in the middle": patched(whole, b"\xff\xda", 60, b"\xff\xd9\0\0") + whole[-40:],
    }
    yield from (Case(f"JPEG {name}", encoded, "TensorFlow's") for name, encoded in tensorflows.items())
    # The first two scans, and a thumbnail of the usual kind. TensorFlow's older libjpeg-turbo smooths what is missing
    # otherwise, by 4 levels at most.
    scans = save(PIXELS, "JPEG", progressive=True, subsampling="4:2:2").split(b"\xff\xc4")
    scans[0] = scans[0][:2] + _exif(save(PIXELS[:8], "JPEG")) + scans[0][2:]
    yield Case("JPEG without its last scans", b"\xff\xc4".join(scans[:3]) + b"\xff\xd9", "near TensorFlow's")
    # Three times as many columns of luma as of colour: simplejpeg cannot, so both readers call Pillow.
    thirds = patched(save(PIXELS, "JPEG", subsampling="4:4:4"), b"\xff\xc0", 11, b"\x31")
    yield Case("JPEG of a rare sampling", thirds, "near TensorFlow's")


def _exif(thumbnail: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", 2 + 6 + len(thumbnail)) + b"Exif\0\0" + thumbnail


def _without(encoded: bytes, marker: bytes) -> bytes:
    """Return a JPEG without the first segment of this marker."""
    start = encoded.index(marker)
    return encoded[:start] + encoded[start + 2 + int.from_bytes(encoded[start + 2 : start + 4], "big") :]


def _cmyk() -> Iterator[Case]:
    cmyk = np.asarray(Image.fromarray(PIXELS).convert("CMYK"))
    adobe = save(Image.fromarray(PIXELS).convert("CMYK"), "JPEG", quality=95)
    yield Case("JPEG CMYK, Adobe", adobe, "TensorFlow's")
    yield Case("JPEG CMYK without Adobe's marker", _without(adobe, b"\xff\xee"), "TensorFlow's")
    for sampling in ("444", "420"):
        yield Case(f"JPEG YCCK {sampling}", simplejpeg.encode_jpeg(cmyk, 90, "CMYK", sampling), "TensorFlow's")
    # simplejpeg cannot; Pillow's DCT differs a little from TensorFlow's, but both readers call it.
    thinned = save(Image.fromarray(PIXELS).convert("CMYK"), "JPEG", subsampling="4:2:0")
    yield Case("JPEG CMYK with less of one ink", thinned, "near TensorFlow's")
    yield Case("JPEG the same without Adobe's marker", _without(thinned, b"\xff\xee"), "near TensorFlow's")


def _broken() -> Iterator[Case]:
    whole = save(PIXELS, "JPEG", quality=95)
    frame = b"\xff\xc0"
    header, scan, *more = save(PIXELS, "JPEG", progressive=True).split(b"\xff\xda")
    table = scan.index(b"\xff\xc4")
    scan = scan[:13] + patched(scan[table:], b"\xff\xc4", 4, b"\x63")
    broken = {
        # After a warning, an error: simplejpeg gives out memory that nobody wrote to.
        "progressive with a broken scan": (b"\xff\xda".join([header, scan, *more]), "not a readable image"),
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
