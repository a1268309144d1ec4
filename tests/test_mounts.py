"""Results in mounted volumes, which cannot be renamed: written inside, whole or not at all, also after a kill."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import rszoo
from rszoo.disk import inside
from rszoo.disk.inside import contents, is_fixed
from rszoo.disk.staging import ResultKind, check_place, staged_folder, sweep
from rszoo.disk.temporary import temporary_path
from rszoo.errors import OutputError
from rszoo.evaluate.report import REPORT
from rszoo.pipeline.writer import write_tfrecords
from tests.commands import call

# The files a, b and z, of which z makes it a result.
KIND = ResultKind("a test", lambda _, names: "z" in names, last="z")


def put(folder: Path, text: str, names: str = "abz") -> None:
    for name in names:
        (folder / name).write_text(text)


def read(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in sorted(contents(folder))}


def can_mount() -> bool:
    if not shutil.which("unshare"):
        return False
    return (
        subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0
    )


@pytest.fixture
def fixed(tmp_path, monkeypatch) -> Path:
    """A folder that is taken for a mount, with what ext4 puts into one."""
    folder = tmp_path / "volume"
    (folder / "lost+found").mkdir(parents=True)
    return folder


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount")
@pytest.mark.parametrize(
    "mount",
    [
        pytest.param("-t tmpfs none", id="another file system", marks=pytest.mark.slow),
        pytest.param("--bind .", id="same"),
    ],
)
def test_commands_write_into_a_mount(mount, tmp_path):
    script = f"""
        set -e
        mkdir vol ev rec run; mount {mount} vol; mount {mount} ev; mount {mount} rec; mount {mount} run
        mkdir vol/lost+found run/lost+found
        rszoo() {{ {sys.executable} -m rszoo "$@"; }}
        rszoo convert --ckpt resnet-rs-demo --output vol --json > first
        rszoo convert --ckpt resnet-rs-demo --output vol && exit 9 || true
        rszoo convert --ckpt resnet-rs-demo --output vol --weights raw --overwrite --json
        rszoo eval vol --data digits --limit 20 --output ev
        rszoo tfrecords digits rec
        rszoo train --recipe resnet-rs-demo --data rec --max-steps 1 --output run
        rszoo info vol --json > told
        ls -A vol ev run > listed
    """
    if mount.startswith("--bind"):
        script = script.replace("--bind .", "--bind $(mktemp -d -p .)")
    done = subprocess.run(["unshare", "-m", "bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "exists; add --overwrite" in done.stderr
    assert json.loads((tmp_path / "told").read_text())["weights"] == "raw"
    assert not any(line.endswith(".tmp") for line in (tmp_path / "listed").read_text().splitlines())


def test_what_the_file_system_put_there_stays(fixed):
    assert is_fixed(fixed)
    for text in ("first", "second"):
        with staged_folder(fixed, KIND, overwrite=True) as folder:
            put(folder, text, "abz" if text == "first" else "bcz")
            assert not {"a", "c"} & contents(fixed) - {"a"}
    assert read(fixed) == {"b": "second", "c": "second", "z": "second"}
    assert {path.name for path in fixed.iterdir()} == {"b", "c", "z", "lost+found"}
    with pytest.raises(OutputError, match="add --overwrite"), staged_folder(fixed, KIND, overwrite=False):
        pass
    (fixed / "z").unlink()
    with pytest.raises(OutputError, match="is not a result of a test"), staged_folder(fixed, KIND, overwrite=True):
        pass


def test_a_mount_is_known(tmp_path, monkeypatch):
    assert not is_fixed(tmp_path)
    monkeypatch.setattr(inside, "_mounts", lambda: {os.fsencode(tmp_path): b"ext4"})
    assert is_fixed(tmp_path)
    monkeypatch.undo()
    assert is_fixed(Path("/proc"))
    # Where nothing can be created beside it; root can.
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    (tmp_path / "x").mkdir()
    assert is_fixed(tmp_path / "x")


@pytest.mark.parametrize("before", [False, True], ids=["empty", "over another"])
def test_killed_anywhere_there_is_the_old_or_the_new(fixed, before):
    if before:
        put(fixed, "old", "abz")
    allowed = [read(fixed), dict.fromkeys("bcz", "new")]
    # A call is killed at its n-th change of a name, until there are no more.
    for number in range(1, 100):
        copy = shutil.copytree(fixed, fixed.with_name(f"copy{number}"))
        child = os.fork()
        if child == 0:
            left = [number]

            def rename(path: Path, target: Path, former=Path.rename, left=left) -> Path:
                left[0] -= 1
                if not left[0]:
                    os._exit(7)
                return former(path, target)

            Path.rename = Path.replace = rename  # type: ignore[method-assign, assignment]
            with staged_folder(copy, KIND, overwrite=True) as folder:
                put(folder, "new", "bcz")
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        # Between is what has no `z`, which nobody takes for a result.
        assert read(copy) in allowed or "z" not in contents(copy)
        again = shutil.copytree(copy, fixed.with_name(f"again{number}"), copy_function=os.link)
        # The same command ends what was begun, and does its own work; so does looking.
        with staged_folder(again, KIND, overwrite=True) as folder:
            put(folder, "newer", "z")
        assert read(again) == {"z": "newer"}
        sweep(copy)
        assert read(copy) in allowed
        assert {path.name for path in copy.iterdir()} - contents(copy) == {"lost+found"}
        if status == 0:
            break
    assert number == (8 if before else 5)


def test_a_failure_in_between_brings_the_old_back(fixed, monkeypatch):
    put(fixed, "old")
    monkeypatch.setattr(Path, "rename", failing_at({5}, OSError(28, "No space left on device")))
    with pytest.raises(OutputError, match="No space left"), staged_folder(fixed, KIND, overwrite=True) as folder:
        put(folder, "new", "bcz")
    assert read(fixed) == dict.fromkeys("abz", "old")
    assert {path.name for path in fixed.iterdir()} - contents(fixed) == {"lost+found"}


def test_a_link_to_a_folder_stays_one(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    rszoo.convert_checkpoint("resnet-rs-demo", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "config.json").is_file()
    (tmp_path / "nowhere").symlink_to("missing")
    with pytest.raises(OutputError, match="nowhere exists and is not a result"):
        rszoo.convert_checkpoint("resnet-rs-demo", tmp_path / "nowhere")


def test_eval_says_before_its_work_that_it_cannot_write(tmp_path, monkeypatch):
    def count(*_: object, **__: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr("rszoo.evaluate.api.count_accuracy", count)
    (tmp_path / "file").touch()
    done = call("rszoo", "eval", "resnet-rs-demo", "--data", "digits", "--output", str(tmp_path / "file" / "out"))
    assert (done.returncode, "cannot write" in done.stderr) == (5, True)
    # A folder that holds other things.
    done = call("rszoo", "eval", "resnet-rs-demo", "--data", "digits", "--output", str(tmp_path))
    assert "is not a result of rszoo eval" in done.stderr


def test_looking_leaves_nothing(tmp_path, fixed):
    check_place(tmp_path / "new" / "deep", REPORT, overwrite=False)
    check_place(fixed, REPORT, overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["volume"]
    assert [path.name for path in fixed.iterdir()] == ["lost+found"]


def failing_at(numbers: set[int], error: BaseException) -> Callable[[Path, Path], Path]:
    """Return a `Path.rename` whose calls of these numbers fail."""
    former, count = Path.rename, [0]

    def rename(path: Path, target: Path) -> Path:
        count[0] += 1
        if count[0] in numbers:
            raise error
        return former(path, target)

    return rename


def test_interrupted_while_it_moves_back_nothing_is_lost(fixed, monkeypatch):
    put(fixed, "old")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", failing_at({5, 6}, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt), staged_folder(fixed, KIND, overwrite=True) as folder:
            put(folder, "new", "bcz")
    (left,) = [path for path in fixed.iterdir() if path.name.endswith(".tmp")]
    with pytest.raises(OutputError, match="try again in 10 minutes"), staged_folder(fixed, KIND, overwrite=True):
        pass
    os.utime(left / "moves.json", (0, 0))
    check_place(fixed, KIND, overwrite=True)
    assert read(fixed) == dict.fromkeys("bcz", "new")


def left_behind(fixed: Path, lists: object) -> Path:
    """Make what a killed process leaves while it moves `new` over `old`."""
    left = temporary_path(fixed / "result")
    (left / "new").mkdir(parents=True)
    put(left / "new", "new")
    (left / "moves.json").write_text(lists if isinstance(lists, str) else json.dumps(lists))
    os.utime(left / "moves.json", (0, 0))
    return left


HOSTILE = [
    "{",
    "{}",
    "[" * 5000,
    {"old": ["z"], "new": {}},
    {"old": {"../secret": [0, 0]}, "new": {}},
    {"old": {}, "new": {"/etc/x": [0, 0]}},
    {"old": {"..": [0, 0]}, "new": {}},
]


@pytest.mark.parametrize("lists", HOSTILE, ids=range(len(HOSTILE)))
def test_a_list_of_somebody_else_is_not_followed(fixed, lists):
    put(fixed, "old")
    (fixed.parent / "secret").write_text("mine")
    left = left_behind(fixed, lists)
    check_place(fixed, KIND, overwrite=True)
    assert (read(fixed), (fixed.parent / "secret").read_text()) == (dict.fromkeys("abz", "old"), "mine")
    assert read(left / "new") == dict.fromkeys("abz", "new")


def test_a_list_is_followed_only_if_nothing_was_written_since(fixed):
    put(fixed, "old")
    marks = {name: inside._mark(fixed / name) for name in "abz"}
    left = left_behind(fixed, {"old": marks, "new": {name: [1, 1] for name in "abz"}})
    # Another result, with the same names.
    for name in "abz":
        (fixed / name).unlink()
    put(fixed, "newest")
    check_place(fixed, KIND, overwrite=True)
    assert (read(fixed), left.exists()) == (dict.fromkeys("abz", "newest"), False)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_list_of_another_user_is_not_followed(fixed):
    put(fixed, "old")
    marks = {name: inside._mark(fixed / name) for name in "abz"}
    left = left_behind(fixed, {"old": marks, "new": {name: [1, 1] for name in "abz"}})
    os.chown(left, 65534, 65534)
    check_place(fixed, KIND, overwrite=True)
    assert (read(fixed), left.exists()) == (dict.fromkeys("abz", "old"), True)


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount")
def test_a_folder_of_a_containers_image_is_written_into(tmp_path):
    """On an overlay a folder from below cannot be renamed (EXDEV)."""
    code = (
        "import sys; from pathlib import Path\n"
        "from rszoo.disk.staging import staged_folder; from tests.test_mounts import KIND, put\n"
        "for name in ('empty', 'former'):\n"
        "    with staged_folder(Path('m', name), KIND, overwrite=True) as folder:\n"
        "        put(folder, 'new')\n"
    )
    for name in ("lower/empty", "lower/former", "upper", "work", "m"):
        (tmp_path / name).mkdir(parents=True)
    put(tmp_path / "lower" / "former", "old")
    script = (
        "mount -t tmpfs none upper && mkdir upper/u upper/w && "
        "mount -t overlay overlay -o lowerdir=lower,upperdir=upper/u,workdir=upper/w,redirect_dir=off m || exit 77; "
        f'{sys.executable} -c "{code}" && cat m/empty/* m/former/* && ls -A m'
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    if done.returncode == 77:
        pytest.skip(f"no overlay here: {done.stderr}")
    assert (done.returncode, done.stdout) == (0, "newnewnewnewnewnew" + "empty\nformer\n"), done.stderr


def test_a_description_of_another_program_is_not_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "dataset.json").write_text('{"annotations": "three weeks of work"}')
    with pytest.raises(OutputError, match="mine exists and is not a result of rszoo tfrecords"):
        write_tfrecords("digits", tmp_path / "mine", overwrite=True)
