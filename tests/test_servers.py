"""The servers of the download tests do what they say: every fault, seen by plain sockets and plain `requests`."""

from __future__ import annotations

import base64
import functools
import hashlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import google_crc32c
import pytest
import requests
import urllib3

from tests.servers import Fault, FaultServer, fake_gcs, random_schedule

CONTENT = random.Random(0).randbytes(300_000)
ASKED = CONTENT[100:200]
NEW = b"new" * 100
fetch = functools.partial(requests.get, timeout=10)


@pytest.fixture
def server(monkeypatch) -> Iterator[FaultServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with FaultServer(objects={"/o": CONTENT}) as running:
        yield running


def ask(server: FaultServer, span: str = "100-199", method: str = "GET", more: str = "") -> Any:
    """Return status, headers, all that follows them, and how it ended: "open", "fin" or "reset"."""
    data, end = b"", "open"
    with socket.create_connection(("127.0.0.1", int(server.endpoint.rpartition(":")[2])), timeout=5) as client:
        client.sendall(f"{method} /o HTTP/1.1\r\nRange: bytes={span}\r\n{more}\r\n".encode())
        try:
            while True:
                head, _, body = data.partition(b"\r\n\r\n")
                fields = [line.partition(": ") for line in head.decode("latin-1").split("\r\n")[1:]]
                headers = {name.lower(): value for name, _, value in fields}
                length = 0 if method == "HEAD" else int(headers.get("content-length", 1 << 30))
                if b"\r\n\r\n" in data and len(body) >= length:
                    client.settimeout(0.03)
                if not (piece := client.recv(1 << 20)):
                    end = "fin"
                    break
                data += piece
        except TimeoutError:
            pass
        except ConnectionResetError:
            end = "reset"
    return int(head.split()[1]) if head.startswith(b"HTTP/1.1 ") else None, headers, body, end


PARTIAL = {"content-range": "bytes 100-199/300000", "content-length": "100"}
CASES: list[tuple[Fault, int | None, dict[str, str], bytes, str]] = [
    (Fault(), 206, PARTIAL | {"accept-ranges": "bytes"}, ASKED, "open"),
    (Fault(cut=10), 206, PARTIAL, ASKED[:10], "fin"),
    (Fault(cut=0), 206, PARTIAL, b"", "fin"),
    (Fault(cut=10, reset=True), 206, {}, ASKED[:10], "reset"),
    (Fault(drop=True), None, {}, b"", "fin"),
    (Fault(drop=True, reset=True), None, {}, b"", "reset"),
    (Fault(garbage=b"\0\r\n\r\n!"), None, {}, b"!", "fin"),
    (Fault(length_off=5), 206, {"content-length": "105"}, ASKED, "fin"),
    (Fault(length_off=-5), 206, {"content-length": "95"}, ASKED, "open"),
    (Fault(extra=5), 206, PARTIAL | {"content-length": "105"}, CONTENT[100:205], "open"),
    (Fault(start_off=1), 206, {"content-range": "bytes 101-199/300000"}, ASKED, "open"),
    (Fault(total_off=1), 206, {"content-range": "bytes 100-199/300001"}, ASKED, "open"),
    (Fault(range_shift=7), 206, {"content-range": "bytes 107-206/300000"}, CONTENT[107:207], "open"),
    (Fault(ignore_range=True), 200, {"content-length": "300000"}, CONTENT, "open"),
    (Fault(corrupt=101), 206, PARTIAL, ASKED[:1] + bytes([ASKED[1] ^ 0xFF]) + ASKED[2:], "open"),
    (Fault(status=503, retry_after=2), 503, {"retry-after": "2"}, b"<Error/>", "open"),
    (Fault(status=403), 403, {}, b"<Error/>", "open"),
    (Fault(status=307, location="/x"), 307, {"location": "/x"}, b"<Error/>", "open"),
    (Fault(gzip=True), 206, {"content-encoding": "gzip"}, ASKED, "open"),
    (Fault(etag="x"), 206, {"etag": '"x"', "x-goog-generation": "1628000000000000"}, ASKED, "open"),
    (Fault(generation=5), 206, {"x-goog-generation": "5"}, ASKED, "open"),
    (Fault(content=NEW), 206, {"content-range": "bytes 100-199/300", "x-goog-generation": "1628000000000001"},
     NEW[100:200], "open"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case[0]))
def test_fault(server, case):
    fault, status, headers, body, end = case
    server.faults = [None, fault]
    assert ask(server)[0] == 206
    answer = ask(server)
    assert (answer[0], answer[2], answer[3]) == (status, body, end)
    assert headers.items() <= answer[1].items()
    lasting = fault.etag or fault.generation or fault.content
    after = ask(server)
    assert (after[0], after[2]) == (206, NEW[100:200] if fault.content else ASKED)
    assert {name: after[1][name] for name in headers} == headers if lasting else after[1]["etag"].startswith('"')
    assert [request.range for request in server.requests] == [(100, 199)] * 3
    assert server.requests[1].sent == (0 if status is None else len(body))


def test_sound_answers(server):
    whole = fetch(server.endpoint + "/o?x=1")
    assert (whole.status_code, whole.content, whole.headers["Content-Length"]) == (200, CONTENT, "300000")
    crc = base64.b64encode(google_crc32c.value(CONTENT).to_bytes(4, "big")).decode()
    md5 = hashlib.md5(CONTENT, usedforsecurity=False)
    held = {
        "x-goog-hash": f"crc32c={crc},md5={base64.b64encode(md5.digest()).decode()}",
        "etag": f'"{md5.hexdigest()}"',
        "x-goog-stored-content-length": "300000",
    }
    assert held.items() <= {name.lower(): value for name, value in whole.headers.items()}.items()
    assert held.items() <= ask(server)[1].items()
    assert ask(server, method="HEAD")[::2] == (206, b"")
    assert ask(server, "299950-")[2] == ask(server, "299950-400000")[2] == CONTENT[-50:]
    assert (ask(server, "300000-")[0], ask(server, "300000-")[1]["content-range"]) == (416, "bytes */300000")
    assert ask(server, "9-5")[0] == ask(server, more='If-Range: "old"\r\n')[0] == 200
    assert ask(server, more='If-Match: "old"\r\n')[0] == 412
    assert fetch(server.endpoint + "/none").status_code == 404
    assert server.sent_bytes == 2 * 300_000 + 100 + 50 + 50 + 2 * 8 + 300_000 + 8 + 8


def test_options_and_schedules(server):
    server.always = Fault(no_hash=True)
    assert "x-goog-hash" not in ask(server, method="HEAD")[1]
    server.always, server.hashes, server.ranges = Fault(), False, False
    assert ask(server)[0] == 200
    assert not {"x-goog-hash", "accept-ranges", "content-range"} & ask(server)[1].keys()
    server.ranges, server.length, server.conditions = True, False, False
    status, headers, body, _ = ask(server, more='If-Match: "old"\r\nConnection: close\r\n')
    assert (status, body) == (206, b"64\r\n" + ASKED + b"\r\n0\r\n\r\n")
    assert not {"content-length", "x-goog-stored-content-length"} & headers.keys()
    assert fetch(server.endpoint + "/o").content == CONTENT
    with FaultServer(objects={"/moved": NEW}) as other:
        server.faults = lambda request: Fault(status=302, location=other.endpoint + "/moved")
        assert fetch(server.endpoint + "/o").content == NEW
    date = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    server.faults, server.length = [Fault(status=429, retry_after=date)], True
    assert ask(server)[1]["retry-after"] == "Wed, 02 Jan 2030 03:04:05 GMT"


@pytest.mark.parametrize("at", [None, 0, 9])
def test_a_stall_is_silence_and_then_the_rest(server, at):
    asked = {"stream": True, "headers": {"Range": "bytes=100-199"}, "timeout": 0.1}
    server.faults = [Fault(stall=60, stall_at=at)]
    with pytest.raises(requests.exceptions.ReadTimeout if at is None else urllib3.exceptions.ReadTimeoutError):
        fetch(server.endpoint + "/o", **asked).raw.read(100)
    assert server.requests[-1].sent == (at or 0)
    server.faults = [Fault(stall=0.02, stall_at=at)]
    assert fetch(server.endpoint + "/o", **asked | {"timeout": 60}).raw.read() == ASKED


def test_slow(server):
    server.bytes_per_second = 10
    with fetch(server.endpoint + "/o", stream=True, headers={"Range": "bytes=100-199"}) as response:
        assert response.raw.read(2) == ASKED[:2]
        assert server.requests[-1].sent < 50


def test_tls_needs_the_authority():
    with FaultServer(objects={"/o": CONTENT}, https=True) as server:
        assert fetch(server.endpoint + "/o", verify=str(server.ca_file)).content == CONTENT
        with pytest.raises(requests.exceptions.SSLError):
            fetch(server.endpoint + "/o")


@pytest.mark.parametrize("https", [False, True])
def test_hanging_clients_do_not_delay_the_end(capfd, https):
    # Threads of earlier tests may end meanwhile.
    before = {*threading.enumerate()}
    with FaultServer(objects={"/o": bytes(10_000_000)}, https=https) as server:
        address = ("127.0.0.1", int(server.endpoint.rpartition(":")[2]))
        clients = [socket.create_connection(address) for _ in range(9)]
        server.faults = [Fault(stall=60), Fault(stall=60, stall_at=5)]
        for client in clients[:6]:
            client.sendall(b"GET /o HTTP/1.1\r\n\r\n")
        clients[5].close()
        while len(server.requests) < 5 and not https:
            time.sleep(0.005)
    # Whoever stalled was cut off.
    assert {*threading.enumerate()} <= before
    assert max((request.sent for request in server.requests[:2]), default=0) <= 5
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    for client in clients:
        client.close()
    assert capfd.readouterr() == ("", "")


def test_random_schedules_are_survived(server):
    assert random_schedule(random.Random(7), 9, lies=True) == random_schedule(random.Random(7), 9, lies=True)
    for seed in range(60):
        server.faults = random_schedule(random.Random(seed), 1 + seed * 5_000, lies=seed % 2 == 0)
        assert 1 <= len(server.faults) <= 6
        while server.faults:
            headers = {"Range": f"bytes={seed}-"} if seed % 3 else {}
            with suppress(requests.RequestException):
                fetch(server.endpoint + "/o", headers=headers, allow_redirects=False)
    assert fetch(server.endpoint + "/o").content == CONTENT


def test_fake_gcs(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with fake_gcs(tmp_path) as server:
        url = server.put("x", CONTENT)
        assert url == server.endpoint + "/cloud-tpu-checkpoints/resnet-rs/x.tar.gz"
        whole, part = (fetch(url, headers=headers) for headers in ({}, {"Range": "bytes=100-199"}))
        assert (whole.status_code, whole.content, part.status_code, part.content) == (200, CONTENT, 206, ASKED)
        assert part.headers["Content-Range"] == "bytes 100-199/300000"
        for name in ("ETag", "x-goog-hash", "x-goog-generation", "Accept-Ranges"):
            assert part.headers[name] == whole.headers[name] == requests.head(url, timeout=10).headers[name]
        md5 = base64.b64encode(hashlib.md5(CONTENT, usedforsecurity=False).digest()).decode()
        assert (part.headers["ETag"], part.headers["x-goog-hash"][-28:]) == (f'"{md5}"', f"md5={md5}")
        beyond = fetch(url, headers={"Range": "bytes=300000-"})
        assert (beyond.status_code, "Content-Range" in beyond.headers) == (416, False)
        server.put("x", NEW)
        assert fetch(url, headers={"If-Match": part.headers["ETag"]}).content == NEW
        assert fetch(url).headers["x-goog-generation"] > part.headers["x-goog-generation"]
    with pytest.raises(requests.ConnectionError):
        fetch(url)
