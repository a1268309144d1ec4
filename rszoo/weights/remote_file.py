"""A safetensors file at a URL, read by ranges.

Two requests get the header (its length, then exactly its bytes), and one more each range of values. All must be of the
same version of the object.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from rszoo.errors import NetworkError, WeightsError
from rszoo.folder.model_folder import WEIGHTS
from rszoo.net.http import fetch_range, new_session
from rszoo.net.urls import public_url
from rszoo.weights.tensor_file import LENGTH_BYTES, MAX_HEADER_BYTES, Header, adjacent

# Adjacent values are read at once, but not more bytes than this beside the result.
_MAX_RUN_BYTES = 64 << 20


class RemoteFile:
    """A safetensors file at a URL, or in the folder at a URL; read by ranges, nothing is kept.

    `headers` are sent with each request, such as a login, which requests does not send on to another host.

    Raises:
        NetworkError: it cannot be fetched, its server has no ranges, or it changed between two requests.
        WeightsError: it is damaged or not a safetensors file.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        self.url = file_url(url)
        self._session = new_session()
        self._session.headers.update(headers or {})
        prefix, self._version = fetch_range(self._session, self.url, 0, LENGTH_BYTES, None)
        size = self._version.size
        if size is None:
            raise NetworkError(f"{self._label} can only be read by ranges, and its server does not say how long it is")
        length = int.from_bytes(prefix, "little")
        # Checked before it is fetched; the package checks the rest.
        if len(prefix) < LENGTH_BYTES or not 0 < length <= min(size - LENGTH_BYTES, MAX_HEADER_BYTES):
            raise WeightsError(f"{self._label} is damaged or not a safetensors file: its header has {length} bytes")
        text = self.read(LENGTH_BYTES, LENGTH_BYTES + length).tobytes()
        self.header = _check_header(prefix + text, size, self._label)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Fetch bytes [start, stop) of the file, uint8, in one request; none for an empty range.

        Raises:
            NetworkError: they cannot be fetched, or the object changed since it was opened.
        """
        if start == stop:
            return np.empty(0, np.uint8)
        data, _ = fetch_range(self._session, self.url, start, stop, self._version)
        if len(data) != stop - start:
            raise NetworkError(f"{self._label} sent {len(data)} of {stop - start} bytes; open it again")
        return np.frombuffer(bytearray(data), np.uint8)

    def read_many(self, spans: Iterable[tuple[int, int]]) -> list[np.ndarray]:
        """Return the bytes of each span, each in an array of its own; adjacent spans come in one request.

        Raises as `read`.
        """
        wanted = list(spans)
        read: dict[tuple[int, int], np.ndarray] = {}
        for run in adjacent(wanted, _MAX_RUN_BYTES):
            begin = run[0][0]
            values = self.read(begin, run[-1][1])
            # Copied, or one tensor would keep the memory of all.
            read.update((span, values[span[0] - begin : span[1] - begin].copy()) for span in run)
        return [read[span] for span in wanted]

    def close(self) -> None:
        """Let go of the connection. What was read stays."""
        self._session.close()

    @property
    def _label(self) -> str:
        return public_url(self.url)


def file_url(url: str) -> str:
    """Return the URL of the weights file: the URL itself if its path ends so, else that of the file in this folder."""
    parts = urlsplit(url)
    if parts.path.endswith(".safetensors"):
        return url
    return parts._replace(path=f"{parts.path.rstrip('/')}/{WEIGHTS}").geturl()


def _check_header(start_of_file: bytes, size: int, label: str) -> Header:
    """Let the safetensors package check a header, in a file of the object's size with a hole for the values."""
    with tempfile.TemporaryDirectory(prefix="rszoo-") as folder:
        path = Path(folder) / WEIGHTS
        try:
            with path.open("wb") as file:
                file.write(start_of_file)
                file.truncate(size)
        except OSError as error:
            raise WeightsError(f"{label} says that it has {size} bytes and cannot be checked ({error})") from error
        return Header(path, label)
