"""Retry policy of downloads: takes a transient failure, then waits or raises the final error."""

from __future__ import annotations

import logging
import time

import urllib3
from urllib3.util.retry import Retry

from rszoo.errors import NetworkError

# Waits of 0, 2, 4, 8, 16, 32 seconds plus up to 1 s of jitter each: about a minute in total.
_RETRIES = 6
_BACKOFF_S = 1.0
_BACKOFF_MAX_S = 60.0
_JITTER_S = 1.0
# A host that never answered is more likely misspelled or unreachable than busy.
_RETRIES_UNREACHABLE = 2
_LONGEST_RETRY_AFTER_S = 300

log = logging.getLogger("rszoo")


class TransientError(NetworkError):
    """A failure that a retry may fix. `retry_after_s` is the wait that the server requests, None if it sends none.

    `unreachable`: no connection could be established.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None, unreachable: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.unreachable = unreachable


class OutOfPatienceError(NetworkError):
    """A transient failure that happened too often."""


class Patience:
    """How often to retry and how long to wait: exponential backoff with jitter, or the wait the server requests."""

    def __init__(self) -> None:
        self._contacted = False
        self._failures = 0
        self._retry = Retry(_RETRIES, backoff_factor=_BACKOFF_S, backoff_max=_BACKOFF_MAX_S, backoff_jitter=_JITTER_S)
        self._left = self._retry

    def renew(self) -> None:
        """Restart the failure count, because data arrived."""
        self._contacted = True
        self._failures = 0
        self._left = self._retry

    def endure(self, error: TransientError) -> None:
        """Wait before the next attempt, as long as the failure requires.

        Raises:
            OutOfPatienceError: it happened too often, or the server requests too long a wait.
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
            raise OutOfPatienceError(f"{error} and asks to wait {wait:.0f} s; run the command again later") from error
        if wait:
            log.warning("%s; retrying in %.0f s", error, wait)
            time.sleep(wait)

    def _give_up(self, error: TransientError) -> OutOfPatienceError:
        check = "check the URL, the network and the proxy (HTTPS_PROXY)"
        hint = check if error.unreachable else "run the command again later"
        return OutOfPatienceError(f"{error}, {self._failures} times in a row; {hint}")
