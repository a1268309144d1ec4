"""What a terminal shows: progress bars (on stderr, and only of a job's first process), tables, safe texts, warnings."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from typing import NoReturn, TextIO

from tqdm import tqdm

log = logging.getLogger("rszoo")

_RANK_VARIABLES = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


def is_first_process() -> bool:
    """Whether this is the first process of a job, or the only one."""
    return all(os.environ.get(name, "0") in ("", "0") for name in _RANK_VARIABLES)


def progress_bar(title: str, total: int | None, unit: str = "it", initial: int = 0) -> tqdm[NoReturn]:
    """Return a bar that the caller updates and closes, or uses as a context manager; `unit` "B" counts in bytes."""
    # disable=None: only on a terminal.
    disable = None if is_first_process() else True
    return tqdm(
        total=total, desc=title, unit=unit, unit_scale=unit == "B", initial=initial, disable=disable, leave=False
    )


@functools.cache
def warn_once(text: str) -> None:
    """Log a warning, unless this process has logged it before."""
    log.warning("%s", text)


def printable(text: str) -> str:
    """Return a text of others without control characters, which a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in text)


def show(text: str, *, file: TextIO | None = None) -> None:
    """Print lines at once, on stdout if no file is given; what others wrote in them is made `printable`."""
    print("\n".join(map(printable, text.split("\n"))), file=file, flush=True)


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Return rows as aligned columns; the first row is the heading."""
    rows = [tuple(map(printable, row)) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
