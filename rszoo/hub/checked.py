"""Files of the Hub's cache compared with their SHA-256, which huggingface_hub does not do."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from contextlib import suppress
from pathlib import Path

from rszoo.disk.paths import checked_folder
from rszoo.disk.temporary import write_whole
from rszoo.errors import IntegrityError
from rszoo.folder.model_folder import sha256_of
from rszoo.refs import Hub

log = logging.getLogger("rszoo")


def check_file(path: Path, address: Hub, expected: str | None) -> None:
    """Compare a file of the Hub's cache with its SHA-256, once: a correct file is not checked again until it changes.

    The cache names files by the SHA-256 that the Hub gives, except where the file system has no symbolic links.
    `expected` is in hex; None for the one that the Hub gave.

    Raises:
        IntegrityError: they differ.
    """
    real = path.resolve()
    named = real.name if re.fullmatch("[0-9a-f]{64}", real.name) else None
    expected = expected or named
    if expected is None:
        log.warning("%s: its SHA-256 is not known, so %s was not checked", address, path)
        return
    facts = real.stat()
    stamp = f"{facts.st_size} {facts.st_mtime_ns} {facts.st_ino}"
    mark = checked_folder() / f"{expected}-{hashlib.sha256(os.fsencode(real)).hexdigest()[:8]}"
    with suppress(OSError, ValueError):
        if mark.read_text(encoding="ascii") == stamp:
            return
    if (found := sha256_of(real)) != expected:
        raise IntegrityError(
            f"{path} is not {address.file} of {address}: its SHA-256 is {found}, expected {expected}; delete "
            f"{real} and run the command again"
        )
    with suppress(OSError):
        mark.parent.mkdir(parents=True, exist_ok=True)
        write_whole(mark, stamp)
