"""Progress bars: on stderr, on a terminal only, and of the first process of a job only."""

from __future__ import annotations

import os

from tqdm import tqdm

_RANK_VARIABLES = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


def progress_bar(title: str, total: int | None, unit: str = "it", initial: int = 0) -> tqdm:
    """Return a bar that the caller updates and closes, or uses as a context manager; `unit` "B" counts in bytes."""
    first = all(os.environ.get(name, "0") in ("", "0") for name in _RANK_VARIABLES)
    # disable=None: only on a terminal.
    disable = None if first else True
    return tqdm(
        total=total, desc=title, unit=unit, unit_scale=unit == "B", initial=initial, disable=disable, leave=False
    )
