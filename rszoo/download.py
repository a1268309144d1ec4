"""A published archive as a stream from the network: a URL in, checked bytes out.

One connection, no retries; the length and the storage server's CRC32C (`x-goog-hash`) are checked at the end.
"""

from __future__ import annotations

import base64
import os
from types import TracebackType
from typing import Any

import google_crc32c
import requests
import urllib3

from rszoo import __version__
from rszoo.errors import NetworkError

_CONNECT_TIMEOUT_S = 20
_READ_TIMEOUT_S = 60
_OFFLINE_VARIABLES = ("RSZOO_OFFLINE", "HF_HUB_OFFLINE")


class RemoteFile:
    """An open download. `size` in bytes, or None where the server does not say. A context manager.

    Raises:
        NetworkError: offline mode is on, the server cannot be reached, or it answers with an error.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        for variable in _OFFLINE_VARIABLES:
            if os.environ.get(variable, "").strip().lower() in ("1", "true", "yes", "on"):
                raise NetworkError(
                    f"{url} is not on this machine and {variable} forbids the network; download it elsewhere and "
                    "give the file: rszoo-convert --ckpt FILE --output FOLDER"
                )
        # Identity: a server that compressed the archive once more would change its length.
        headers = {"Accept-Encoding": "identity", "User-Agent": f"rszoo/{__version__}"}
        try:
            self._response = requests.get(
                url, stream=True, timeout=(_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S), headers=headers
            )
        except requests.RequestException as error:
            raise NetworkError(_explain(url, error)) from error
        if self._response.status_code != 200:
            self._response.close()
            raise NetworkError(
                f"{url} answered {self._response.status_code} {self._response.reason}; check the URL, or download the "
                "archive by other means and give the file"
            )
        length = self._response.headers.get("Content-Length", "")
        self.size = int(length) if length.isdigit() else None
        self._expected_crc = _google_crc32c(self._response.headers.get("x-goog-hash", ""))
        self._crc = google_crc32c.Checksum()
        self._received = 0

    def readinto(self, buffer: Any, /) -> int:
        """Fill up to all of `buffer`, and return how many bytes; 0 only at the end, where length and hash are checked.

        Raises:
            NetworkError: the connection broke, or what came is not what the server holds.
        """
        try:
            chunk = self._response.raw.read(len(buffer), decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise NetworkError(_explain(self.url, error)) from error
        self._crc.update(chunk)
        self._received += len(chunk)
        if not chunk:
            self._check_end()
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def _check_end(self) -> None:
        if self.size is not None and self._received != self.size:
            raise NetworkError(f"{self.url} ended after {self._received} of {self.size} bytes; run the command again")
        if self._expected_crc is not None and base64.b64encode(self._crc.digest()).decode() != self._expected_crc:
            raise NetworkError(f"{self.url} arrived damaged: its CRC32C is not the server's; run the command again")

    def __enter__(self) -> RemoteFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._response.close()


def _google_crc32c(header: str) -> str | None:
    """Return the CRC32C of a header `crc32c=<base64>,md5=<base64>`, still in base64."""
    return dict(part.strip().split("=", 1) for part in header.split(",") if "=" in part).get("crc32c")


def _explain(url: str, error: Exception) -> str:
    return (
        f"cannot download {url}: {type(error).__name__}; check the network or proxy (HTTPS_PROXY), or download the "
        "archive by other means and give the file"
    )
