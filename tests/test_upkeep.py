"""What users and other processes do to a cache, and what must not come of it: misplaced trust, lost models."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time

import pytest
from filelock import FileLock
from typer.testing import CliRunner, Result

import rszoo
from converters.convert import Identity, convert
from rszoo.cache import fill as cache
from rszoo.cache.cached import find_cached
from rszoo.cache.find import find_folder
from rszoo.cache.upkeep import clear_cache, list_cached, verify_cache
from rszoo.cache.weights import load_weights
from rszoo.cli.main import app
from rszoo.disk.paths import archives_folder, busy_folder, downloads_folder, kept_archive, record_path
from rszoo.errors import ArchiveError, IntegrityError, NetworkError, OutputError, SourceNotFoundError, UsageError
from rszoo.net.download import Download
from rszoo.registry.manifest import get_entry
from rszoo.registry.trust import Record, remember
from tests.servers import BUCKET
from tests.test_download import ARCHIVE, NAME, PATH, assert_tidy, recompressed
from tests.test_trust import _published, fill, mirrors, models, server  # noqa: F401 - fixtures


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_an_archive_of_any_url_is_not_taken_for_a_pairs(server, tmp_path, monkeypatch):  # noqa: F811
    server.put(f"/evil/{NAME}.tar.gz", recompressed())
    identity = Identity(NAME)
    convert(f"{server.endpoint}/evil/{NAME}.tar.gz", tmp_path / "m", identity=identity, keep_archive=True)
    (kept,) = (path for path in archives_folder().rglob("*") if path.is_file())
    assert kept.read_bytes() == recompressed()
    monkeypatch.setenv("RSZOO_OFFLINE", "1")
    with pytest.raises(NetworkError, match="is not in the cache"):
        fill()
    monkeypatch.delenv("RSZOO_OFFLINE")
    # The published URL is the pair, though.
    convert(get_entry(NAME).source.url, tmp_path / "published", keep_archive=True)
    assert kept_archive(get_entry(NAME).source.url, NAME).read_bytes() == ARCHIVE
    assert record_path(NAME).is_file()


def test_what_does_not_convert_is_not_trusted(server, tmp_path):  # noqa: F811
    wrong = f"/{BUCKET}/resnet-rs/resnet-rs-50-i160.tar.gz"
    server.put(wrong, ARCHIVE)
    with pytest.raises(rszoo.RszooError, match="the name says resnet-rs-50-i160"):
        find_folder("resnet-rs-50-i160")
    assert not record_path("resnet-rs-50-i160").exists()
    assert models(tmp_path) == []


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_that_cannot_be_opened_is_made_anew_once(server, name):  # noqa: F811
    folder = fill().path
    intact = (folder / name).read_bytes()
    (folder / name).unlink()
    assert load_weights(NAME).count == 194
    assert (folder / name).read_bytes() == intact
    sent = server.sent_bytes
    find_folder(NAME)
    assert server.sent_bytes == sent
    assert_tidy(folder.parent.parent)


def test_an_archive_that_cannot_be_kept_costs_no_model(server, caplog, monkeypatch):  # noqa: F811
    def fail(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("converters.read.remote.shutil.move", fail)
    folder = cache.fill_cache(get_entry(NAME), keep_archive=True)
    assert "cannot be kept" in caplog.text
    assert find_cached(get_entry(NAME)).path == folder.path
    assert list(downloads_folder().iterdir()) == []


def test_a_damaged_kept_archive_is_named(server):  # noqa: F811
    cache.fill_cache(get_entry(NAME), keep_archive=True)
    kept = kept_archive(get_entry(NAME).source.url, NAME)
    clear_cache(NAME)
    kept.write_bytes(ARCHIVE[:-1000])
    with pytest.raises(ArchiveError, match=f"delete {kept} to download it again"):
        fill()
    kept.write_bytes(recompressed())
    with pytest.raises(IntegrityError, match=f"^{kept} is not the file.*; delete it, or give another copy"):
        fill()
    kept.unlink()
    fill()


def test_prefetch_into_another_folder_keeps_to_what_is_known_here(server, tmp_path):  # noqa: F811
    known = Record(NAME, "https://elsewhere/x", "2026-01-01T00:00:00+00:00", None, "0" * 64, None, None)
    remember(get_entry(NAME), known)
    refused = run("prefetch", NAME, "--output", str(tmp_path / "out"))
    assert isinstance(refused.exception, IntegrityError)
    assert "1 of 1" not in str(refused.exception)


def test_prefetch_into_another_folder_copies_what_is_here(server, tmp_path, monkeypatch):  # noqa: F811
    made = fill().path
    sent = server.sent_bytes
    assert run("prefetch", NAME, "--output", str(tmp_path / "out")).exit_code == 0
    assert server.sent_bytes == sent
    copied = tmp_path / "out" / "models" / made.name
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == {
        path.name: path.read_bytes() for path in made.iterdir()
    }
    assert isinstance(run("prefetch", NAME, "--output", "").exception, UsageError)


def test_a_mirror_with_something_else_is_passed_over(mirrors, tmp_path):  # noqa: F811
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("readme"))
    mirrors[0].put(PATH, packed.getvalue())
    fill()
    assert_tidy(tmp_path / "cache")
    assert json.loads(record_path(NAME).read_text())["received_from"] == mirrors[1].endpoint + PATH


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("conversion.json", '{"result":{"sha256":5},"source":[1]}'),
        ("conversion.json", "[" * 200_000),
        ("lock", '{"recorded": 5}'),
        ("lock", "[" * 200_000),
        ("lock", "no json"),
    ],
)
def test_damaged_facts_stop_neither_list_nor_verify(server, file, text):  # noqa: F811
    folder = fill().path
    (record_path(NAME) if file == "lock" else folder / file).write_text(text)
    assert run("cache", "list").exit_code == 0
    assert [cached.name for cached in list_cached()] == [NAME]
    if file == "lock":
        assert [verdict.status for verdict in verify_cache()] == ["intact"]
    else:
        assert [verdict.status for verdict in verify_cache()] == ["repaired"]


def test_records_are_listed_without_models_too(server):  # noqa: F811
    fill()
    clear_cache()
    listed = json.loads(run("cache", "list", "--json").stdout)
    assert listed["models"] == []
    assert listed["records"][NAME]["size"] == len(ARCHIVE)
    assert json.loads(record_path(NAME).read_text())["recorded"] in run("cache", "list").stdout


def test_what_cannot_be_removed_is_not_said_to_be(server, monkeypatch):  # noqa: F811
    (downloads_folder() / "x").mkdir(parents=True)
    monkeypatch.setattr("rszoo.cache.upkeep.remove", lambda path: False)
    refused = run("cache", "prune")
    assert isinstance(refused.exception, OutputError)
    assert "removed" not in refused.stdout


def test_a_process_that_hangs_with_the_lock_is_waited_for_no_longer(server, monkeypatch):  # noqa: F811
    monkeypatch.setattr(cache, "_HUNG_S", 0.5)
    busy_folder().mkdir(parents=True)
    # Another model's download goes on, by a clock that is ahead.
    other = downloads_folder() / "other.tar.gz-1" / "journal"
    other.parent.mkdir(parents=True)
    other.touch()
    os.utime(other, (time.time() + 3600,) * 2)
    # Held until the cache is filled: who waits for it waits forever.
    with FileLock(busy_folder() / NAME):
        fill()


def test_a_partial_download_that_cannot_be_opened_is_an_error(server, tmp_path):  # noqa: F811
    url = f"{server.endpoint}{PATH}"
    with Download(url, tmp_path, lambda _: None) as begun:
        path = begun.path
    path.unlink()
    path.symlink_to("/nonexistent/x")
    with pytest.raises(OutputError, match="cannot store the download"):
        Download(url, tmp_path, lambda _: None)


@pytest.mark.parametrize(
    ("model", "kind", "text"),
    [
        ("https://user:secret@host/x?token=secret", SourceNotFoundError, "https://host/x is a URL, not a folder"),
        ("x/nope.safetensors", SourceNotFoundError, "there is no file x/nope.safetensors"),
        ("nope.safetensors", SourceNotFoundError, "there is no file nope.safetensors"),
        ("~nosuchuser/m", UsageError, "home folder in ~nosuchuser/m is not known"),
        ("x/" + "y" * 5000, SourceNotFoundError, "does not exist"),
    ],
)
def test_models_that_are_none(model, kind, text):
    with pytest.raises(kind) as caught:
        (load_weights if "safetensors" in model else rszoo.create)(model)
    assert text in str(caught.value)
    assert "secret" not in str(caught.value)


def test_an_unknown_home_is_told(monkeypatch):
    monkeypatch.setenv("RSZOO_CACHE", "~nosuchuser/cache")
    with pytest.raises(UsageError, match="RSZOO_CACHE"):
        find_folder(NAME)


@pytest.mark.parametrize(("value", "offline"), [("y", True), ("2", True), ("no", False), ("", False), ("Off", False)])
def test_a_slip_of_the_pen_opens_no_socket(server, monkeypatch, value, offline):  # noqa: F811
    monkeypatch.setenv("RSZOO_OFFLINE", value)
    if not offline:
        fill()
        return
    with pytest.raises(NetworkError, match="RSZOO_OFFLINE forbids"):
        fill()
    assert server.requests == []


def test_weights_are_equal_to_themselves_only_and_can_be_closed(server):  # noqa: F811
    weights, other = load_weights(fill().path), load_weights(find_folder(NAME).path)
    assert weights == weights
    assert weights != other
    assert {weights: 1}[weights] == 1
    assert "model.safetensors, 226 tensors, " in repr(weights)
    mapped = weights["fc.bias"]
    values = mapped.copy()
    weights.close()
    assert (mapped == values).all()
