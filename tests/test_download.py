"""Downloads from a real server on this machine that fails on demand: bytes, requests, resumption, errors.

The other two files about the cache take `quicken` and `assert_tidy` from here.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import logging
import os
import random
import re
import resource
import shutil
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import google_crc32c
import pytest
import requests
from safetensors import safe_open

from converters.convert import Identity, convert
from rszoo.cache.fill import fill_cache
from rszoo.errors import ArchiveError, NetworkError, OutputError, RszooError, UsageError
from rszoo.net import fetcher
from rszoo.net import retry as patience
from rszoo.net.download import DamagedError, Download
from rszoo.net.retry import OutOfPatienceError, TransientError
from rszoo.net.urls import RemoteChangedError
from rszoo.registry.manifest import get_entry
from tests.manifests import NAME, PATH, published
from tests.servers import Fault, FaultServer, Request, fake_gcs, random_schedule

ARCHIVE = get_entry(NAME).source.path.read_bytes()
IDENTITY = Identity(model=NAME)
B = 1 << 12
RUN = 4 * B
BIG = random.Random(0).randbytes(64 * B + 5)


def quicken(set_value: Callable[[object, str, object], object], block: int = B) -> None:
    """Make blocks small, so that small objects have many, and waits short."""
    sizes = {
        "_BLOCK": block,
        "_RUN_BLOCKS": 4,
        "_FIRST_PIECE": max(block // 4, 1024),
        "_STAGGER_S": 0,
        "_PROGRESS": 2 * block,
    }
    for name, value in sizes.items():
        set_value(fetcher, name, value)
    for name in ("_BACKOFF_S", "_JITTER_S"):
        set_value(patience, name, 0.001)


@pytest.fixture(autouse=True)
def _quick(monkeypatch, tmp_path) -> None:
    quicken(monkeypatch.setattr)
    monkeypatch.setenv("RSZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for variable in ("RSZOO_OFFLINE", "HF_HUB_OFFLINE", "RSZOO_GCS_ENDPOINT", "RSZOO_TIMEOUT"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer(objects={"/o": BIG, PATH: ARCHIVE}) as running:
        yield running


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """The waits between attempts, which take no time."""
    slept: list[float] = []
    monkeypatch.setattr(patience, "time", SimpleNamespace(sleep=slept.append))
    return slept


def drain(opened: Download, limit: int = 1 << 40) -> bytes:
    received, buffer = bytearray(), bytearray(10_000)
    while len(received) < limit and (count := opened.readinto(buffer)):
        received += buffer[:count]
    return bytes(received)


def fetch(url: str, folder: Path, limit: int = 1 << 40) -> bytes:
    """Download an object, or about `limit` bytes of it; what has arrived stays in `folder`."""
    with Download(url, folder, lambda _: None) as opened:
        return drain(opened, limit)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tell_hash(server: FaultServer, path: str, text: str) -> None:
    """Have the server send this as x-goog-hash."""
    server._stored[path] = replace(server._stored[path], hash=text)


def assert_tidy(cache: Path) -> Path:
    """Assert that a cache has one model, its hashes and the file to wait on, and nothing else; return its folder."""
    (folder,) = (cache / "models").iterdir()
    names = ("config.json", "conversion.json", "model.safetensors")
    files = [f"busy/{NAME}", f"lock/{NAME}.json", *(f"models/{folder.name}/{name}" for name in names)]
    folders = ["busy", "downloads", "lock", "models", f"models/{folder.name}"]
    assert sorted(str(path.relative_to(cache)) for path in cache.rglob("*")) == sorted(files + folders)
    return folder


@functools.cache
def recompressed(level: int = 1) -> bytes:
    """Another archive of the same checkpoint."""
    return gzip.compress(gzip.decompress(ARCHIVE), level, mtime=0)


def crc(content: bytes) -> str:
    return base64.b64encode(google_crc32c.value(content).to_bytes(4, "big")).decode()


def md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()


SIZES = [1, B - 1, B, B + 1, RUN - 1, RUN, RUN + 1, 17 * B + 5]


@pytest.mark.parametrize("hashes", [True, False], ids=["hashed", "bare"])
@pytest.mark.parametrize("kind", ["ranges", "ranges chunked", "whole", "whole chunked"])
def test_bytes_are_the_objects_and_each_is_moved_once(server, tmp_path, kind, hashes):
    server.ranges, server.length, server.hashes = "ranges" in kind, "chunked" not in kind, hashes
    for size in SIZES:
        content = random.Random(size).randbytes(size)
        server.put(f"/{size}", content)
        before = server.sent_bytes
        assert fetch(f"{server.endpoint}/{size}", tmp_path) == content, size
        # The byte more is the probe's.
        assert server.sent_bytes - before == size + server.ranges, size
        (kept,) = tmp_path.glob(f"{size}-*")
        assert (kept / "data").read_bytes() == content


@pytest.mark.parametrize("chunked", [False, True])
def test_an_empty_object(server, tmp_path, chunked):
    server.put("/empty", b"")
    server.length = not chunked
    with pytest.raises(RemoteChangedError, match=r"416.*the file is empty"):
        fetch(f"{server.endpoint}/empty", tmp_path)
    server.ranges = False
    assert fetch(f"{server.endpoint}/empty", tmp_path) == b""


def test_four_connections_are_used_and_kept(server, tmp_path):
    server.bytes_per_second = 400_000
    assert fetch(f"{server.endpoint}/o", tmp_path) == BIG
    probe, *runs = server.requests
    assert probe.range == (0, 0)
    assert len(runs) == 17
    assert Counter(request.range for request in runs).most_common(1)[0][1] == 1
    assert len({request.port for request in runs}) == 4
    # Lowest first: the reader need not wait for the end. Of the runs below one, at most three are still on their way.
    assert all(request.range[0] // RUN <= place + 3 for place, request in enumerate(runs))


def test_the_reader_has_the_start_before_the_end_has_come(server, tmp_path):
    server.faults = lambda request: Fault(stall=60) if request.range[0] >= len(BIG) - RUN else None
    with Download(f"{server.endpoint}/o", tmp_path, lambda _: None) as opened:
        assert drain(opened, RUN).startswith(BIG[:RUN])
        assert server.sent_bytes < len(BIG)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        ("crc32c={crc},md5={other_md5}", "MD5"),
        ("crc32c={other_crc},md5={md5}", "CRC32C"),
        ("md5={other_md5}", "MD5"),
        ("md5={md5}, crc32c={other_crc}", "CRC32C"),
        ("crc32c=!?,md5={md5}", "CRC32C"),
        ("crc32c=,md5={md5}", "CRC32C"),
        ("crc32c={crc},md5={md5}", None),
        ("md5={md5}, crc32c={crc}", None),
        ("sha999=x,nonsense", None),
    ],
)
def test_each_hash_is_checked(server, tmp_path, ranges, told, wrong):
    server.ranges = ranges
    server.put("/o", ARCHIVE)
    values = {"crc": crc(ARCHIVE), "md5": md5(ARCHIVE), "other_crc": crc(b"x"), "other_md5": md5(b"x")}
    tell_hash(server, "/o", told.format(**values))
    if wrong is None:
        convert(f"{server.endpoint}/o", tmp_path / "m", identity=Identity("resnet-rs-demo"))
        return
    actual = re.escape(values[wrong.lower().removesuffix("32c")])
    with pytest.raises(DamagedError, match=f"its {wrong} is {actual}"):
        convert(f"{server.endpoint}/o", tmp_path / "m", identity=Identity("resnet-rs-demo"))
    assert not (tmp_path / "m").exists()


CHANGES = {
    "ETag": Fault(etag="other"),
    "generation": Fault(generation=5),
    "content": Fault(content=recompressed()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_object_replaced_midway_is_begun_anew(server, tmp_path, change, caplog):
    server.hashes = change == "content"
    server.faults = [None, None, CHANGES[change]]
    expected = recompressed() if change == "content" else ARCHIVE
    report = convert(server.endpoint + PATH, tmp_path / "out", identity=IDENTITY)
    assert report["source"]["archive_sha256"] == hashlib.sha256(expected).hexdigest()
    assert "changed while it was read" in caplog.text
    assert [request.range for request in server.requests].count((0, 0)) == 2
    assert list((tmp_path / "cache" / "downloads").iterdir()) == []


def test_an_object_that_always_changes_is_an_error(server, tmp_path):
    server.faults = lambda _: Fault(generation=len(server.requests))
    with pytest.raises(RemoteChangedError, match=r"changed while it was read \(generation"):
        convert(server.endpoint + PATH, tmp_path / "out", identity=IDENTITY)
    assert list(tmp_path.rglob("*.safetensors")) == []
    assert list((tmp_path / "cache" / "downloads").iterdir()) == []


def test_another_version_does_not_go_on_from_the_former(server, tmp_path):
    fetch(f"{server.endpoint}/o", tmp_path)
    server.put("/o", BIG[::-1])
    assert fetch(f"{server.endpoint}/o", tmp_path) == BIG[::-1]
    # What is left of the former could never be completed.
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_an_aborted_download_goes_on_with_the_missing_blocks(server, tmp_path, ranges):
    server.ranges, server.bytes_per_second = ranges, 400_000
    with Download(f"{server.endpoint}/o", tmp_path, lambda _: None) as opened:
        drain(opened, 20 * B)
    done = opened._fetcher.partial.done
    assert 20 <= len(done) < 60
    server.bytes_per_second = None
    # Not counting what the first run's connections still send.
    asked = len(server.requests)
    assert fetch(f"{server.endpoint}/o", tmp_path) == BIG
    sent = sum(request.sent for request in server.requests[asked:])
    missing = sum(min(B, len(BIG) - block * B) for block in range(65) if block not in done)
    assert sent == (missing + 1 if ranges else len(BIG))


def flip(folder: Path) -> None:
    with (folder / "data").open("r+b") as data:
        data.seek(3 * B + 7)
        (byte,) = data.read(1)
        data.seek(3 * B + 7)
        data.write(bytes([byte ^ 1]))


def zero(folder: Path) -> None:
    with (folder / "data").open("r+b") as data:
        data.seek(9 * B - 1)
        data.write(bytes(2))


def edit_journal(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        journal = folder / "journal"
        journal.write_bytes(b"\n".join(change([line for line in journal.read_bytes().split(b"\n") if line])))

    return edit


DAMAGE: dict[str, tuple[Callable[[Path], object], int]] = {
    "nothing": (lambda _: None, 0),
    "a flipped bit": (flip, B),
    "zeros across a border": (zero, 2 * B),
    "cut in a block": (lambda folder: os.truncate(folder / "data", 62 * B + 1), 2 * B + 5),
    "cut to nothing": (lambda folder: os.truncate(folder / "data", 0), len(BIG)),
    "a torn last line": (edit_journal(lambda lines: [*lines[:-1], lines[-1][:-3]]), B),
    "a line with another block": (edit_journal(lambda lines: [b"1" + lines[0], *lines[1:]]), B),
    "a line with another CRC32C": (edit_journal(lambda lines: [lines[0].replace(b" ", b" 0", 1), *lines[1:]]), B),
    "junk in the journal": (edit_journal(lambda lines: [*lines, b"\0\xff" * 99, b"7 deadbeef 00000000"]), 0),
    "no journal": (lambda folder: (folder / "journal").unlink(), len(BIG)),
    "no data": (lambda folder: (folder / "data").unlink(), len(BIG)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_block_damaged_on_disk_is_fetched_again_and_only_that(server, tmp_path, damage):
    # The last block alone in its request, so that the journal's last line is of a whole block.
    server.faults = lambda request: Fault(stall=0.1) if request.range[0] == 0 and request.range[1] else None
    fetch(f"{server.endpoint}/o", tmp_path)
    (folder,) = tmp_path.iterdir()
    change, lost = DAMAGE[damage]
    change(folder)
    before = server.sent_bytes
    assert fetch(f"{server.endpoint}/o", tmp_path) == BIG
    assert server.sent_bytes - before == lost + 1
    # Mended on disk, too.
    assert fetch(f"{server.endpoint}/o", tmp_path) == BIG
    assert server.sent_bytes - before == lost + 2


def test_a_disk_that_never_reads_back_is_an_error(server, tmp_path, monkeypatch):
    genuine = google_crc32c.Checksum.digest
    monkeypatch.setattr(google_crc32c.Checksum, "digest", lambda self: genuine(self)[::-1])
    with pytest.raises(OutputError, match="check the disk for errors"):
        fetch(f"{server.endpoint}/o", tmp_path)


def test_another_process_clears_the_download_away_as_it_begins(server, tmp_path, monkeypatch):
    genuine = fetcher.progress_bar

    def clear_away(*args: object) -> object:
        shutil.rmtree(tmp_path)
        return genuine(*args)

    monkeypatch.setattr(fetcher, "progress_bar", clear_away)
    assert fetch(f"{server.endpoint}/o", tmp_path) == BIG


def test_an_object_of_untold_length_leaves_nothing_of_a_longer_one(server, tmp_path):
    server.ranges = server.length = server.hashes = False
    server.always = Fault(etag="same", generation=1)
    fetch(f"{server.endpoint}/o", tmp_path)
    server.put("/o", BIG[: 10 * B + 1])
    with Download(f"{server.endpoint}/o", tmp_path, lambda _: None) as opened:
        assert drain(opened) == opened.path.read_bytes() == BIG[: 10 * B + 1]


def test_a_size_that_only_a_later_answer_tells_is_heeded(server, tmp_path):
    server.length = server.hashes = False
    # The whole of untold length, cut off; then the rest by a range, and a byte that is not the object's.
    server.faults = [Fault(ignore_range=True, cut=5 * B + 1), Fault(extra=1)]
    assert fetch(f"{server.endpoint}/o", tmp_path) == BIG


RETRY_AFTER = [
    (7, 6.9, 7.1),
    (timedelta(seconds=150), 140, 151),
    (datetime(2001, 1, 1, tzinfo=UTC), None, None),
    (0, None, None),
    (300, 300, 300),
    ("soon", None, None),
    ("Fri, 31 Dec 99999 23:59:59 GMT", None, None),
    ("-5", None, None),
]


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("told", "least", "most"), RETRY_AFTER)
def test_retry_after_is_honoured(server, tmp_path, waits, status, told, least, most):
    server.put("/o", b"x" * 10)
    if isinstance(told, timedelta):
        told = datetime.now(UTC) + told
    for faults in ([Fault(status=status, retry_after=told)], [None, Fault(status=status, retry_after=told)]):
        waits.clear()
        server.faults = faults
        assert fetch(f"{server.endpoint}/o", tmp_path / str(len(faults))) == b"x" * 10
        assert len(waits) == (least is not None)
        assert all(least <= wait <= most for wait in waits)


@pytest.mark.parametrize("told", [301, "9" * 30, datetime.now(UTC) + timedelta(days=1)])
def test_too_long_a_retry_after_ends_it(server, tmp_path, waits, told):
    server.always = Fault(status=503, retry_after=told)
    with pytest.raises(OutOfPatienceError, match=r"503 .* asks to wait \d+ s; run the command again later"):
        fetch(f"{server.endpoint}/o", tmp_path)
    assert (waits, len(server.requests)) == ([], 1)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_waits_grow_with_chance_in_them(server, tmp_path, waits, monkeypatch, status):
    monkeypatch.setattr(patience, "_BACKOFF_S", 1.0)
    monkeypatch.setattr(patience, "_JITTER_S", 1.0)
    server.always = Fault(status=status)
    for _ in range(2):
        with pytest.raises(OutOfPatienceError, match=f"answered {status} .*, 7 times in a row; run the command again"):
            fetch(f"{server.endpoint}/o", tmp_path)
    assert len(server.requests) == 14
    assert [int(wait) for wait in waits] == [2, 4, 8, 16, 32] * 2
    assert waits[:5] != waits[5:]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_an_answer_that_will_not_change_ends_it_at_once(server, tmp_path, waits, status):
    server.always = Fault(status=status, retry_after=1)
    with pytest.raises(NetworkError, match=f"{server.endpoint}/o answered {status}") as caught:
        fetch(f"{server.endpoint}/o", tmp_path)
    assert not isinstance(caught.value, TransientError | OutOfPatienceError)
    assert caught.value.exit_code == 4
    assert (waits, len(server.requests), list(tmp_path.iterdir())) == ([], 1, [])


def test_progress_renews_patience(server, tmp_path, monkeypatch):
    # Far more failures of one request than one is patient with, and bytes between them.
    monkeypatch.setattr(fetcher, "_RUN_BLOCKS", 400)
    server.faults = lambda request: Fault(cut=2 * B + 100) if request.range[1] else None
    content = random.Random(1).randbytes(400 * B)
    server.put("/long", content)
    assert fetch(f"{server.endpoint}/long", tmp_path) == content
    assert len(server.requests) > 150


def test_an_outage_amid_a_download_is_endured_as_one_of_a_host_that_was_there(server, tmp_path, monkeypatch):
    genuine, failures = fetcher.open_range, iter(range(5))

    def fail_at_first(session: requests.Session, url: str, start: int, stop: int | None) -> object:
        if stop != 1 and next(failures, None) is not None:
            raise TransientError("refused", unreachable=True)
        return genuine(session, url, start, stop)

    server.put("/o", BIG[:B])
    monkeypatch.setattr(fetcher, "open_range", fail_at_first)
    assert fetch(f"{server.endpoint}/o", tmp_path) == BIG[:B]


def test_nobody_listens(tmp_path, waits):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(OutOfPatienceError, match="3 times in a row; check the URL, the network and the proxy"):
            fetch(f"http://127.0.0.1:{taken.getsockname()[1]}/o", tmp_path)
    assert len(waits) == 1


@pytest.mark.parametrize("first_words", [b"", b"\x16\x03\x03\0\x7a\2"])
def test_a_server_that_hangs_up_amid_the_handshake_may_only_be_busy(tmp_path, waits, first_words):
    with socket.create_server(("127.0.0.1", 0)) as busy:

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = busy.accept()
                    connection.recv(4096)
                    connection.sendall(first_words)
                    connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        with pytest.raises(OutOfPatienceError, match=r"SSLError.*7 times in a row; run the command again later"):
            fetch(f"https://127.0.0.1:{busy.getsockname()[1]}/o", tmp_path)


def test_a_server_that_serves_one_connection_at_a_time(server, tmp_path):
    served: list[int] = []

    def refuse_all_but_one(request: Request) -> Fault | None:
        log = server.requests
        if any(log[index].sent < log[index].range[1] + 1 - log[index].range[0] for index in served):
            return Fault(status=429)
        served.append(len(log) - 1)
        return None

    server.faults, server.bytes_per_second = refuse_all_but_one, 2_000_000
    assert fetch(f"{server.endpoint}/o", tmp_path) == BIG
    assert len(server.requests) - len(served) >= 3


@pytest.mark.parametrize("at", [None, 0, 100, B])
def test_a_stall_is_cut_short(server, tmp_path, monkeypatch, at):
    monkeypatch.setenv("RSZOO_TIMEOUT", "0.2")
    server.faults = [None, *[Fault(stall=60, stall_at=at)] * 4]
    assert fetch(f"{server.endpoint}/o", tmp_path) == BIG
    # Who waits is served in the end, and does not ask again.
    assert len(server.requests) == 1 + 17 + 4


def test_a_server_that_always_stalls_ends_it(server, tmp_path, monkeypatch):
    monkeypatch.setenv("RSZOO_TIMEOUT", "0.05")
    server.always = Fault(stall=60)
    with pytest.raises(OutOfPatienceError, match="7 times in a row"):
        fetch(f"{server.endpoint}/o", tmp_path)


@pytest.mark.parametrize("junk", ["soon", "0", "-1", "nan", "inf"])
def test_timeout_that_is_none(server, tmp_path, monkeypatch, junk):
    monkeypatch.setenv("RSZOO_TIMEOUT", junk)
    with pytest.raises(UsageError, match=f"RSZOO_TIMEOUT is '{junk}'"):
        fetch(f"{server.endpoint}/o", tmp_path)


def test_a_full_disk_is_told_and_the_next_run_goes_on(server, tmp_path):
    server.bytes_per_second = 2_000_000
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(BIG) // 2, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot store the download in .* free some space or set RSZOO_CACHE"):
            fetch(f"{server.endpoint}/o", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    before = server.sent_bytes
    assert fetch(f"{server.endpoint}/o", tmp_path) == BIG
    assert len(BIG) // 3 < server.sent_bytes - before < len(BIG) * 3 // 4


@pytest.mark.parametrize("how", ["not allowed", "a file in the way"])
def test_a_cache_that_cannot_be_written_does_not_stop_a_conversion(server, tmp_path, monkeypatch, caplog, how):
    if how == "not allowed":
        # Root may write everywhere.
        monkeypatch.setattr("converters.read.remote.os.access", lambda *_: False)
    else:
        (tmp_path / "cache").write_bytes(b"")
    (tmp_path / "parent").mkdir()
    convert(server.endpoint + PATH, tmp_path / "parent" / "out", identity=IDENTITY)
    assert "an interrupted download will restart from the beginning" in caplog.text
    assert [path.name for path in (tmp_path / "parent").iterdir()] == ["out"]
    names = {path.name for path in (tmp_path / "parent" / "out").iterdir()}
    assert names == {"config.json", "conversion.json", "model.safetensors"}


@pytest.mark.parametrize("length", ["told", "untold"])
def test_url_gives_the_same_weights_as_the_file(server, tmp_path, length):
    if length == "untold":
        server.length = server.ranges = False
    url = server.endpoint + PATH
    report = convert(url, tmp_path / "remote", identity=IDENTITY)
    convert(NAME, tmp_path / "local")
    with (
        safe_open(tmp_path / "remote" / "model.safetensors", framework="numpy") as remote,
        safe_open(tmp_path / "local" / "model.safetensors", framework="numpy") as local,
    ):
        # The header's own checksum comes first.
        of_tensors = local.metadata()["crc32c"][8:]
        assert remote.metadata()["crc32c"][8:] == of_tensors
        assert {**remote.metadata(), "crc32c": ""} == {**local.metadata(), "crc32c": "", "source": url}
        assert list(remote.keys()) == list(local.keys())
        assert all((remote.get_tensor(name) == local.get_tensor(name)).all() for name in local.keys())  # noqa: SIM118
    assert (report["source"]["name"], report["source"]["archive_sha256"]) == (url, get_entry(NAME).source.sha256)
    assert all(request.headers["accept-encoding"] == "identity" for request in server.requests)


def test_redirects(server, tmp_path, monkeypatch):
    with FaultServer(objects={"/o": BIG}, https=True) as secure:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(secure.ca_file))
        server.always = Fault(status=302, location=f"{secure.endpoint}/o?token=secret")
        assert fetch(f"{server.endpoint}/moved", tmp_path / "1") == BIG
        assert len({request.port for request in secure.requests[1:]}) <= 4

        secure.always = Fault(status=307, location=f"http://user:secret@{server.endpoint[7:]}/o?token=secret")
        server.always = Fault()
        asked = len(server.requests)
        with pytest.raises(NetworkError, match=f"redirects to {server.endpoint}/o, which is not HTTPS") as caught:
            fetch(f"{secure.endpoint}/o", tmp_path / "2")
        assert "secret" not in str(caught.value)
        assert len(server.requests) == asked

        secure.always = Fault(status=302, location="/o?again")
        before = len(secure.requests)
        with pytest.raises(NetworkError, match="TooManyRedirects"):
            fetch(f"{secure.endpoint}/o", tmp_path / "3")
        assert len(secure.requests) - before == 6

        secure.always = Fault()
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")
        with pytest.raises(NetworkError, match=r"SSL.*check the URL") as caught:
            fetch(f"{secure.endpoint}/o", tmp_path / "4")
        assert not isinstance(caught.value, TransientError | OutOfPatienceError)


@pytest.mark.parametrize("location", ["\xff\xfe", "https://[::1", "https://127.0.0.1:99999/", "https:///x", "//", ""])
def test_a_redirect_to_nowhere_is_an_error_of_the_network(server, tmp_path, location):
    server.always = Fault(status=302, location=location)
    with pytest.raises(NetworkError, match=server.endpoint):
        fetch(f"{server.endpoint}/o", tmp_path)


@pytest.mark.parametrize("url", ["http://", "http:///o", "http://[::1/o", "http://a b/o", "http://127.0.0.1:99999/o"])
def test_a_url_that_is_none(tmp_path, url):
    with pytest.raises(RszooError):
        fetch(url, tmp_path)


def test_a_proxy_is_used(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", server.endpoint)
    monkeypatch.setenv("http_proxy", server.endpoint)
    # A proxy is asked for the whole URL.
    server.put("http://example.invalid/o", BIG)
    assert fetch("http://example.invalid/o", tmp_path) == BIG
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with pytest.raises(OutOfPatienceError, match=r"ProxyError|NewConnectionError"):
        fetch("http://example.invalid/o", tmp_path / "2")


SECRET_FAULTS = {
    "none": Fault(),
    "404": Fault(status=404),
    "429": Fault(status=429, retry_after=1000),
    "503": Fault(status=503),
    "cut": Fault(cut=0),
    "reset": Fault(drop=True, reset=True),
    "garbage": Fault(garbage=b"x"),
    "shifted": Fault(range_shift=1),
    "damaged": Fault(corrupt=7),
    "stalled": Fault(stall=60),
}


@pytest.mark.parametrize("fault", SECRET_FAULTS)
def test_no_secret_of_a_url_is_told_or_kept(server, tmp_path, monkeypatch, caplog, fault):
    monkeypatch.setenv("RSZOO_TIMEOUT", "0.05")
    caplog.set_level(logging.DEBUG, "rszoo")
    server.always = SECRET_FAULTS[fault]
    url = f"http://user:hunter2@{server.endpoint[7:]}{PATH}?token=hunter2#hunter2"
    try:
        convert(url, tmp_path / "out", identity=IDENTITY, keep_archive=True)
        told = ""
        assert fault == "none"
    except (NetworkError, ArchiveError) as error:
        told = str(error)
        assert server.endpoint + PATH in told
    told += "".join(record.getMessage() for record in caplog.records if record.name.startswith("rszoo"))
    assert "hunter2" not in told
    # It is given to the server, though.
    assert server.requests[0].headers["authorization"] == f"Basic {base64.b64encode(b'user:hunter2').decode()}"
    assert server.requests[0].path.endswith("?token=hunter2")
    for path in tmp_path.rglob("*"):
        assert "hunter2" not in path.name
        assert path.is_dir() or b"hunter2" not in path.read_bytes()


def test_what_was_asked_to_be_kept_is_the_archive(server, tmp_path, monkeypatch, use_manifest):
    use_manifest(published())
    monkeypatch.setenv("RSZOO_GCS_ENDPOINT", server.endpoint)
    first = sha256(fill_cache(get_entry(NAME), keep_archive=True).weights_path)
    assert (tmp_path / "cache" / "archives" / f"{NAME}.tar.gz").read_bytes() == ARCHIVE
    asked = len(server.requests)
    convert(NAME, tmp_path / "again")
    assert sha256(tmp_path / "again" / "model.safetensors") == first
    assert len(server.requests) == asked


def test_a_genuine_object_store(tmp_path, monkeypatch, use_manifest):
    """The whole way against fake-gcs-server, whose authors know nothing of this project."""
    from typer.testing import CliRunner

    from rszoo.cli.main import app
    from rszoo.registry.trust import read_record

    use_manifest(published())
    with fake_gcs(tmp_path / "gcs") as store:
        store.put(NAME, ARCHIVE)
        monkeypatch.setenv("RSZOO_GCS_ENDPOINT", store.endpoint)
        done = CliRunner().invoke(app, ["prefetch", NAME])
    assert done.exit_code == 0, done.output
    folder = assert_tidy(tmp_path / "cache")
    assert str(folder) in done.output
    record = read_record(NAME)
    facts = (record.size, record.crc32c, record.md5, record.sha256)
    assert facts == (len(ARCHIVE), crc(ARCHIVE), md5(ARCHIVE), hashlib.sha256(ARCHIVE).hexdigest())
    assert record.received_from == store.endpoint + PATH


@pytest.mark.parametrize("lies", [False, True], ids=["faults", "lies"])
def test_random_faults_end_in_the_bytes_or_an_error(server, tmp_path, lies, pytestconfig):
    """Objects of random sizes, so that faults fall on all borders."""
    outcomes: Counter[str] = Counter()
    for seed in range(2000 if pytestconfig.getoption("slow") else 60):
        rng = random.Random(f"{seed} {lies}")
        content = rng.randbytes(rng.choice([1, B, RUN, rng.randrange(1, 40 * B)]))
        server.ranges, server.length, server.hashes = rng.random() < 0.8, rng.random() < 0.8, lies or rng.random() < 0.8
        server.put("/random", content)
        schedule = random_schedule(rng, len(content), lies=lies)
        server.faults = list(schedule)
        try:
            received = fetch(f"{server.endpoint}/random", tmp_path)
        except RszooError as error:
            outcomes[type(error).__name__] += 1
            assert lies or not server.length or not server.ranges, (seed, schedule)
        else:
            outcomes["right"] += 1
            assert received == content, (seed, schedule)
    print(dict(outcomes))
    assert outcomes["right"] > 30


@pytest.mark.parametrize("lies", [False, True], ids=["faults", "lies"])
def test_random_faults_never_make_a_wrong_model(server, tmp_path, monkeypatch, use_manifest, lies, pytestconfig):
    quicken(monkeypatch.setattr, 1 << 16)
    use_manifest(published())
    monkeypatch.setenv("RSZOO_GCS_ENDPOINT", server.endpoint)
    monkeypatch.setenv("RSZOO_CACHE", str(tmp_path / "undisturbed"))
    expected = sha256(fill_cache(get_entry(NAME)).weights_path)
    outcomes: Counter[str] = Counter()
    for seed in range(int(os.environ.get("RSZOO_TEST_SCHEDULES", 250 if pytestconfig.getoption("slow") else 8))):
        cache = tmp_path / str(seed)
        monkeypatch.setenv("RSZOO_CACHE", str(cache))
        schedule = random_schedule(random.Random(f"{seed} {lies}"), len(ARCHIVE), most=8, lies=lies)
        server.faults, server.ranges = list(schedule), seed % 5 > 0
        try:
            fill_cache(get_entry(NAME))
            outcomes["right"] += 1
        except RszooError as error:
            outcomes[type(error).__name__] += 1
            assert list((cache / "models").iterdir()) == [], (seed, schedule)
        server.faults = []
        assert sha256(fill_cache(get_entry(NAME)).weights_path) == expected, (seed, schedule)
        assert_tidy(cache)
    print(dict(outcomes))
    assert outcomes["right"] > 0
