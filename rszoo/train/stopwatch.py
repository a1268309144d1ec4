"""A stopwatch for the speed of training: steps and pauses in, steps per second out."""

from __future__ import annotations

import time


class Stopwatch:
    """Counts the steps and seconds since the last call of `rate`, except pauses: the blocks of `with`."""

    def __init__(self) -> None:
        self.steps = 0
        self._seconds = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Start the count."""
        self._since = time.perf_counter()

    def rate(self) -> float:
        """Return steps per second, and restart the count."""
        self._stop()
        steps, seconds, self.steps, self._seconds = self.steps, self._seconds, 0, 0.0
        self.start()
        return steps / seconds if seconds else 0.0

    def __enter__(self) -> None:
        self._stop()

    def __exit__(self, *_: object) -> None:
        self.start()

    def _stop(self) -> None:
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
            self._since = None
