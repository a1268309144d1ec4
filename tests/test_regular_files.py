"""What a folder holds is opened only if it is a regular file: a pipe would wait for ever, a device has no end."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import rszoo
from rszoo.disk import regular
from rszoo.folder.model_folder import CONFIG, CONVERSION, EVALUATION, VERIFICATION
from tests.commands import call

_SECONDS = 60


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """Ends a test that hangs."""

    def end(*_: object) -> None:
        # Not a TimeoutError: that is an OSError, which the program would report as a line.
        pytest.fail(f"still waiting after {_SECONDS} s")

    former = signal.signal(signal.SIGALRM, end)
    signal.alarm(_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, former)


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    """The demo."""
    folder = tmp_path_factory.mktemp("regular") / "demo"
    rszoo.convert_checkpoint("resnet-rs-demo", folder)
    return folder


def put_pipe(path: Path) -> None:
    os.mkfifo(path)


def put_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("put", [put_pipe, put_device])
@pytest.mark.parametrize("name", [CONVERSION, VERIFICATION, EVALUATION, CONFIG, "model.safetensors"])
@pytest.mark.parametrize("command", [("push", "MODEL", "me/x", "--dry-run"), ("info", "MODEL")], ids=" ".join)
def test_a_pipe_or_a_device_in_a_folder_never_hangs(converted, tmp_path, command, name, put):
    folder = shutil.copytree(converted, tmp_path / "m")
    (folder / name).unlink(missing_ok=True)
    put(folder / name)
    done = call("rszoo", *(str(folder) if word == "MODEL" else word for word in command), RSZOO_OFFLINE="1")
    assert "Traceback" not in done.stderr
    # What is listed needs no weights, and no evaluation; a push needs all.
    assert done.returncode != 0 or command[0] == "info", done.stdout
    assert (done.returncode != 0) == done.stderr.startswith("error: ")


def test_the_reason_is_given(converted, tmp_path):
    folder = shutil.copytree(converted, tmp_path / "m")
    (folder / CONVERSION).unlink()
    os.mkfifo(folder / CONVERSION)
    done = call("rszoo", "push", str(folder), "me/x", "--dry-run", RSZOO_OFFLINE="1")
    assert "pipe or device, not a regular file" in done.stderr


def test_only_a_bounded_part_is_read(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes(3 << 20))
    assert len(regular.read_regular(path, most=3 << 20)) == 3 << 20
    os.truncate(path, 1 << 40)
    with pytest.raises(OSError, match="larger than 3 MiB"):
        regular.read_regular(path, most=3 << 20)
