"""Which archive is the right one: recorded and pinned hashes, mirrors, damaged records; and what works offline."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rszoo
from converters.convert import convert
from rszoo.cache.cached import find_cached
from rszoo.cache.fill import fill_cache
from rszoo.cache.find import find_folder
from rszoo.cache.upkeep import clear_cache, list_cached
from rszoo.cli.main import app
from rszoo.disk.paths import record_path
from rszoo.errors import ConfigError, IntegrityError, NetworkError, OutputError, UsageError
from rszoo.folder.model_folder import ModelFolder
from rszoo.registry.manifest import get_entry, parse_manifest
from rszoo.registry.pinning import pin_manifest
from rszoo.registry.trust import Record, read_record, remember
from tests.manifests import NAME, PATH, published
from tests.servers import Fault, FaultServer
from tests.test_download import (
    ARCHIVE,
    assert_tidy,
    crc,
    md5,
    quicken,
    recompressed,
    sha256,
)

MANIFEST = Path(__file__).parent.parent / "weights_manifest.json"
# Another time in gzip's header: as long, and the same inside.
STAMPED = ARCHIVE[:4] + b"\1\2\3\4" + ARCHIVE[8:]
FACTS = {
    "size": len(ARCHIVE),
    "crc32c": crc(ARCHIVE),
    "md5": md5(ARCHIVE),
    "sha256": hashlib.sha256(ARCHIVE).hexdigest(),
}


@pytest.fixture(autouse=True)
def _published(monkeypatch, tmp_path, use_manifest) -> None:
    quicken(monkeypatch.setattr, 1 << 18)
    monkeypatch.setenv("RSZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for variable in ("RSZOO_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    # Nothing listens there: no test asks the real one by mistake.
    monkeypatch.setenv("RSZOO_GCS_ENDPOINT", "http://127.0.0.1:9")
    use_manifest(published())


@pytest.fixture
def server(monkeypatch) -> Iterator[FaultServer]:
    """The publisher's, as far as rszoo can tell."""
    with FaultServer(objects={PATH: ARCHIVE}) as running:
        monkeypatch.setenv("RSZOO_GCS_ENDPOINT", running.endpoint)
        yield running


@pytest.fixture
def mirrors(monkeypatch) -> Iterator[tuple[FaultServer, FaultServer]]:
    with FaultServer(objects={PATH: ARCHIVE}) as first, FaultServer(objects={PATH: ARCHIVE}) as second:
        monkeypatch.setenv("RSZOO_GCS_ENDPOINT", f"{first.endpoint}/, {second.endpoint}")
        yield first, second


def fill() -> ModelFolder:
    return fill_cache(get_entry(NAME))


def models(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache" / "models").iterdir())


def test_the_first_download_is_recorded(server, tmp_path):
    fill()
    record = json.loads((tmp_path / "cache" / "lock" / f"{NAME}.json").read_text())
    age = datetime.now(UTC) - datetime.fromisoformat(record.pop("recorded"))
    assert 0 <= age.total_seconds() < 60
    assert record == {"name": NAME, "received_from": server.endpoint + PATH, **FACTS}
    assert_tidy(tmp_path / "cache")
    # It stays the first.
    path = record_path(NAME)
    path.write_text(path.read_text().replace('"recorded": "20', '"recorded": "19'))
    aged = path.read_bytes()
    clear_cache()
    fill()
    assert path.read_bytes() == aged


@pytest.mark.parametrize(
    ("content", "told", "fact"),
    [
        (recompressed(), True, ("length", len(recompressed()), FACTS["size"])),
        (STAMPED, True, ("CRC32C", crc(STAMPED), FACTS["crc32c"])),
        (STAMPED, False, ("SHA-256", hashlib.sha256(STAMPED).hexdigest(), FACTS["sha256"])),
    ],
)
def test_another_archive_of_the_same_name_is_refused(server, tmp_path, content, told, fact):
    fill()
    record = record_path(NAME).read_bytes()
    # Models go, trust stays.
    clear_cache()
    server.put(PATH, content)
    server.hashes = told
    before = server.sent_bytes
    with pytest.raises(IntegrityError) as caught:
        fill()
    name, found, known = fact
    assert f"its {name} is {found}, and the first download" in str(caught.value)
    for told_fact in (f"says {known}", json.loads(record)["recorded"], str(record_path(NAME))):
        assert told_fact in str(caught.value)
    # Where the server tells its hash, nothing but the probe is fetched.
    sent = server.sent_bytes - before
    # Its one byte may not be sent yet when the headers were enough.
    assert sent <= 1 if told else sent == len(content) + 1
    assert models(tmp_path) == []
    assert list((tmp_path / "cache" / "downloads").iterdir()) == []
    assert record_path(NAME).read_bytes() == record
    # The way out that the message gives.
    record_path(NAME).unlink()
    server.hashes = True
    fill()
    assert read_record(NAME).sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("fact", FACTS)
def test_the_manifest_is_believed_more_than_the_server(server, tmp_path, monkeypatch, fact, use_manifest):
    others = {"size": 5, "crc32c": crc(STAMPED), "md5": md5(STAMPED), "sha256": hashlib.sha256(STAMPED).hexdigest()}
    use_manifest(published(**{fact: others[fact]}))
    with pytest.raises(IntegrityError, match=re.escape(f"is {FACTS[fact]}, and the manifest says {others[fact]}")):
        fill()
    # All but the SHA-256 are known from the answer to the first request.
    only_asked = [request.range for request in server.requests] == [(0, 0)]
    assert (only_asked, server.sent_bytes > len(ARCHIVE)) == ((False, True) if fact == "sha256" else (True, False))
    assert (models(tmp_path), record_path(NAME).exists()) == ([], False)
    use_manifest(published(**{fact: FACTS[fact]}))
    fill()


def test_a_kept_archive_is_checked_too(server, tmp_path):
    folder = fill_cache(get_entry(NAME), keep_archive=True)
    (kept,) = (tmp_path / "cache" / "archives").iterdir()
    expected = sha256(folder.weights_path)
    for model in models(tmp_path):
        rszoo.cache.cached.remove_folder(model)
    asked = len(server.requests)
    assert sha256(fill().weights_path) == expected
    kept.write_bytes(STAMPED)
    for model in models(tmp_path):
        rszoo.cache.cached.remove_folder(model)
    with pytest.raises(IntegrityError, match=f"{kept} is not the file of {NAME}"):
        fill()
    assert (len(server.requests), models(tmp_path)) == (asked, [])


FIRST_FAILS = {
    "down": None,
    "has it not": Fault(status=404),
    "is overloaded": Fault(status=503, retry_after=9999),
    "breaks off": Fault(cut=0),
    "stalls": Fault(stall=60),
    "damages it": Fault(corrupt=1000),
    "has another": Fault(content=STAMPED),
    "redirects": Fault(status=302, location="http://127.0.0.1:9/"),
}


@pytest.mark.parametrize("how", FIRST_FAILS)
def test_mirrors_are_tried_in_order(mirrors, tmp_path, monkeypatch, how, use_manifest):
    first, second = mirrors
    monkeypatch.setenv("RSZOO_TIMEOUT", "0.1")
    if FIRST_FAILS[how] is None:
        monkeypatch.setenv("RSZOO_GCS_ENDPOINT", f"http://127.0.0.1:9 {second.endpoint}")
    else:
        first.always = FIRST_FAILS[how]
    use_manifest(published(sha256=FACTS["sha256"]))
    folder = fill()
    assert read_record(NAME).received_from == second.endpoint + PATH
    assert bool(first.requests) == (how != "down")
    assert second.sent_bytes == len(ARCHIVE) + 1
    assert_tidy(tmp_path / "cache")
    account = json.loads((folder.path / "conversion.json").read_text())
    # The result does not depend on where it came from.
    assert account["source"]["name"] == get_entry(NAME).source.url


def test_the_first_mirror_that_works_is_the_only_one_asked(mirrors):
    fill()
    assert mirrors[1].requests == []


def test_no_mirror_works(mirrors, tmp_path):
    mirrors[0].always, mirrors[1].always = Fault(status=404), Fault(status=403)
    with pytest.raises(NetworkError, match="none of the mirrors") as caught:
        fill()
    for server, status in zip(mirrors, (404, 403), strict=True):
        assert f"{server.endpoint}{PATH} answered {status}" in str(caught.value)
    assert models(tmp_path) == []


def test_a_mirror_without_hashes_needs_a_known_one(server, tmp_path, monkeypatch, caplog, use_manifest):
    server.hashes = False
    with pytest.raises(IntegrityError, match=r"nothing vouches for .*manifest pin"):
        fill()
    # The one byte that was asked for may not have been sent yet.
    assert server.sent_bytes <= 1
    assert models(tmp_path) == []
    # A length vouches for nothing.
    use_manifest(published(size=len(ARCHIVE)))
    with pytest.raises(IntegrityError, match="nothing vouches"):
        fill()
    use_manifest(published(sha256=FACTS["sha256"]))
    fill()
    assert "trusting what the mirror" not in caplog.text
    # What it was is recorded, and serves where the manifest knows nothing.
    use_manifest(published())
    clear_cache()
    fill()
    server.put(PATH, STAMPED)
    clear_cache()
    with pytest.raises(IntegrityError, match="SHA-256"):
        fill()


def test_trust_in_a_mirror_is_told(server, caplog):
    fill()
    assert f"no hash is known; trusting what the mirror {server.endpoint}{PATH} says of itself" in caplog.text


@pytest.mark.parametrize(
    "junk",
    [
        "localhost:8080",
        "ftp://host",
        "gs://bucket",
        "/folder",
        "https://",
        "http:///x",
        "http://[::1",
        "http://ok,junk",
    ],
)
def test_an_endpoint_that_is_none(monkeypatch, junk):
    monkeypatch.setenv("RSZOO_GCS_ENDPOINT", junk)
    with pytest.raises(UsageError, match=r"RSZOO_GCS_ENDPOINT has .*; allowed: http:// and https://"):
        fill()


def test_an_endpoints_password_is_not_told(monkeypatch):
    monkeypatch.setenv("RSZOO_GCS_ENDPOINT", "ftp://user:hunter2@host")
    with pytest.raises(UsageError) as caught:
        fill()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b"null", b"\xff", b'{"name": "x"}', b'{"name": "x", "extra": 1}'])
def test_a_damaged_record_is_told(server, tmp_path, junk):
    record_path(NAME).parent.mkdir(parents=True)
    record_path(NAME).write_bytes(junk)
    for action in (fill, lambda: pin_manifest(MANIFEST)):
        with pytest.raises(
            ConfigError, match=f"{record_path(NAME)} is damaged .* delete it to trust the next download"
        ):
            action()
    assert models(tmp_path) == []


def record(name: str = "resnet-rs-50-i160", **facts: object) -> Record:
    """Record a download on this machine."""
    values = {"size": 400_000_000, "crc32c": "AAAAAA==", "md5": md5(b""), "sha256": "0" * 64, **facts}
    made = Record(name=name, received_from="https://mirror/x", recorded="2026-01-01T00:00:00+00:00", **values)
    remember(get_entry(name), made)
    return made


@pytest.fixture
def manifest(tmp_path, monkeypatch) -> Path:
    """A copy of the project's own."""
    monkeypatch.delenv("RSZOO_MANIFEST")
    (tmp_path / "project").mkdir()
    path = tmp_path / "project" / "weights_manifest.json"
    path.write_bytes(MANIFEST.read_bytes())
    return path


def test_pinning_changes_these_hashes_and_no_other_byte(manifest):
    record()
    record("resnet-rs-420-i320", md5=None)
    unpinned = manifest.stat().st_ino
    done = CliRunner().invoke(app, ["manifest", "pin", str(manifest)])
    assert done.exit_code == 0
    assert done.output == "resnet-rs-50-i160: size, crc32c, md5, sha256\nresnet-rs-420-i320: size, crc32c, sha256\n"
    before, after = (path.read_text().split("\n") for path in (MANIFEST, manifest))
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    pinned = ['"size": 400000000', '"crc32c": "AAAAAA=="', f'"md5": "{md5(b"")}"', f'"sha256": "{"0" * 64}"']
    assert [new.strip(" ,") for _, new in changed] == [*pinned, *(text for text in pinned if "md5" not in text)]
    assert all(old == new.replace(new.strip(" ,").partition(": ")[2], "null") for old, new in changed)
    assert parse_manifest(json.loads(manifest.read_text()))["resnet-rs-50-i160"].source.sha256 == "0" * 64
    # Another file in its place; and again, nothing to do.
    inode = manifest.stat().st_ino
    assert inode != unpinned
    assert pin_manifest(manifest) == {}
    assert manifest.stat().st_ino == inode


@pytest.mark.parametrize("fact", FACTS)
def test_pinning_refuses_to_change_a_hash(manifest, fact):
    record()
    pin_manifest(manifest)
    pinned = manifest.read_bytes()
    record_path("resnet-rs-50-i160").unlink()
    record(**{fact: 7 if fact == "size" else "other"})
    record("resnet-rs-101-i160")
    with pytest.raises(IntegrityError, match=f"has {fact} .*received from https://mirror/x .*nothing was written"):
        pin_manifest(manifest)
    assert manifest.read_bytes() == pinned


def test_pinning_is_whole_or_not_at_all(manifest, monkeypatch):
    record()

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match="No space left"):
        pin_manifest(manifest)
    assert manifest.read_bytes() == MANIFEST.read_bytes()
    assert [path.name for path in manifest.parent.iterdir()] == [manifest.name]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema_version": 1}', '{"schema_version": 1, "models": [{}]}'])
def test_pinning_into_what_is_no_manifest(manifest, text):
    manifest.write_text(text)
    with pytest.raises(ConfigError, match="is not a weights manifest"):
        pin_manifest(manifest)
    assert manifest.read_text() == text


@pytest.fixture
def no_sockets(monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


@pytest.fixture
def cached(monkeypatch) -> ModelFolder:
    """The model in the cache, and no server any more."""
    with FaultServer(objects={PATH: ARCHIVE}) as server:
        monkeypatch.setenv("RSZOO_GCS_ENDPOINT", server.endpoint)
        folder = fill_cache(get_entry(NAME), keep_archive=True)
    monkeypatch.delenv("RSZOO_GCS_ENDPOINT")
    return folder


@pytest.mark.parametrize("variable", [None, "RSZOO_OFFLINE", "HF_HUB_OFFLINE"])
def test_a_cached_model_makes_no_connection(cached, no_sockets, monkeypatch, variable):
    if variable:
        monkeypatch.setenv(variable, "1")
    with rszoo.load_weights(NAME) as weights:
        assert weights.count == 194
    assert find_folder(NAME).path == find_cached(get_entry(NAME)).path == cached.path
    assert [model.name for model in list_cached()] == [NAME]
    for command in (["list"], ["cache", "list"], ["cache", "path", NAME], ["cache", "verify"], ["prefetch", NAME]):
        done = CliRunner().invoke(app, command)
        assert (done.exit_code, NAME in done.output) == (0, True), done.output
    rszoo.cache.cached.remove_folder(cached.path)
    # From the archive that was kept.
    assert find_folder(NAME).path == cached.path


@pytest.mark.usefixtures("no_sockets")
@pytest.mark.parametrize("variable", ["RSZOO_OFFLINE", "HF_HUB_OFFLINE"])
def test_what_is_not_cached_offline_is_one_error_with_the_way_out(tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, "TRUE")
    with pytest.raises(NetworkError) as caught:
        find_folder(NAME)
    for part in (f"{NAME} is not in the cache {tmp_path / 'cache'}", variable, f"`rszoo prefetch {NAME} --output"):
        assert part in str(caught.value)
    for source in (NAME, f"https://example.invalid{PATH}"):
        with pytest.raises(NetworkError, match=variable):
            convert(source, tmp_path / "out")
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "out").exists()


def test_offline_mode_can_be_off(server, monkeypatch):
    for value in ("0", "", "false", "off"):
        monkeypatch.setenv("RSZOO_OFFLINE", value)
        clear_cache()
        fill()
    assert len(server.requests) >= 4
