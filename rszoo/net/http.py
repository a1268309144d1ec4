"""HTTP requests: takes a URL and a byte range, returns a checked response; one policy for all failures.

Every request goes through this module: offline mode, timeouts, redirects, proxies (`HTTPS_PROXY`, by requests), which
failures are retried and how long to wait.
"""

from __future__ import annotations

import os
import re
import ssl
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from urllib3.util.retry import Retry

from rszoo.errors import NetworkError, UsageError
from rszoo.net.proxies import check_environment
from rszoo.net.retry import Patience, TransientError
from rszoo.net.urls import RemoteChangedError, Version, check_online, public_url
from rszoo.version import __version__

_CONNECT_TIMEOUT_S = 10.0
_READ_TIMEOUT_S = 30.0
_MAX_REDIRECTS = 5


class Opened:
    """A response whose body starts at byte `start` of the object. A context manager that closes the connection."""

    def __init__(self, response: requests.Response, url: str, start: int, version: Version) -> None:
        self.ranged = response.status_code == requests.codes.partial_content
        self.start = start
        self.version = version
        self._response = response
        self._url = url
        self._session: requests.Session | None = None

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes as the server stores them; empty at the end.

        Raises:
            TransientError: the connection broke or stalled.
        """
        try:
            return self._response.raw.read(size, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise TransientError(
                f"the connection to {public_url(self._url)} broke ({type(_cause(error)).__name__})"
            ) from error

    def closes(self, session: requests.Session) -> None:
        """Let this session be closed with the response."""
        self._session = session

    def close(self) -> None:
        """Close the connection."""
        self._response.close()
        if self._session is not None:
            # It keeps the connection of a body that was read to its end.
            self._session.close()

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> str | None:
        target = super().get_redirect_target(resp)
        try:
            refused = bool(target) and urlsplit(urljoin(resp.url, target)).scheme != "https"
        except ValueError:
            resp.close()
            raise
        if refused:
            # requests would leave it to the garbage collector.
            resp.close()
            raise NetworkError(
                f"{public_url(resp.url)} redirects to {public_url(urljoin(resp.url, target))}, which is not HTTPS and "
                "is not followed; give the final URL if you trust it"
            )
        return target


def new_session() -> requests.Session:
    """Return a session with rszoo's headers and redirect rules; use one per thread."""
    session = _Session()
    session.max_redirects = _MAX_REDIRECTS
    # Identity: compression by the server would change the length and hash of the bytes.
    session.headers.update({"Accept-Encoding": "identity", "User-Agent": f"rszoo/{__version__}"})
    return session


def open_alone(url: str, start: int, stop: int | None) -> Opened:
    """Request bytes as `open_range` does, in a session of their own, which is closed with the result."""
    session = new_session()
    try:
        opened = open_range(session, url, start, stop)
    except BaseException:
        session.close()
        raise
    opened.closes(session)
    return opened


def open_range(session: requests.Session, url: str, start: int, stop: int | None) -> Opened:
    """Request bytes [start, stop) of an object once, or from `start` to its end.

    A server without ranges answers with the whole object: then the result is not `ranged` and its `start` is 0.

    Raises:
        NetworkError: offline mode is on, or the response is an error that a retry would not fix.
        UsageError, MissingPackageError: the environment names a proxy or certificates that cannot be used.
        TransientError: the request failed in a way that a retry may fix.
    """
    check_online(url)
    check_environment()
    last = "" if stop is None else stop - 1
    timeouts = _timeouts()
    try:
        response = session.get(url, headers={"Range": f"bytes={start}-{last}"}, stream=True, timeout=timeouts)
    except (requests.RequestException, ValueError) as error:
        # ValueError: a redirect to an invalid URL. What requests leaves open, the garbage collector would close.
        if (unread := getattr(error, "response", None)) is not None:
            unread.close()
        raise _explain(url, error) from error
    try:
        _check_status(response, url)
        version = _read_version(response)
        if response.status_code == requests.codes.ok:
            return Opened(response, url, 0, version)
        _check_range(response, url, start, stop)
        return Opened(response, url, start, version)
    except BaseException:
        response.close()
        raise


def fetch_range(
    session: requests.Session, url: str, start: int, stop: int, version: Version | None
) -> tuple[bytes, Version]:
    """Return bytes [start, stop) of an object, fewer only at its end, and the version they belong to.

    Raises:
        NetworkError: it cannot be fetched, or the server does not support ranges.
        RemoteChangedError: its version differs from the given one.
    """
    patience = Patience()
    while True:
        try:
            with open_range(session, url, start, stop) as opened:
                return _read_all(opened, url, start, stop, version)
        except TransientError as error:
            patience.endure(error)


def read_start(session: requests.Session, url: str, size: int) -> bytes:
    """Return the first `size` bytes of an object, or all if it is shorter; the server need not support ranges.

    Raises:
        NetworkError: it cannot be fetched.
    """
    patience = Patience()
    while True:
        try:
            with open_range(session, url, 0, size) as opened:
                return opened.read(size)
        except TransientError as error:
            patience.endure(error)


def _read_all(opened: Opened, url: str, start: int, stop: int, version: Version | None) -> tuple[bytes, Version]:
    if version is not None:
        version.check_same(opened.version, url)
    if not opened.ranged:
        raise NetworkError(f"{public_url(url)} cannot be read in parts: its server has no byte ranges; download it")
    size = opened.version.size
    end = stop if size is None else min(stop, size)
    data = opened.read(end - start)
    if len(data) != end - start:
        raise TransientError(f"{public_url(url)} sent {len(data)} of {end - start} bytes")
    return data, opened.version


def _timeouts() -> tuple[float, float]:
    chosen = os.environ.get("RSZOO_TIMEOUT", "")
    try:
        seconds = float(chosen or _READ_TIMEOUT_S)
    except ValueError:
        seconds = -1
    if not 0 < seconds < float("inf"):
        raise UsageError(f"RSZOO_TIMEOUT is {chosen!r}; allowed: seconds without data before a timeout, such as 30")
    return min(seconds, _CONNECT_TIMEOUT_S), seconds


def _check_status(response: requests.Response, url: str) -> None:
    status = response.status_code
    if status in (requests.codes.ok, requests.codes.partial_content):
        return
    answer = f"{public_url(url)} answered {status} {response.reason or ''}".rstrip()
    if status in (requests.codes.request_timeout, requests.codes.too_many_requests) or status >= 500:
        raise TransientError(answer, retry_after_s=_retry_after(response))
    if status == requests.codes.requested_range_not_satisfiable:
        raise RemoteChangedError(f"{answer}: the file is empty, or shorter than before")
    raise NetworkError(f"{answer}; check the URL, or download the file in another way and give its path")


def _retry_after(response: requests.Response) -> float | None:
    try:
        return Retry().parse_retry_after(response.headers["Retry-After"])
    except (KeyError, ValueError, OverflowError, urllib3.exceptions.InvalidHeader):
        return None


def _check_range(response: requests.Response, url: str, start: int, stop: int | None) -> None:
    """Raise TransientError unless the range starts at the requested byte and lies within the requested range."""
    received = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", received.strip())
    if match:
        first, last = int(match[1]), int(match[2])
        in_object = match[3] == "*" or last < int(match[3])
        if in_object and first == start <= last and (stop is None or last < stop):
            return
    raise TransientError(f"{public_url(url)} answered with the range {received!r}, requested were bytes {start}-{stop}")


def _read_version(response: requests.Response) -> Version:
    headers = response.headers
    # requests joins two headers of this name with a comma.
    hashes = dict(part.strip().split("=", 1) for part in headers.get("x-goog-hash", "").split(",") if "=" in part)
    ranged = response.status_code == requests.codes.partial_content
    length = headers.get("Content-Range", "").rpartition("/")[2] if ranged else headers.get("Content-Length", "")
    return Version(
        size=int(length) if re.fullmatch("[0-9]{1,18}", length) else None,
        etag=headers.get("ETag"),
        generation=headers.get("x-goog-generation"),
        crc32c=hashes.get("crc32c"),
        md5=hashes.get("md5"),
    )


def _explain(url: str, error: Exception) -> NetworkError:
    cause = _cause(error)
    message = f"cannot download {public_url(url)} ({type(cause).__name__})"
    # A wrong certificate stays wrong; a server that closes the connection during the handshake may only be busy.
    hung_up = any(isinstance(arg, ssl.SSLEOFError) for arg in cause.args)
    if isinstance(error, (requests.TooManyRedirects, requests.exceptions.SSLError, ValueError)) and not hung_up:
        return NetworkError(f"{message}; check the URL, the network and the proxy (HTTPS_PROXY)")
    never_there = (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)
    return TransientError(message, unreachable=isinstance(cause, (*never_there, urllib3.exceptions.ProxyError)))


def _cause(error: Exception) -> Exception:
    """Return the innermost cause: requests and urllib3 wrap each other's errors."""
    inner = next((arg for arg in error.args if isinstance(arg, Exception)), error)
    reason = getattr(inner, "reason", None)
    return reason if isinstance(reason, Exception) else inner
