"""The checksum of TensorFlow's files, LevelDB's: of checkpoints' tables and tensors, and of TFRecord headers.

Source: tensorflow `core/lib/hash/crc32c.h` for the mask.
"""

from __future__ import annotations

import google_crc32c

_MASK_DELTA = 0xA282EAD8


def masked_crc32c(data: bytes) -> int:
    """Return the CRC32C of `data`, rotated and offset as LevelDB and TensorFlow store it."""
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF
