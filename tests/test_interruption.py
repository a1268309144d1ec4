"""The cache when processes are killed at any moment, lose what the disk had not written, or come by the dozen."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import filelock
import pytest
from tqdm import tqdm

from rszoo.cache import fill as cache
from rszoo.cache.fill import fill_cache
from rszoo.disk.safetensors_writer import SafetensorsWriter
from rszoo.folder import writing
from rszoo.net.partial import PartialFile
from rszoo.registry.manifest import get_entry
from tests.manifests import NAME, PATH, published
from tests.servers import Fault, FaultServer
from tests.test_download import ARCHIVE, assert_tidy, quicken, sha256

BLOCK = 1 << 17
# Forked from a server that has imported everything: dozens of processes, each there in milliseconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate", "shutil.rmtree"}


@dataclass(frozen=True)
class Job:
    """What a process is to do: fill a cache from an endpoint, and be killed at one of its moments.

    A moment is each change to the file system, and each block or tensor that is written. With `scapegoat`, only the
    first of several processes to come there is killed. `locks` is one of `LOCKS`.
    """

    cache: Path
    endpoint: str
    kill_at: int | None = None
    scapegoat: Path | None = None
    locks: str = "genuine"
    keep_archive: bool = False
    environment: dict[str, str] = field(default_factory=dict)


def work(job: Job, answer: Connection | None = None, start: object = None) -> None:
    """Do a job in a process of its own; end with an exception, and so another exit code, if it fails."""
    os.environ.update(
        RSZOO_CACHE=str(job.cache), RSZOO_GCS_ENDPOINT=job.endpoint, NO_PROXY="127.0.0.1", **job.environment
    )
    for variable in ("RSZOO_OFFLINE", "HF_HUB_OFFLINE"):
        os.environ.pop(variable, None)
    quicken(setattr, BLOCK)
    # Each process writes one, for it comes without the fixtures of the tests.
    manifest = job.cache.parent / f"manifest-{os.getpid()}.json"
    manifest.write_text(json.dumps(published()))
    os.environ["RSZOO_MANIFEST"] = str(manifest)
    LOCKS[job.locks](job)
    # Its default is a semaphore, which a killed process leaves to multiprocessing, which complains.
    tqdm.set_lock(threading.RLock())
    moments = _count_moments(job)
    if start is not None:
        start.wait()
    folder = fill_cache(get_entry(NAME), keep_archive=job.keep_archive)
    if answer is not None:
        answer.send((next(moments), sha256(folder.weights_path)))


def _count_moments(job: Job) -> Iterator[int]:
    """Return the count of moments from now on, and kill this process when it comes to that of the job."""
    moments = iter(range(1 << 30))

    def pass_moment() -> None:
        if next(moments) == job.kill_at:
            with suppress(FileExistsError):
                if job.scapegoat:
                    os.mkdir(job.scapegoat)
                os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, args: tuple[object, ...]) -> None:
        paths = [arg for arg in args[:2] if isinstance(arg, str)]
        changes = event in _CHANGES or (event == "open" and isinstance(args[2], int) and args[2] & 0o3)
        # A relative one is rmtree's.
        if changes and any(path.startswith(str(job.cache)) or "/" not in path for path in paths):
            pass_moment()

    def at_each_call(owner: object, name: str) -> None:
        genuine = getattr(owner, name)

        def call(*args: object, **options: object) -> object:
            pass_moment()
            return genuine(*args, **options)

        setattr(owner, name, call)

    at_each_call(PartialFile, "commit")
    at_each_call(PartialFile, "discard")
    at_each_call(SafetensorsWriter, "write")
    at_each_call(writing, "same_bits")
    at_each_call(os, "fsync")
    sys.addaudithook(watch)
    return moments


def _refuse_flock(code: int) -> Callable[[Job], None]:
    def refuse(_: Job) -> None:
        def flock(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        fcntl.flock = flock

    return refuse


def _refuse_busy_file(job: Job) -> None:
    genuine = os.open

    def open_others(path: object, *args: object, **options: object) -> int:
        if str(path) == str(job.cache / "busy" / NAME):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return genuine(path, *args, **options)

    os.open = open_others


def _lie(_: Job) -> None:
    filelock.BaseFileLock.acquire = lambda *_, **__: None


LOCKS: dict[str, Callable[[Job], None]] = {
    "genuine": lambda _: None,
    "lying": _lie,
    "ENOSYS": _refuse_flock(errno.ENOSYS),
    "EPERM": _refuse_flock(errno.EPERM),
    "another user's": _refuse_busy_file,
}


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer(objects={PATH: ARCHIVE}) as running:
        yield running


def start(job: Job, **options: object) -> BaseProcess:
    process = PROCESSES.Process(target=work, args=(job,), kwargs=options)
    process.start()
    return process


def finish(job: Job) -> tuple[int, str]:
    """Do a job in a process that must end well; return its count of moments and the weights' SHA-256."""
    here, there = PROCESSES.Pipe()
    process = start(job, answer=there)
    there.close()
    try:
        result = here.recv()
    except EOFError:
        result = (0, "")
    process.join()
    assert process.exitcode == 0
    return result


@pytest.fixture
def undisturbed(server, tmp_path) -> tuple[int, str]:
    """The count of moments and the SHA-256 of a run without interruption."""
    return finish(Job(tmp_path / "undisturbed", server.endpoint))


def arrived(folder: Path) -> set[int]:
    """Return the blocks that are noted as whole in the cache's downloads."""
    journals = [path.read_text() for path in (folder / "downloads").glob("*/journal")]
    lines = [line.split(" ") for text in journals for line in re.findall(r"^\d+ [0-9a-f]{8} [0-9a-f]{8}$", text, re.M)]
    return {int(line[0]) for line in lines}


def count_bytes(blocks: set[int]) -> int:
    return sum(min(BLOCK, len(ARCHIVE) - block * BLOCK) for block in blocks)


def lose_power(folder: Path, rng: random.Random) -> set[int]:
    """Damage the data as if the last writes had not come to the disk; return the blocks that are noted, but lost."""
    noted = arrived(folder)
    lost = set(rng.sample(sorted(noted), rng.randint(0, len(noted))))
    for path in (folder / "downloads").glob("*/data"):
        with path.open("r+b") as data:
            for block in lost:
                data.seek(block * BLOCK + rng.randrange(BLOCK - 512 if block * BLOCK + BLOCK < len(ARCHIVE) else 512))
                data.write(bytes(512))
            if rng.random() < 0.3:
                length = rng.randrange(len(ARCHIVE))
                data.truncate(length)
                lost |= {block for block in noted if min(block * BLOCK + BLOCK, len(ARCHIVE)) > length}
    return lost


def assert_recovers(server: FaultServer, folder: Path, expected: str, *, lost: set[int] = frozenset()) -> None:
    """Assert that the next run makes the one right model, fetches what is missing and no more, and leaves no litter."""
    blocks = set(range(-(-len(ARCHIVE) // BLOCK)))
    made = list((folder / "models").glob(f"{NAME}-ema-*")) if (folder / "models").exists() else []
    missing = 0 if made else 1 + count_bytes(blocks - (arrived(folder) - lost))
    server.bytes_per_second = None
    asked = len(server.requests)
    assert finish(Job(folder, server.endpoint))[1] == expected
    assert sum(request.sent for request in server.requests[asked:]) == missing
    assert sha256(assert_tidy(folder) / "model.safetensors") == expected


@pytest.mark.parametrize("power", ["power stays", "power is lost"])
def test_killed_at_a_change_of_the_disk(server, tmp_path, undisturbed, power, pytestconfig):
    moments, expected = undisturbed
    chosen = range(moments) if pytestconfig.getoption("slow") else range(moments % 5, moments, -(-moments // 5))
    print(len(chosen), "of", moments, "moments")
    for moment in chosen:
        rng, folder = random.Random(moment), tmp_path / str(moment)
        process = start(Job(folder, server.endpoint, kill_at=moment))
        process.join()
        # Of the last ones there may be fewer: connections come in another order each time.
        assert process.exitcode == -signal.SIGKILL or moment > moments - 9, moment
        lost = lose_power(folder, rng) if power == "power is lost" else frozenset()
        assert_recovers(server, folder, expected, lost=lost)


def test_killed_at_any_time_and_again(server, tmp_path, undisturbed, pytestconfig):
    rng, killed = random.Random(0), 0
    for number in range(100 if pytestconfig.getoption("slow") else 2):
        folder = tmp_path / str(number)
        server.bytes_per_second = 2_000_000
        for _ in range(rng.randint(1, 3)):
            process = start(Job(folder, server.endpoint))
            enough = server.sent_bytes + rng.randrange(len(ARCHIVE) * 9 // 10)
            while process.is_alive() and server.sent_bytes < enough:
                time.sleep(0.001)
            process.kill()
            process.join()
            killed += process.exitcode == -signal.SIGKILL
        assert_recovers(server, folder, undisturbed[1])
    # What an earlier one left can be less than enough: the later ones of a folder may end.
    assert killed > number


def run_together(job: Job, count: int) -> list[int | None]:
    """Do a job in many processes at once; return their exit codes."""
    event = PROCESSES.Event()
    processes = [start(job, start=event) for _ in range(count)]
    event.set()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


@pytest.mark.parametrize(
    "locks", [pytest.param(name, marks=pytest.mark.slow if name == "EPERM" else ()) for name in LOCKS]
)
def test_a_crowd_of_processes_makes_one_model(server, tmp_path, undisturbed, locks, pytestconfig):
    count = 16 if pytestconfig.getoption("slow") else 5
    server.bytes_per_second = 3_000_000
    before = server.sent_bytes
    job = Job(tmp_path / "cache", server.endpoint, locks=locks)
    if locks == "another user's":
        (job.cache / "busy").mkdir(parents=True)
        (job.cache / "busy" / NAME).touch()
    assert run_together(job, count) == [0] * count
    if locks == "genuine":
        assert server.sent_bytes - before == len(ARCHIVE) + 1
    if locks == "lying":
        (job.cache / "busy" / NAME).touch()
    assert sha256(assert_tidy(job.cache) / "model.safetensors") == undisturbed[1]


@pytest.mark.parametrize("locks", ["genuine", "lying"])
def test_many_processes_keep_one_archive(server, tmp_path, locks, pytestconfig):
    count = 8 if pytestconfig.getoption("slow") else 4
    job = Job(tmp_path / "cache", server.endpoint, locks=locks, keep_archive=True)
    assert run_together(job, count) == [0] * count
    assert (job.cache / "archives" / f"{NAME}.tar.gz").read_bytes() == ARCHIVE
    assert list((job.cache / "downloads").iterdir()) == []


def test_when_the_one_that_works_is_killed_another_goes_on(server, tmp_path, undisturbed):
    before = server.sent_bytes
    job = Job(tmp_path / "cache", server.endpoint, kill_at=undisturbed[0] // 2, scapegoat=tmp_path / "killed")
    assert sorted(run_together(job, 6)) == [-signal.SIGKILL, 0, 0, 0, 0, 0]
    assert sha256(assert_tidy(job.cache) / "model.safetensors") == undisturbed[1]
    # The second goes on from what the first had.
    assert server.sent_bytes - before < 1.8 * len(ARCHIVE)


def test_a_process_that_holds_the_lock_and_does_nothing_is_not_waited_for(server, tmp_path, monkeypatch, use_manifest):
    monkeypatch.setenv("RSZOO_CACHE", str(tmp_path))
    monkeypatch.setenv("RSZOO_GCS_ENDPOINT", server.endpoint)
    use_manifest(published())
    monkeypatch.setattr(cache, "_HUNG_S", 0.5)
    (tmp_path / "busy").mkdir()
    # Held until the cache is filled: who waits for it waits forever.
    with filelock.FileLock(tmp_path / "busy" / NAME):
        assert fill_cache(get_entry(NAME)).weights_path.is_file()
    assert_tidy(tmp_path)


PROGRAM = """
import signal
from tests.manifests import NAME, PATH, published
from tests.test_download import quicken
# A shell's background job would ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
quicken(setattr, {block})
from rszoo.cli.main import main
main()
"""


@pytest.mark.parametrize(("number", "at"), [(signal.SIGINT, BLOCK + 5), (signal.SIGTERM, None)])
def test_a_signal_ends_a_stalled_download_soon(server, tmp_path, number, at):
    path = PATH.replace(NAME, "resnet-rs-50-i160")
    server.put(path, ARCHIVE)
    stalled = []

    def stall_late(request: object) -> Fault | None:
        if len(server.requests) <= 3:
            return None
        stalled.append(request)
        return Fault(stall=60, stall_at=at)

    server.faults = stall_late
    environment = {"RSZOO_CACHE": str(tmp_path), "RSZOO_GCS_ENDPOINT": server.endpoint, "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", PROGRAM.format(block=BLOCK), "prefetch", "resnet-rs-50-i160"]
    with subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and (len(stalled) < 4 or len(arrived(tmp_path)) < 8):
            time.sleep(0.01)
        process.send_signal(number)
        process.wait()
        # Not served in the end.
        assert {request.sent for request in server.requests[3:]} == {at or 0}
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == 128 + number
    assert list((tmp_path / "models").iterdir()) == []
    assert len(arrived(tmp_path)) >= 8
