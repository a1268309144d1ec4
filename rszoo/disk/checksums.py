"""Checksums of a weights file's tensors: CRC32C of each, kept in the file's metadata, and one digest of all.

The checksums find a tensor whose bytes changed on the disk; the digest tells weights from others, whatever file they
are in. Both are of the values alone, little-endian and in C order.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping

import google_crc32c
import numpy as np

#: The key of a safetensors file's metadata that has the checksums.
METADATA_KEY = "crc32c"
#: Hex digits of one checksum.
DIGITS = 8


def checksum(values: np.ndarray) -> str:
    """Return the CRC32C of an array's bytes, which must be contiguous, as 8 hex digits."""
    return f"{google_crc32c.value(values.reshape(-1).view(np.uint8)):0{DIGITS}x}"


def pack(checksums: Iterable[str]) -> str:
    """Return the value for a file's metadata, given the checksums of all tensors in the order of their values."""
    return "".join(checksums)


def unpack(text: str, count: int) -> list[str] | None:
    """Return the checksums of `count` tensors; None if the text is not of as many, so of another file's tensors."""
    if len(text) != DIGITS * count or re.fullmatch("[0-9a-f]*", text) is None:
        return None
    return [text[start : start + DIGITS] for start in range(0, len(text), DIGITS)]


def digest(checksums: Mapping[str, str]) -> str:
    """Return the SHA-256, in hex, of tensors' names and checksums; their order makes no difference."""
    lines = (f"{name} {value}\n" for name, value in sorted(checksums.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
