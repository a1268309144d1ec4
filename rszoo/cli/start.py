"""Where both programs start: what interrupts them while their modules are imported is one line too."""

from __future__ import annotations

import importlib
import signal
import sys


def start_rszoo() -> None:
    """Run `rszoo`."""
    _start("rszoo.cli.main")


def start_convert() -> None:
    """Run `rszoo-convert`."""
    _start("rszoo.cli.convert")


def _start(program: str) -> None:
    try:
        importlib.import_module(program).main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
