"""Training from the command line on the built-in digits: accuracy, exact resumption, and what a run leaves behind."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import rszoo
from converters.convert import convert
from converters.write_back import write_checkpoint
from rszoo.folder.evaluations import read_evaluations
from rszoo.folder.model_folder import read_folder
from rszoo.inference.classifier import Classifier
from rszoo.models.saving import save
from rszoo.publish.plan import Target, planned
from rszoo.recipes.load import load_recipe
from rszoo.train.checkpoints import Checkpoints
from rszoo.train.keras.engine import KerasEngine
from rszoo.train.metrics import read_records
from rszoo.train.run_folder import RunFolder
from rszoo.train.torch.engine import TorchEngine
from rszoo.verify.checks import save_verification, verify
from rszoo.verify.demo import held_out_digits
from tests.commands import call

ENGINES = ("torch", "keras")
# A step in milliseconds, and a record of each.
TINY = (
    *("--recipe", "resnet-rs-demo", "model.blocks=[1,1,1,1]", "data.image_size=32", "train.batch_size=32"),
    *("train.log_every_steps=1", "train.checkpoint_every_steps=3", "train.evaluate_every_epochs=0.2"),
)
STEPS = 14
PARTS = ("train", "validation")


def command(*words: object) -> tuple[int, str, str]:
    """Run `rszoo` in this process; return its exit code, stdout and stderr."""
    done = call("rszoo", *words)
    return done.returncode, done.stdout, done.stderr


def steps_of(path: Path) -> list[int]:
    return [record["step"] for record in read_records(path / "metrics.jsonl") if record["kind"] == "train"]


def signal_at(engine: str, step: int, number: int, patched: pytest.MonkeyPatch | None = None) -> None:
    """Have this process send itself a signal as it takes a step."""
    kind: Any = {"torch": TorchEngine, "keras": KerasEngine}[engine]
    genuine, taken = kind.step, itertools.count(1)

    def step_with_signal(self: Any, learning_rate: float) -> object:
        if next(taken) == step:
            os.kill(os.getpid(), number)
        return genuine(self, learning_rate)

    (patched or pytest.MonkeyPatch()).setattr(kind, "step", step_with_signal)


KILLED = """
import signal, sys
from tests.test_training import signal_at
engine, step, *words = sys.argv[1:]
signal_at(engine, int(step), signal.SIGKILL)
from rszoo.cli.main import main
sys.argv = ["rszoo", *words]
main()
"""


def figures(path: Path) -> list[dict]:
    """The records but for what the clock says."""
    clocks = ("time", "images_per_second", "seconds")
    return [
        {key: value for key, value in record.items() if key not in clocks}
        for record in read_records(path / "metrics.jsonl")
    ]


# Half the size of the images and fewer epochs: a fifth of the work.
SHORT = ("data.image_size=32", "train.epochs=13")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("torch", SHORT), id="torch"),
        *(pytest.param((engine, ()), marks=pytest.mark.slow, id=f"{engine} in full") for engine in ENGINES),
    ],
)
def demo(request, tmp_path_factory) -> tuple[str, Path]:
    """The demo's recipe as a user runs it; an engine and the run's folder."""
    engine, changes = request.param
    path = tmp_path_factory.mktemp("demo") / engine
    # With so small a network, a second thread makes more work for the processors, and saves little time.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        code, told, noted = command(
            "train", "--recipe", "resnet-rs-demo", "--framework", engine, "--output", path, "--json", *changes
        )
    finally:
        torch.set_num_threads(threads)
    assert (code, noted) == (0, "")
    assert json.loads(told)["evaluation"]["ema"]["top1"] >= 97
    return engine, path


def test_the_demo_s_recipe_reaches_97_percent_of_digits_it_never_saw(demo):
    engine, path = demo
    images, labels = held_out_digits()
    for framework in ENGINES:
        predicted = np.stack(list(Classifier(read_folder(path / "model"), framework).logits(images))).argmax(axis=1)
        top1 = 100 * (predicted == labels).mean()
        assert top1 >= 97
        (measured,) = read_evaluations(path / "model")
        assert (measured.framework, measured.images) == (engine, 360)
        # The other framework rounds in another way, which may turn a digit or two.
        assert measured.top1 == pytest.approx(top1, abs=1e-4 if framework == engine else 0.6)
    best = max(record["ema"]["top1"] for record in read_records(path / "metrics.jsonl") if "ema" in record)
    kept = [json.loads((folder / "state.json").read_text())["top1"] for folder in (path / "checkpoints").iterdir()]
    assert best in [round(top1, 4) for top1 in kept if top1 is not None]
    assert (path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_trained_model_is_verified_pushed_and_exported_like_any_other(demo, tmp_path):
    _, path = demo
    folder = read_folder(path / "model")
    assert folder.config.labels == tuple("0123456789")
    assert folder.config.preprocessing == load_recipe(str(path / "recipe.yaml")).data.preprocessing
    checks = list(verify(folder))
    assert {check.status for check in checks} <= {"passed", "not run"}
    save_verification(folder, checks)
    with planned(folder, Target("me/digits")) as plan:
        assert {"model.safetensors", "evaluation.json"} <= set(plan.files)
    assert write_checkpoint(folder, tmp_path / "tf1", "tf1")
    size = folder.config.preprocessing.image_size
    images = np.random.default_rng(0).standard_normal((4, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        logits = rszoo.create(folder.path)(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(np.asarray(rszoo.create(folder.path, framework="keras")(images)), logits, atol=1e-4)


@pytest.mark.parametrize("engine", ["torch", pytest.param("keras", marks=pytest.mark.slow)])
def test_stopped_and_killed_it_ends_with_the_same_bits(engine, tmp_path, monkeypatch):
    """Between two checkpoints; tests/test_run_folder.py does it at every moment, with an engine of numpy.

    By default Keras resumes to the bit in tests/test_keras_engine.py, and a stopped run in tests/test_old_folders.py.
    """
    words = ("train", *TINY, "--framework", engine, "--max-steps", str(STEPS), "--output")
    whole, path = tmp_path / "whole", tmp_path / "stopped"
    assert command(*words, whole)[0] == 0
    with monkeypatch.context() as patched:
        signal_at(engine, 4, signal.SIGTERM, patched)
        code, _, noted = command(*words, path)
    assert code == 75, noted
    assert "stopped by SIGTERM at step 4" in noted
    assert "the same command resumes" in noted
    # The fifth from there on: step 9, after the checkpoint of step 6.
    program = [sys.executable, "-c", KILLED, engine, "5", *words, str(path)]
    done = subprocess.run(program, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert steps_of(path)[-1] == 8
    code, told, _ = command(*words, path)
    assert code == 0
    assert "resuming from step" in told
    assert figures(path) == figures(whole)
    for name in ("model/model.safetensors", f"checkpoints/step-{STEPS:08d}/state.safetensors"):
        assert (path / name).read_bytes() == (whole / name).read_bytes(), name
    sessions = json.loads((path / "run.json").read_text())["sessions"]
    assert len(sessions) == 3
    # Once more: there is nothing left to do.
    before = (path / "run.json").read_bytes()
    code, told, _ = command(*words, path)
    assert (code, "is finished" in told) == (0, True)
    code, _, told = command("train", *TINY, "--max-steps", "5", "--output", path)
    assert (code, f"at step {STEPS} already, beyond 5" in told) == (2, True)
    assert (path / "run.json").read_bytes() == before


@pytest.mark.slow
def test_the_other_engine_goes_on(tmp_path):
    path = tmp_path / "run"
    assert command("train", *TINY, "--max-steps", "6", "--output", path)[0] == 0
    code, told, noted = command("train", *TINY, "--framework", "keras", "--max-steps", "9", "--output", path)
    assert (code, "resuming from step 6" in told) == (0, True)
    assert "state is of the torch engine" in noted
    losses = {record["step"]: record["loss"] for record in figures(path) if record["kind"] == "train"}
    assert list(losses) == list(range(1, 10))
    # Not a new beginning.
    assert np.mean([losses[step] for step in (7, 8, 9)]) < losses[1]
    newest = next(Checkpoints(path / "checkpoints", 1).newest_first())
    assert json.loads((newest / "state.json").read_text())["engine"] == "keras"


@pytest.mark.slow
def test_two_processes_under_torchrun(tmp_path):
    path = tmp_path / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for steps in ("4", "6"):
        words = ("-m", "rszoo.train", *TINY, "--max-steps", steps, "--output", str(path))
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*launcher, *words], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
    # One process writes, and each reads its share.
    assert done.stdout.count("resuming from step 4") == 1
    assert steps_of(path) == list(range(1, 7))
    facts = json.loads((path / "run.json").read_text())
    assert [session["processes"] for session in facts["sessions"]] == [2, 2]
    newest = next(Checkpoints(path / "checkpoints", 1).newest_first())
    assert len(json.loads((newest / "state.json").read_text())["positions"]) == 2
    assert [record["images"] for record in figures(path) if record["kind"] == "evaluation"][-1] == 360


@pytest.fixture(scope="module")
def digits_model(tmp_path_factory) -> Path:
    """The demo's checkpoint, converted."""
    output = tmp_path_factory.mktemp("converted") / "demo"
    convert("resnet-rs-demo", output)
    return output


@pytest.fixture(scope="module")
def letters(tmp_path_factory) -> Path:
    """A folder of images of three classes."""
    folder = tmp_path_factory.mktemp("letters")
    generator = np.random.default_rng(0)
    for split, count in (("train", 9), ("validation", 4)):
        for number, name in enumerate(("anna", "bert", "carl")):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(60 * number, 60 * number + 80, (12, 12, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    (folder / "train" / "anna" / "note.txt").touch()
    (folder / "test").mkdir()
    return folder


def test_fine_tuning_takes_the_classes_from_the_data_and_the_rest_from_the_weights(letters, digits_model, tmp_path):
    path = tmp_path / "run"
    words = ("train", "--init", digits_model, "--data", letters, "--output", path, "train.batch_size=9", "--json")
    code, result, told = command(*words, "--max-steps", "3", "train.freeze_through=2", "model.dropout_rate=0.1")
    assert code == 0, told
    # What was taken of the folder and what was left is printed, and recorded with the run.
    assert "took 27 files (27 .png); left 1 file (1 .txt) and 1 folder: test" in told
    (session,) = json.loads((path / "run.json").read_text())["sessions"]
    assert session["scans"] == json.loads(result)["scans"]
    assert {split: facts["taken"] for split, facts in session["scans"].items()} == {
        "train": {".png": 27},
        "validation": {".png": 12},
    }
    assert session["scans"]["train"]["left_folders"] == ["test"]
    recipe, model = load_recipe(str(path / "recipe.yaml")), read_folder(path / "model")
    start = read_folder(digits_model).config
    assert (recipe.name, recipe.data.train_images, recipe.model.dropout_rate) == ("fine-tune", 27, 0.1)
    assert recipe.data.preprocessing == model.preprocessing == start.preprocessing
    assert (model.config.labels, recipe.model.blocks) == (("anna", "bert", "carl"), start.arch.blocks)
    assert model.config.title == f"{start.title}, fine-tuned on {letters.name}"
    before, after = (rszoo.create(folder).state_dict() for folder in (digits_model, path / "model"))
    convolutions = [name for name in before if name.endswith("conv1.weight")]
    moved = {name.split(".")[0] for name in convolutions if not torch.equal(before[name], after[name])}
    # Up to stage 2, what was frozen is as it was.
    assert moved == {"layer3", "layer4"}
    again = (*words, "--max-steps", "4", "train.freeze_through=2", "model.dropout_rate=0.1")
    for folder, change, differing in (
        (digits_model, lambda copy: save(change_one(copy), copy, overwrite=True), "init_sha256"),
        (letters, lambda copy: (copy / "train" / "anna" / "8.png").rename(copy / "train" / "bert" / "9.png"), "data"),
        (letters, lambda copy: [(copy / part / "anna").rename(copy / part / "abel") for part in PARTS], "class_names"),
    ):
        # Of the same name, elsewhere.
        copy = shutil.copytree(folder, tmp_path / differing / folder.name)
        change(copy)
        code, _, told = command(*(copy if word == folder else word for word in again))
        assert code == 2, told
        assert f"is another run: {differing}" in told
    with RunFolder(path).locked():
        code, _, told = command(*again)
    assert (code, "another process trains in" in told) == (5, True)
    assert max(steps_of(path)) == 3
    # The same data in a folder of another name, as where a cluster stages them for each job: the run goes on.
    elsewhere = shutil.copytree(letters, tmp_path / "job-4711")
    code, _, told = command(*(elsewhere if word == letters else word for word in again))
    assert (code, max(steps_of(path))) == (0, 4), told


def change_one(folder: Path) -> torch.nn.Module:
    """Return the network of a folder, one of its values changed."""
    network = rszoo.create(folder)
    with torch.no_grad():
        next(network.parameters()).flatten()[0] += 1
    return network


MISTAKES = [
    (("--output", "run"), 2, "--recipe is missing"),
    (("--output", "run", "--recipe", "resnet-rs-50-i160"), 2, "--data is missing"),
    (("--output", "run", "--recipe", "resnet-rs-50-i161", "--data", "digits"), 2, "resnet-rs-50-i160"),
    (("--output", "run", *TINY, "train.batchsize=3"), 2, "did you mean batch_size?"),
    (("--output", "run", *TINY, "train.epochs=2020-99-99"), 2, "cannot read the value of 'train.epochs=2020-99-99'"),
    (("--output", "run", *TINY, "train.epochs=" + "[" * 3000), 2, "cannot read the value of"),
    (("--output", "run", *TINY, "model.depth=51"), 2, "depth must be one of"),
    (("--output", "run", *TINY, "train={}"), 2, "train."),
    (("--output", "run", *TINY, "--train.epochs=3"), 2, "is given as train.epochs=3"),
    (("--output", "run", *TINY, "train.epochs=x"), 2, "train.epochs must be a number, received 'x'"),
    (
        ("--output", "run", *TINY, "--epochs", "3"),
        2,
        "no option --epochs; a value of the recipe is given as train.epochs=3",
    ),
    (("--output", "run", *TINY, "--batch-size=8"), 2, "train.batch_size=8 or evaluation.batch_size=8"),
    (("--output", "run", *TINY, "--max-stepz", "3"), 2, "no option --max-stepz; nearest: --max-steps"),
    (("--output", "run", "--recipe", "mine.yaml"), 3, "no recipe at mine.yaml"),
    (("--output", "run", "--recipe", "resnet-rs-50", "--data", "digits"), 3, "the recipe resnet-rs-50-i160 1000"),
    (("--output", "run", *TINY, "--data", "nowhere"), 3, "nowhere"),
    (("--output", "run", *TINY, "model.num_classes=9"), 3, "add model.num_classes=10"),
    (("--output", "run", *TINY, "model.in_chans=1"), 3, "add model.in_chans=3"),
    (("--output", "run", *TINY, "data.train_images=9"), 3, "add data.train_images=1437"),
    (("--output", "run", *TINY, "train.accumulate=7"), 3, "nearest: 28 or 35"),
    (("--output", "run", *TINY, "--ablate", "cosine"), 2, "leave out --recipe"),
    (("--output", "run", *TINY, "--init", "resnet-rs-51"), 2, "resnet-rs-50-i160"),
    (("--output", "run", *TINY, "--framework", "jax"), 2, "keras"),
    (("--output", ".", *TINY), 5, "is not a run"),
]


@pytest.mark.parametrize(("words", "code", "hint"), MISTAKES, ids=[hint for *_, hint in MISTAKES])
def test_mistakes_get_a_line_and_a_code_and_leave_nothing(tmp_path, monkeypatch, words, code, hint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_text("")
    ended, told, noted = command("train", *words)
    assert (ended, told) == (code, "")
    assert hint in noted
    assert noted.count("\n") == 1 or code == 2
    assert "Traceback" not in noted
    assert [item.name for item in tmp_path.iterdir()] == ["mine"]
