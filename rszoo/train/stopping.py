"""Signals that ask a training to stop; it saves its state first.

Slurm and Kubernetes send SIGTERM before they end a job, Slurm also what `--signal` names; Ctrl-C is SIGINT.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT")


class StopRequest:
    """While its block runs, `signal` is the name of the signal that came, or None. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        # Python lets only the main thread handle signals.
        if threading.current_thread() is threading.main_thread():
            for name in _SIGNALS:
                if hasattr(signal, name):
                    number = signal.Signals[name]
                    self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
