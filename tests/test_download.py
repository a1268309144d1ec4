"""Conversion straight from a URL, against a real HTTP server on this machine that can misbehave."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import requests
from safetensors import safe_open
from safetensors.numpy import load_file

from converters.convert import Identity, convert
from rszoo.errors import ArchiveError, NetworkError
from rszoo.registry import get_entry

DEMO = get_entry("resnet-rs-demo").source.path
IDENTITY = Identity(model="resnet-rs-demo")
PATH = "/bucket/resnet-rs-demo.tar.gz"


def goog_hash(content: bytes) -> str:
    crc = base64.b64encode(google_crc32c.value(content).to_bytes(4, "big")).decode()
    return f"crc32c={crc},md5=1B2M2Y8AsgTpgAmY7PhCfg=="


@dataclass
class Served:
    """What the server does, and what it was asked.

    Of the content, `sent` bytes go out, all of them if None; `length` is what it claims, nothing if None.
    """

    content: bytes = field(default_factory=DEMO.read_bytes)
    status: int = 200
    headers: list[tuple[str, str]] = field(default_factory=list)
    length: int | None = field(init=False)
    sent: int | None = None
    requests: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""

    def __post_init__(self) -> None:
        self.length = len(self.content)


@pytest.fixture
def served(monkeypatch) -> Iterator[Served]:
    state = Served()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests.append((self.path, self.headers["Accept-Encoding"]))
            self.send_response(state.status)
            if state.length is not None:
                self.send_header("Content-Length", str(state.length))
            for header in state.headers:
                self.send_header(*header)
            self.end_headers()
            self.wfile.write(state.content[: state.sent])

        def log_message(self, *_: object) -> None:
            pass

    for variable in ("RSZOO_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        # A client that hangs up early is no news.
        server.handle_error = lambda *_: None
        state.url = f"http://127.0.0.1:{server.server_address[1]}{PATH}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        server.shutdown()
        thread.join()


@pytest.fixture
def parent(tmp_path) -> Path:
    (tmp_path / "parent").mkdir()
    return tmp_path / "parent"


def assert_network_error(url: str, parent: Path, reason: str) -> None:
    with pytest.raises(NetworkError, match=reason) as caught:
        convert(url, parent / "out", identity=IDENTITY)
    assert url in str(caught.value)
    assert caught.value.exit_code == 4
    assert list(parent.iterdir()) == []


@pytest.mark.parametrize("length", ["told", "untold"])
def test_url_gives_the_same_weights_as_the_file(served, parent, length):
    served.headers = [("x-goog-hash", goog_hash(served.content)), ("ETag", '"x"')]
    if length == "untold":
        served.length = None
    report = convert(served.url, parent / "remote", identity=IDENTITY)
    convert(str(DEMO), parent / "local", identity=IDENTITY)
    assert served.requests == [(PATH, "identity")]
    remote, local = (load_file(parent / name / "model.safetensors") for name in ("remote", "local"))
    assert len(local) == 194
    assert remote.keys() == local.keys()
    for name, values in local.items():
        np.testing.assert_array_equal(remote[name], values)
    with safe_open(parent / "remote" / "model.safetensors", framework="numpy") as opened:
        assert opened.metadata()["source"] == served.url
    assert report["source"]["name"] == served.url
    assert report["source"]["archive_sha256"] == get_entry("resnet-rs-demo").source.sha256
    assert sorted(path.name for path in parent.iterdir()) == ["local", "remote"]


def test_hash_in_two_headers_is_understood(served, parent):
    crc, md5 = goog_hash(served.content).split(",")
    served.headers = [("x-goog-hash", crc), ("x-goog-hash", md5)]
    convert(served.url, parent / "out", identity=IDENTITY)
    served.headers = [("x-goog-hash", md5), ("x-goog-hash", goog_hash(b"other").split(",")[0])]
    (parent / "second").mkdir()
    assert_network_error(served.url, parent / "second", "CRC32C")


@pytest.fixture(params=["urllib3 2", "urllib3 1"])
def _either_urllib3(request, monkeypatch) -> None:
    genuine = requests.get

    def get(*args: object, **options: object) -> requests.Response:
        response = genuine(*args, **options)
        # The older one does not notice that the content is too short.
        response.raw.enforce_content_length = request.param == "urllib3 2"
        return response

    monkeypatch.setattr(requests, "get", get)


@pytest.mark.usefixtures("_either_urllib3")
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.9999])
def test_connection_cut_midway(served, parent, share):
    served.sent = int(share * len(served.content))
    assert_network_error(served.url, parent, "download|ended after")


@pytest.mark.usefixtures("_either_urllib3")
def test_content_length_longer_than_the_content(served, parent):
    served.length += 1
    assert_network_error(served.url, parent, "download|ended after")


def test_content_of_untold_length_cut_midway_is_caught_by_the_hash(served, parent):
    served.headers = [("x-goog-hash", goog_hash(served.content))]
    served.length, served.sent = None, len(served.content) // 2
    assert_network_error(served.url, parent, "CRC32C")


def test_content_of_untold_length_cut_midway_without_a_hash_is_incomplete(served, parent):
    served.length, served.sent = None, len(served.content) // 2
    with pytest.raises(ArchiveError, match="incomplete") as caught:
        convert(served.url, parent / "out", identity=IDENTITY)
    assert served.url in str(caught.value)
    assert list(parent.iterdir()) == []


def test_hash_that_is_not_the_contents(served, parent):
    served.headers = [("x-goog-hash", goog_hash(served.content + b"\0"))]
    assert_network_error(served.url, parent, "CRC32C")


@pytest.mark.parametrize("junk", ["!?", "abc", ""])
def test_hash_that_is_no_base64(served, parent, junk):
    served.headers = [("x-goog-hash", f"crc32c={junk},md5=x")]
    assert_network_error(served.url, parent, "CRC32C")


@pytest.mark.parametrize("status", [404, 403, 500, 206])
def test_status_that_is_no_success(served, parent, status):
    served.status = status
    assert_network_error(served.url, parent, f"answered {status}")


def test_endless_redirect(served, parent):
    served.status, served.headers, served.sent, served.length = 302, [("Location", PATH)], 0, 0
    assert_network_error(served.url, parent, "TooManyRedirects")


def test_nobody_listens(parent, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert_network_error(f"http://127.0.0.1:{port}{PATH}", parent, "cannot download")


@pytest.mark.parametrize("variable", ["RSZOO_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_mode_makes_no_connection(served, parent, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    assert_network_error(served.url, parent, variable)
    assert served.requests == []
    monkeypatch.setenv(variable, "0")
    convert(served.url, parent / "out", identity=IDENTITY)
    assert len(served.requests) == 1
