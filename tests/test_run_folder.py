"""What a run leaves on disk, with an engine of numpy: whatever happens, the same command ends where it would have."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tqdm import tqdm

from rszoo.errors import (
    CheckpointError,
    ConfigError,
    ImageError,
    OutputError,
    SourceNotFoundError,
    TrainingError,
    TrainingStoppedError,
    UsageError,
)
from rszoo.pipeline.faults import Faults
from rszoo.pipeline.share import Position
from rszoo.pipeline.sources import ImageSource, ShardSource
from rszoo.recipes.load import load_recipe
from rszoo.recipes.recipe import Recipe
from rszoo.recipes.schedule import learning_rate
from rszoo.train.checkpoints import Checkpoints, Progress, read_checkpoint, save_state
from rszoo.train.curves import plot_curves
from rszoo.train.fine_tuning import lost_start
from rszoo.train.identity import Identity, data_sha256
from rszoo.train.loop import Loop, Task
from rszoo.train.metrics import Metrics, read_records
from rszoo.train.run_folder import RunFolder
from rszoo.train.stopping import StopRequest
from tests.fake_engine import FakeEngine, fake_data, fake_recipe

# Forked from a server that has imported everything: dozens of processes, each there in milliseconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])
# What changes the file system, and so where a killed process may leave something half done.
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "open", "shutil.rmtree"}


def run(path: Path, recipe: Recipe | None = None, *, engine: FakeEngine | None = None, steps: int = 30, **plan) -> Loop:
    """Take the loop to its end, as `rszoo train` does."""
    recipe, engine, folder = recipe or fake_recipe(), engine or FakeEngine(), RunFolder(path)
    identity = Identity(recipe, "fake data", 12)
    folder.check_usable(may_resume=True)
    folder.check_same(identity)
    folder.open(identity, {"command": "test"})
    plan = {"data": fake_data(), "quiet": True} | plan
    loop = Loop(engine, Task(recipe, plan.pop("engine_name", "torch"), target=steps, **plan), folder)
    with StopRequest() as stop:
        try:
            loop.begin()
            loop.run(stop)
        finally:
            loop.close()
    return loop


def final_state(path: Path) -> dict[str, np.ndarray]:
    newest = next(Checkpoints(path / "checkpoints", 1).newest_first())
    return {"step": np.asarray(read_checkpoint(newest).progress.step), **read_checkpoint(newest).tensors()}


def records(path: Path) -> list[dict]:
    """The records but for what the clock says."""
    clocks = ("time", "images_per_second", "seconds")
    return [
        {key: value for key, value in record.items() if key not in clocks}
        for record in read_records(path / "metrics.jsonl")
    ]


def checkpoints(path: Path) -> list[int]:
    return sorted(int(folder.name.removeprefix("step-")) for folder in (path / "checkpoints").iterdir())


def assert_same_end(path: Path, reference: Path) -> None:
    there, expected = final_state(path), final_state(reference)
    assert there.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(there[name], values, err_msg=name)
    assert records(path) == records(reference)
    assert checkpoints(path) == checkpoints(reference)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    path = tmp_path_factory.mktemp("reference") / "run"
    run(path)
    return path


def test_every_step_gets_its_own_learning_rate(tmp_path):
    recipe, engines = fake_recipe(), (FakeEngine(), FakeEngine())
    run(tmp_path / "run", engine=engines[0], steps=13)
    run(tmp_path / "run", engine=engines[1])
    assert engines[0].rates + engines[1].rates == [learning_rate(recipe, step) for step in range(30)]


def test_records_say_what_happened_at_which_step(reference):
    steps = [(record["kind"], record["step"]) for record in records(reference)]
    trained = [("train", step) for step in (4, 8, 12, 16, 20, 24, 28, 30)]
    assert sorted(steps) == sorted(trained + [("evaluation", step) for step in (6, 12, 18, 24, 30)])
    first = records(reference)[0]
    assert (first["epoch"], first["top1"]) == (0.6667, 50.0)
    assert first["learning_rate"] == learning_rate(fake_recipe(), 3)
    evaluation = next(record for record in records(reference) if record["kind"] == "evaluation")
    assert (evaluation["ema"]["top1"], evaluation["raw"]["top1"], evaluation["images"]) == (50.0, 25.0, 100)


def work(path: Path, kill_at: int | None, moments: multiprocessing.queues.SimpleQueue | None = None) -> None:
    """Run in a process of its own, which is killed at its `kill_at`-th change of the file system."""
    tqdm.set_lock(threading.RLock())
    count, done = 0, False

    def watch(event: str, arguments: tuple) -> None:
        nonlocal count
        if event not in _CHANGES or done or not str(arguments[0]).startswith(str(path)):
            return
        if event == "open" and arguments[1] in ("r", "rb", None) and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        count += 1
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    run(path)
    done = True
    if moments is not None:
        moments.put(count)


def in_process(path: Path, kill_at: int | None, moments=None) -> int:
    process = PROCESSES.Process(target=work, args=(path, kill_at, moments))
    process.start()
    process.join()
    return process.exitcode


def test_killed_at_any_moment_and_gone_on_with_it_ends_the_same(reference, tmp_path, pytestconfig):
    moments = PROCESSES.SimpleQueue()
    assert in_process(tmp_path / "whole", None, moments) == 0
    assert_same_end(tmp_path / "whole", reference)
    count = moments.get()
    assert count > 100
    # The last ones always: no later checkpoint takes away what they leave.
    last, anywhere = range(count - 9, count + 1), range(1, count - 9)
    if not pytestconfig.getoption("slow"):
        anywhere = np.random.default_rng(0).permutation(anywhere)[:6]
    for kill_at in map(int, [*anywhere, *last]):
        path = tmp_path / f"killed-{kill_at}"
        assert in_process(path, kill_at) == -signal.SIGKILL
        if kill_at not in last:
            # And once more, soon after it resumed.
            assert in_process(path, 1 + kill_at % 9) == -signal.SIGKILL
        assert in_process(path, None) == 0, kill_at
        assert_same_end(path, reference)
        left = [item for item in path.rglob("*") if item.name.endswith(".tmp")]
        assert left == [], kill_at


def test_the_last_checkpoints_stay_and_the_best(tmp_path):
    run(tmp_path / "run", engine=FakeEngine(top1={6: 60, 12: 90, 18: 90, 24: 70, 30: 80}))
    assert checkpoints(tmp_path / "run") == [12, 25, 30]
    best = read_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000012")
    assert (best.top1, best.progress.step) == (90.0, 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": "3"}, "step must be a whole number, received '3'"),
        ({"positions": [[0, 1]]}, r"positions\[0\] must be a list of 3 whole numbers"),
        ({"pending": [[0.5, None]]}, r"pending\[0\]\[1\] must be a number, received None"),
        ({"top2": 1}, "unknown key 'top2'; did you mean top1"),
    ],
)
def test_what_a_checkpoint_says_is_checked(change, message, tmp_path):
    progress = Progress(3, "torch", (Position(0, 1, 2),), ((0.5, 0.25),))
    written = save_state(tmp_path / "step-00000003", {"model/w": np.ones(2, np.float32)}, progress)
    assert (written.progress, written.top1) == (progress, None)
    path = tmp_path / "step-00000003" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=f"state.json is missing or cannot be read: {message}"):
        read_checkpoint(path.parent)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(reference, tmp_path, capsys):
    path = tmp_path / "run"
    run(path, steps=20)
    newest = path / "checkpoints" / "step-00000020" / "state.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    run(path)
    told = capsys.readouterr().err
    assert "step-00000020" in told
    assert "is damaged" in told
    assert_same_end(path, reference)
    assert [folder.name.startswith("step-00000020-") for folder in (path / "damaged").iterdir()] == [True]
    # All of them, and one without its description: it begins anew.
    for folder in (path / "checkpoints").iterdir():
        (folder / "state.json").unlink()
    run(path)
    assert_same_end(path, reference)


def test_a_loss_that_is_no_number_stops_and_leaves_the_state_to_look_at(tmp_path):
    with pytest.raises(
        TrainingError, match=r"loss of step 14 is nan, at learning rate 0\.0\d+.*optimizer\.learning_rate,"
    ):
        run(tmp_path / "run", engine=FakeEngine(nan_at=14))
    # The key that is in force.
    with pytest.raises(TrainingError, match=r"lower optimizer\.learning_rate_per_256,"):
        run(tmp_path / "other", fake_recipe(optimizer__learning_rate=None), engine=FakeEngine(nan_at=1))
    failed = read_checkpoint(tmp_path / "run" / "failed" / "step-00000014")
    assert failed.tensors().keys() == FakeEngine().state().keys()
    # Read with the next figures, and never a checkpoint.
    assert failed.progress.step == 15
    assert checkpoints(tmp_path / "run") == [6, 10, 12]
    assert not (tmp_path / "run" / "RESUME").exists()


def test_a_signal_saves_after_the_step_under_way(reference, tmp_path):
    class Signalled(FakeEngine):
        def step(self, learning_rate):
            if self._steps == 10:
                signal.raise_signal(signal.SIGTERM)
            return super().step(learning_rate)

    with pytest.raises(TrainingStoppedError, match="stopped by SIGTERM at step 11 of 30") as error:
        run(tmp_path / "run", engine=Signalled())
    assert error.value.exit_code == 75
    assert checkpoints(tmp_path / "run")[-1] == 11
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    # For scripts, until the command runs again.
    assert (tmp_path / "run" / "RESUME").exists()
    run(tmp_path / "run")
    assert not (tmp_path / "run" / "RESUME").exists()
    assert records(tmp_path / "run") == records(reference)
    np.testing.assert_array_equal(final_state(tmp_path / "run")["model/w"], final_state(reference)["model/w"])


@pytest.mark.parametrize(("step", "ranks", "weights"), [(12, 1, "raw"), (30, 1, "raw"), (18, 2, "raw"), (29, 1, None)])
def test_a_signal_waits_for_one_pass_of_an_evaluation_at_most(reference, tmp_path, step, ranks, weights):
    passes = []

    class Signalled(FakeEngine):
        def step(self, learning_rate):
            if weights is None and self._steps == step:
                signal.raise_signal(signal.SIGTERM)
            return super().step(learning_rate)

        def evaluate(self, open_dataset, chosen):
            passes.append((self._steps, chosen))
            if (self._steps, chosen) == (step, weights):
                signal.raise_signal(signal.SIGTERM)
            return super().evaluate(open_dataset, chosen)

    # While the last step is taken, the signal comes before the evaluation.
    stopped = step if weights else step + 1
    with pytest.raises(TrainingStoppedError, match=f"at step {stopped} of 30"):
        run(tmp_path / "run", engine=Signalled(ranks=ranks))
    assert passes[-1] == ((step, "raw") if weights else (24, "ema"))
    assert checkpoints(tmp_path / "run")[-1] == stopped
    run(tmp_path / "run", engine=FakeEngine(ranks=ranks))
    assert records(tmp_path / "run") == records(reference)


def test_max_steps_ends_early_on_the_same_way(reference, tmp_path):
    run(tmp_path / "run", steps=17)
    assert records(tmp_path / "run")[-1]["kind"] == "evaluation"
    with pytest.raises(UsageError, match="at step 17 already, beyond 16"):
        run(tmp_path / "run", steps=16)
    # Finished or not.
    folder = RunFolder(tmp_path / "run")
    folder.finish(17)
    with pytest.raises(UsageError, match="at step 17 already, beyond 16"):
        folder.check_step(folder.finished_step, 16)
    run(tmp_path / "run")
    np.testing.assert_array_equal(final_state(tmp_path / "run")["ema/w"], final_state(reference)["ema/w"])


def test_another_engine_or_number_of_processes_goes_on_and_says_what_is_new(tmp_path, capsys):
    run(tmp_path / "run", steps=15)
    run(tmp_path / "run", steps=20, engine_name="keras")
    assert "of the torch engine" in capsys.readouterr().err
    run(tmp_path / "run", steps=25, engine_name="keras", engine=FakeEngine(ranks=2))
    told = capsys.readouterr().err
    assert "by 1 readers, now by 2" in told
    # Step 20 was in the middle of the fourth epoch.
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000025").progress.positions == ((3, 0, 10),) * 2


def test_without_validation_images_it_says_so_once_and_keeps_the_last(tmp_path, capsys):
    run(tmp_path / "run", data=fake_data(held_out=False))
    assert capsys.readouterr().err.count("no validation images") == 1
    assert checkpoints(tmp_path / "run") == [25, 30]
    assert {record["kind"] for record in records(tmp_path / "run")} == {"train"}


def test_too_many_broken_images_are_rszoo_s_error(tmp_path):
    faults = Faults(0)

    class Broken(FakeEngine):
        def step(self, learning_rate):
            try:
                faults.note("cat.jpg", "not a JPEG")
            except ImageError as error:
                raise tf.errors.UnknownError(None, None, "as TensorFlow passes it on") from error

    with pytest.raises(ImageError, match=r"cat\.jpg"):
        run(tmp_path / "run", data=fake_data(faults=faults), engine=Broken())


def test_tensorboard_has_every_record_once(reference, tmp_path):
    run(tmp_path / "run", steps=20)
    run(tmp_path / "run")
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    found = {
        (event.step, value.tag): value.simple_value
        for event in tf.compat.v1.train.summary_iterator(str(events))
        for value in event.summary.value
    }
    trained = [record for record in records(tmp_path / "run") if record["kind"] == "train"]
    assert {step for step, tag in found if tag == "train/loss"} == {record["step"] for record in trained}
    for record in trained:
        assert found[record["step"], "train/loss"] == pytest.approx(record["loss"])
        assert found[record["step"], "learning_rate"] == pytest.approx(record["learning_rate"])
    assert found[30, "validation/ema_top1"] == 50
    assert found[30, "validation/raw_top1"] == 25


def test_another_run_s_folder_is_refused_with_what_differs(tmp_path):
    path, recipe = tmp_path / "run", fake_recipe()
    run(path, steps=5)
    # What changes nothing about the outcome may differ.
    run(path, fake_recipe(train__log_every_steps=3, train__compile=True, data__source="elsewhere"), steps=6)
    folder = RunFolder(path)
    identity = Identity(recipe, "fake data", 12)
    # Nor does what the data's folder is called.
    folder.check_same(dataclasses.replace(identity, data="job-4711"))
    differing = {
        r"optimizer\.learning_rate is 0\.1 there and 0\.2 here": {
            "recipe": fake_recipe(optimizer__learning_rate=0.2, train__log_every_steps=1)
        },
        "train_images is 12 there and 13 here": {"train_images": 13},
        'init is null there and "resnet-rs-50-i160" here': {"init": "resnet-rs-50-i160"},
        'init_sha256 is null there and "12" here': {"init_sha256": "12"},
        'data_sha256 is null there and "34" here': {"data_sha256": "34"},
        r'class_names is null there and \["cat", "dog"\] here': {"class_names": ("cat", "dog")},
    }
    for message, change in differing.items():
        with pytest.raises(UsageError, match=message):
            folder.check_same(dataclasses.replace(identity, **change))
    with pytest.raises(OutputError, match="--resume is never"):
        folder.check_usable(may_resume=False)
    for text, message in {"{}": "format_version must be 1, received None", "{": "it is not JSON"}.items():
        (path / "run.json").write_text(text)
        with pytest.raises(ConfigError, match=message):
            folder.check_same(identity)
    for name, other in {"file": tmp_path / "file", "folder": tmp_path}.items():
        (tmp_path / "file").write_text(name)
        with pytest.raises(OutputError, match="is not a run"):
            RunFolder(other).check_usable(may_resume=True)


def test_data_are_known_by_what_is_listed(tmp_path):
    images = ImageSource("cats", "train", 2, ("a", "b"), 2, "/root", ("a/1.png", "b/2.png"), np.asarray([0, 1]))
    changes = [{"names": ("a/1.png", "b/3.png")}, {"labels": np.asarray([1, 0])}, {}, {"root": "/elsewhere"}]
    sums = [data_sha256(dataclasses.replace(images, **change)) for change in changes]
    assert len(set(sums)) == 3
    assert sums[2] == sums[3]
    found = []
    for place, content in (("one", b"12"), ("other", b"34"), ("longer", b"123")):
        (tmp_path / place).mkdir()
        shard = tmp_path / place / "train-00000-of-00001"
        shard.write_bytes(content)
        found.append(data_sha256(ShardSource("tf", "train", None, None, None, (str(shard),))))
    assert found[0] == found[1] != found[2]
    with pytest.raises(SourceNotFoundError, match="gone"):
        data_sha256(ShardSource("tf", "train", None, None, None, (str(tmp_path / "gone"),)))


def hold_lock(path: Path, ready: multiprocessing.queues.SimpleQueue) -> None:
    with RunFolder(path).locked() as free:
        ready.put(free)
        signal.pause()


def test_one_process_at_a_time_until_it_ends_however_it_ends(tmp_path):
    ready = PROCESSES.SimpleQueue()
    process = PROCESSES.Process(target=hold_lock, args=(tmp_path / "run", ready))
    process.start()
    assert ready.get()
    with RunFolder(tmp_path / "run").locked() as free:
        assert not free
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with RunFolder(tmp_path / "run").locked() as free:
        assert free
        # The other processes of the same command look at the folder meanwhile.
        RunFolder(tmp_path / "run").check_usable(may_resume=True)


def test_a_full_disk_is_rszoo_s_error(reference, tmp_path):
    def limited(action: Callable[[], object], limit: int = 100) -> None:
        """No file may be longer than a disk without room would let it be."""
        former = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, former[1]))
        try:
            with pytest.raises(OutputError, match=r"cannot write .*File too large|cannot write .*No space left"):
                action()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, former)

    big, figures = {"model/w": np.zeros(10_000, np.float32)}, read_records(reference / "metrics.jsonl")
    limited(lambda: save_state(tmp_path / "state", big, Progress(7, "torch", ())))
    assert list(tmp_path.iterdir()) == []
    metrics = Metrics(tmp_path / "metrics.jsonl", tmp_path / "tensorboard")
    metrics.start(0, evaluated=False)
    for record in figures:
        metrics.add(record)
    limited(lambda: metrics.add(figures[0]))
    limited(lambda: metrics.start(30, evaluated=True))
    limited(lambda: plot_curves(figures, "A fake", tmp_path / "curves.png"))
    run(tmp_path / "run", steps=2)
    limited(lambda: RunFolder(tmp_path / "run").finish(2))

    def add_to_events() -> None:
        for record in figures * 9:
            (tmp_path / "lines").unlink()
            metrics.add(record)

    # TensorFlow's own error.
    metrics = Metrics(tmp_path / "lines", tmp_path / "events")
    metrics.start(0, evaluated=False)
    limited(add_to_events, 1000)
    with suppress(OutputError):
        metrics.close()


def test_a_recipe_of_a_fine_tuned_run_says_that_it_names_no_weights(tmp_path):
    path, recipe = tmp_path / "run", fake_recipe()
    RunFolder(path).open(Identity(recipe, "fake data", 12, init="resnet-rs-demo"), {})
    assert "add --init resnet-rs-demo" in lost_start(str(path / "recipe.yaml"))
    run(tmp_path / "other", steps=1)
    for name in (str(tmp_path / "other" / "recipe.yaml"), "resnet-rs-demo", str(path)):
        assert lost_start(name) is None


def test_the_stored_recipe_and_account_are_complete(tmp_path):
    recipe = fake_recipe(optimizer__weight_decay=1e-5)
    run(tmp_path / "run", recipe, steps=2)
    assert load_recipe(str(tmp_path / "run" / "recipe.yaml")) == recipe
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["sessions"] == [{"command": "test"}]
    run(tmp_path / "run", recipe, steps=3)
    assert len(json.loads((tmp_path / "run" / "run.json").read_text())["sessions"]) == 2


def test_states_come_back_bit_by_bit_whatever_their_layout(tmp_path):
    values = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    tensors = {
        "model/a": values.T,
        "model/b": values[::2],
        "step": np.asarray(7, np.int64),
        "random/torch/0/cpu": np.arange(9, dtype=np.uint8),
        "ema/c": np.asarray([np.nan, -0.0, 1e-45], np.float32),
    }
    saved = save_state(tmp_path / "state", tensors, Progress(7, "torch", (), ((0.1 + 0.2, 1 / 3),)))
    assert saved.progress == Progress(7, "torch", (), ((0.1 + 0.2, 1 / 3),))
    for name, back in saved.tensors().items():
        assert (back.dtype, back.shape) == (tensors[name].dtype, tensors[name].shape)
        assert back.tobytes() == np.ascontiguousarray(tensors[name]).tobytes()


def test_curves_of_one_record_and_of_many(reference, tmp_path):
    for count in (0, 1, None):
        plot_curves(read_records(reference / "metrics.jsonl")[:count], "A fake", tmp_path / "curves.png")
        assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
