"""Checksums of a weights file, in its own metadata: of its header, of each tensor, and one digest of all tensors.

They find a tensor whose bytes changed on the disk, and tell weights from others, whatever file they are in. A tool that
writes the file again may keep the metadata; then they are not of this header, and mean nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

import google_crc32c
import numpy as np

#: The keys of a safetensors file's metadata. The first has a CRC32C of the header's text, in which this value is all
#: zeros, then that of each tensor's bytes in the order of the file. The other has the digest of the weights.
CHECKSUMS, DIGEST = "crc32c", "digest"
# Hex digits of one checksum.
_DIGITS = 8


def checksum(values: np.ndarray | bytes) -> str:
    """Return the CRC32C of bytes, or of an array's, which must be contiguous, as 8 hex digits."""
    data = values if isinstance(values, bytes) else values.reshape(-1).view(np.uint8)
    return f"{google_crc32c.value(data):0{_DIGITS}x}"


def blank(tensors: int) -> str:
    """Return the value under `CHECKSUMS` of which the header's checksum is."""
    return "0" * _DIGITS * (1 + tensors)


def pack(header: bytes, checksums: Sequence[str]) -> str:
    """Return the value under `CHECKSUMS`, given the header's text with `blank` in its place."""
    return checksum(header) + "".join(checksums)


def unpack(packed: str, header: bytes) -> str | None:
    """Return the tensors' checksums, joined, out of a header's text; None if they are not of this header."""
    if len(packed) % _DIGITS or re.fullmatch("[0-9a-f]+", packed) is None:
        return None
    blanked = header.replace(packed.encode(), b"0" * len(packed), 1)
    return packed[_DIGITS:] if checksum(blanked) == packed[:_DIGITS] else None


def nth(checksums: str, index: int) -> str:
    """Return one of the joined checksums."""
    return checksums[_DIGITS * index : _DIGITS * (index + 1)]


def digest(checksums: Mapping[str, str]) -> str:
    """Return the SHA-256, in hex, of tensors' names and checksums; their order makes no difference."""
    lines = (f"{name} {value}\n" for name, value in sorted(checksums.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
