"""How long a download puts up with failures: a transient one in, a wait or the final error out."""

from __future__ import annotations

import logging
import time

import urllib3
from urllib3.util.retry import Retry

from rszoo.errors import NetworkError

# Waits of 0, 2, 4, 8, 16, 32 seconds, and up to one more each: a minute in all.
_RETRIES = 6
_BACKOFF_S = 1.0
_BACKOFF_MAX_S = 60.0
_JITTER_S = 1.0
# A host that never answered is more likely misspelt or out of reach than busy.
_RETRIES_UNREACHABLE = 2
_LONGEST_RETRY_AFTER_S = 300

log = logging.getLogger("rszoo")


class TransientError(NetworkError):
    """A failure that may not happen again. `retry_after_s` is what the server asks for, None if it does not say.

    `unreachable`: not even a connection came about.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None, unreachable: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.unreachable = unreachable


class OutOfPatienceError(NetworkError):
    """A failure that was transient by its nature, but happened too often."""


class Patience:
    """How often to try again and how long to wait: exponential back-off with jitter, or what the server asks for."""

    def __init__(self) -> None:
        self._contacted = False
        self._failures = 0
        self._retry = Retry(_RETRIES, backoff_factor=_BACKOFF_S, backoff_max=_BACKOFF_MAX_S, backoff_jitter=_JITTER_S)
        self._left = self._retry

    def renew(self) -> None:
        """Start counting anew, since something came through."""
        self._contacted = True
        self._failures = 0
        self._left = self._retry

    def endure(self, error: TransientError) -> None:
        """Wait as long as the failure asks for.

        Raises:
            OutOfPatienceError: it happened too often, or the server asks for too long a wait.
        """
        self._contacted = self._contacted or not error.unreachable
        self._failures += 1
        try:
            self._left = self._left.increment(error=error)
        except urllib3.exceptions.MaxRetryError:
            raise self._give_up(error) from error
        if not self._contacted and self._failures > _RETRIES_UNREACHABLE:
            raise self._give_up(error) from error
        wait = self._left.get_backoff_time() if error.retry_after_s is None else error.retry_after_s
        if wait > _LONGEST_RETRY_AFTER_S:
            raise OutOfPatienceError(
                f"{error} and asks for {wait:.0f} s of patience; run the command again later"
            ) from error
        if wait:
            log.warning("%s; trying again in %.0f s", error, wait)
            time.sleep(wait)

    def _give_up(self, error: TransientError) -> OutOfPatienceError:
        hint = "check the URL, the network and the proxy (HTTPS_PROXY)" if error.unreachable else "run it again later"
        return OutOfPatienceError(f"{error}, {self._failures} times in a row; {hint}")
