"""The cache: found without a trace, intact or made anew, and cleared of nothing that anybody uses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rszoo.cache.cached import find_cached
from rszoo.cache.fill import fill_cache
from rszoo.cache.find import find_folder
from rszoo.cache.upkeep import clear_cache, find_garbage, list_cached, verify_cache
from rszoo.cache.weights import load_weights
from rszoo.cli.main import app
from rszoo.disk.staging import ResultKind, staged_folder, sweep
from rszoo.disk.temporary import abandoned, temporary_path
from rszoo.errors import OutputError, SourceNotFoundError, UnknownModelError
from rszoo.registry.manifest import get_entry

DEMO = get_entry("resnet-rs-demo")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("RSZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def everything(folder: Path) -> dict[str, tuple[int, float]]:
    """Return size and time of change of all that is in a folder, but for the lock files."""
    stats = {path: path.lstat() for path in folder.rglob("*") if "busy" not in path.parts}
    return {str(path.relative_to(folder)): (stat.st_size, stat.st_mtime) for path, stat in stats.items()}


def ended_process() -> int:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def test_a_folder_is_named_by_its_content_and_found_without_a_trace(cache):
    made = find_folder("resnet-rs-demo")
    sha256 = json.loads((made.path / "conversion.json").read_text())["result"]["sha256"]
    assert made.path == cache / "models" / f"resnet-rs-demo-ema-{sha256[:16]}"
    before = everything(cache)
    shutil.rmtree(cache / "busy")
    assert find_folder("resnet-rs-demo").path == made.path
    assert everything(cache) == before
    assert not (cache / "busy").exists()


def test_of_several_folders_the_pinned_one_is_taken_or_else_the_newest(cache):
    first = fill_cache(DEMO).path
    second = first.with_name("resnet-rs-demo-ema-" + "0" * 16)
    shutil.copytree(first, second)
    os.utime(second, (1, 1))
    assert find_cached(DEMO).path == first
    os.utime(first, (0, 0))
    assert find_cached(DEMO).path == second
    pinned = replace(DEMO, converted=replace(DEMO.converted, sha256=first.name.rpartition("-")[2] + "0" * 48))
    assert find_cached(pinned).path == first
    assert find_garbage() == [first]
    assert find_cached(DEMO, "raw") is None
    # The newer one is damaged: it neither hides the older one nor has it pruned.
    (second / "model.safetensors").unlink()
    os.utime(second, (2, 2))
    assert find_cached(DEMO).path == first
    (second / "model.safetensors").write_bytes(b"")
    os.utime(second, (2, 2))
    assert find_cached(DEMO).path == second
    assert find_garbage() == []
    (second / "config.json").write_text("{}")
    assert find_cached(DEMO).path == first


def damage_weights(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        last = opened.read(1)
        opened.seek(-1, os.SEEK_END)
        opened.write(bytes([last[0] ^ 1]))


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (damage_weights, "model.safetensors has SHA-256"),
        (lambda folder: os.truncate(folder / "model.safetensors", 1000), "model.safetensors has SHA-256"),
        (lambda folder: (folder / "model.safetensors").unlink(), "missing or damaged"),
        (
            lambda folder: (folder / "config.json").write_text(
                (folder / "config.json").read_text().replace('"ema"', '"raw"')
            ),
            "config.json",
        ),
        (lambda folder: (folder / "conversion.json").write_text("{"), "missing or damaged"),
    ],
    ids=["one bit", "truncated", "no weights", "config", "account"],
)
def test_verify_makes_a_damaged_folder_anew(cache, damage, what):
    folder = fill_cache(DEMO).path
    intact = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert [verdict.status for verdict in verify_cache()] == ["intact"]
    damage(folder)
    (verdict,) = verify_cache()
    assert verdict.status == "repaired"
    assert what in verdict.detail
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == intact


def test_what_cannot_be_made_anew_is_gone_and_told(cache, monkeypatch):
    folder = fill_cache(DEMO).path
    damage_weights(folder)
    # As a published model is, offline.
    missing = replace(DEMO, source=replace(DEMO.source, file=None, url="https://storage.googleapis.com/b/x.tar.gz"))
    monkeypatch.setattr("rszoo.cache.upkeep.get_entry", lambda name: missing)
    monkeypatch.setenv("RSZOO_OFFLINE", "1")
    ended = CliRunner().invoke(app, ["cache", "verify", "--json"])
    (verdict,) = json.loads(ended.stdout)
    assert verdict["status"] == "damaged"
    assert "rszoo prefetch resnet-rs-demo --output FOLDER" in verdict["detail"]
    assert ended.exception.exit_code == 1
    assert list((cache / "models").iterdir()) == []


def test_only_what_ended_processes_left_is_taken_away(cache, monkeypatch):
    folder = fill_cache(DEMO).path
    mine = temporary_path(folder)
    (mine / "new").mkdir(parents=True)
    dead = mine.with_name(mine.name.replace(f"-{os.getpid()}-", f"-{ended_process()}-"))
    (dead / "new").mkdir(parents=True)
    host = mine.name.split(".")[-2].split("-")[0]
    far = mine.with_name(mine.name.replace(host, "00000000"))
    (far / "new").mkdir(parents=True)
    (folder.parent / ".not-ours.tmp").mkdir()
    assert abandoned(folder.parent) == [dead]
    two_days = time.time() - 2 * 86400
    for path in (far / "new", far):
        os.utime(path, (two_days, two_days))
    assert sorted(find_garbage()) == sorted([dead, far])
    fill_cache(replace(DEMO, name="resnet-rs-demo"), "raw")
    assert sorted(path.name for path in folder.parent.iterdir() if path.name.startswith(".")) == sorted(
        [mine.name, ".not-ours.tmp"]
    )
    assert find_cached(DEMO).path == folder


def test_a_result_that_was_moved_aside_by_a_killed_process_comes_back(tmp_path):
    output = tmp_path / "model"
    staging = temporary_path(output)
    staging = staging.with_name(staging.name.replace(f"-{os.getpid()}-", f"-{ended_process()}-"))
    for name in ("old", "new"):
        (staging / name).mkdir(parents=True)
        (staging / name / "file").write_text(name)
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (output / "file").read_text() == "old"
    with staged_folder(output, ResultKind("a test", lambda *_: True), overwrite=True) as content:
        (content / "file").write_text("newer")
    assert (output / "file").read_text() == "newer"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_clear_and_prune_take_what_they_say(cache):
    fill_cache(DEMO)
    fill_cache(DEMO, "raw")
    for path in ("downloads/x-1/data", "archives/x.tar.gz", "lock/other.json"):
        (cache / path).parent.mkdir(parents=True)
        (cache / path).write_bytes(b"12345")
    run = CliRunner().invoke(app, ["cache", "prune", "--json"])
    assert json.loads(run.stdout) == [{"path": str(cache / "downloads" / "x-1"), "bytes": 5}]
    assert len(list_cached()) == 2
    with pytest.raises(UnknownModelError, match="resnet-rs-demo"):
        clear_cache("resnet-rs-emo")
    assert isinstance(CliRunner().invoke(app, ["cache", "clear"]).exception, Exception)
    assert len(list_cached()) == 2
    assert CliRunner().invoke(app, ["cache", "clear", "--yes"]).exit_code == 0
    assert [path for path in cache.rglob("*") if path.is_file()] == [cache / "lock" / "other.json"]
    with pytest.raises(SourceNotFoundError, match="rszoo prefetch resnet-rs-demo"):
        CliRunner().invoke(app, ["cache", "path", "resnet-rs-demo"], catch_exceptions=False)


def test_list_tells_models_sizes_and_origin(cache):
    folder = fill_cache(DEMO).path
    ((listed,), _) = json.loads(CliRunner().invoke(app, ["cache", "list", "--json"]).stdout).values()
    assert listed["path"] == str(folder)
    assert listed["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert listed["archive_sha256"] == DEMO.source.sha256
    assert listed["record"] is None
    assert DEMO.source.sha256[:16] in CliRunner().invoke(app, ["cache", "list"]).stdout


def test_prefetch_fills_another_folder_that_is_a_cache(cache, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    run = CliRunner().invoke(app, ["prefetch", "*demo", "--output", str(elsewhere), "--json"])
    (model,) = json.loads(run.stdout)["models"]
    assert Path(model["path"]).parent == elsewhere / "models"
    assert not cache.exists()
    monkeypatch.setenv("RSZOO_CACHE", str(elsewhere))
    monkeypatch.setenv("RSZOO_OFFLINE", "1")
    assert find_folder("resnet-rs-demo").path == Path(model["path"])


def test_temporary_folder_of_the_system_is_not_used(cache, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    monkeypatch.setattr("tempfile.tempdir", "/nonexistent")
    assert load_weights("resnet-rs-demo").count == 194


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RSZOO_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OutputError, match=r"cannot be read \(Not a directory\); set RSZOO_CACHE"):
        find_folder("resnet-rs-demo")


def as_another_user(function) -> str:
    """Return what a function returns in a child process that runs as nobody."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            answer = function()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as opened:
        answer = opened.read()
    os.waitpid(child, 0)
    return answer


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_cache_of_another_user_is_read_and_left_alone(monkeypatch):
    # Not in tmp_path, which is closed to others.
    with tempfile.TemporaryDirectory() as cache:
        Path(cache).chmod(0o711)
        monkeypatch.setenv("RSZOO_CACHE", cache)
        folder = fill_cache(DEMO).path
        before = everything(Path(cache))
        found = as_another_user(lambda: f"{find_folder('resnet-rs-demo').path} {load_weights('resnet-rs-demo').count}")
        assert found == f"{folder} 194"
        refused = as_another_user(lambda: str(fill_cache(DEMO, "raw").path))
        assert refused.startswith("OutputError: resnet-rs-demo is not in the cache")
        assert "Permission denied" in refused
        assert refused.endswith("set RSZOO_CACHE to a folder of yours, on a disk with room")
        assert everything(Path(cache)) == before
