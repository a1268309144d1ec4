"""The two programs as a user runs them: output, JSON, exit codes, one line for every mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rszoo
from rszoo.verify.demo import held_out_digits
from tests.commands import PROGRAMS, call


def start(*words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `rszoo` in a process of its own."""
    command = [sys.executable, "-m", "rszoo.cli.main", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def demo_model(tmp_path_factory) -> str:
    """The demo converted by the program."""
    folder = tmp_path_factory.mktemp("cli") / "demo"
    done = call("rszoo-convert", "--ckpt", "resnet-rs-demo", "--output", str(folder))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"rszoo verify {folder}" in done.stdout
    return str(folder)


@pytest.fixture(scope="module")
def digit_files(tmp_path_factory) -> list[str]:
    """Three held-out digits as PNG files, and their labels in the names."""
    folder = tmp_path_factory.mktemp("digits")
    images, labels = held_out_digits()
    paths = [folder / f"{label}-{number}.png" for number, label in enumerate(labels[:3])]
    for path, image in zip(paths, images, strict=False):
        Image.fromarray(image).save(path)
    return [str(path) for path in paths]


def test_list_and_info_as_json():
    listed = json.loads(call("rszoo", "list", "*-152-*", "--json").stdout)
    pairs = [f"resnet-rs-152-i{size}" for size in (192, 224, 256)]
    assert [entry["name"] for entry in listed] == [*pairs, *(f"{pair}.garden" for pair in pairs)]
    assert listed[0]["parameters"] == 86_621_576
    info = json.loads(call("rszoo", "info", "resnetrs152", "--json").stdout)
    assert (info["name"], info["published"]["top1"]) == ("resnet-rs-152-i256", 83.0)
    assert "resnet-rs-420-i320" in call("rszoo", "list").stdout


def test_predict_names_the_digits(demo_model, digit_files):
    for framework in ("torch", "keras"):
        done = call("rszoo", "predict", demo_model, *digit_files, "--framework", framework, "--top", "2", "--json")
        results = json.loads(done.stdout)
        for result in results:
            label = Path(result["image"]).name[0]
            assert [len(result["predictions"]), result["predictions"][0]["label"]] == [2, label]
            assert sum(guess["probability"] for guess in result["predictions"]) <= 1 + 1e-9


def test_verify_passes_and_is_recorded(demo_model):
    done = call("rszoo", "verify", demo_model, "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 0, done.stdout
    assert [check["status"] for check in checks.values()] == ["passed"] * 6 + ["not run"]
    assert max(checks["torch = original graph"]["figures"].values()) <= 2e-6
    record = json.loads((Path(demo_model) / "verification.json").read_text())
    assert record["passed"] is True
    assert (
        record["weights_sha256"] == json.loads((Path(demo_model) / "conversion.json").read_text())["result"]["sha256"]
    )


def test_verify_finds_a_changed_weight(demo_model, tmp_path):
    for file in Path(demo_model).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[-2] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    done = call("rszoo", "verify", str(tmp_path), "--json")
    assert done.returncode == 1
    assert {check["name"] for check in json.loads(done.stdout) if check["status"] == "failed"} == {"file", "source"}
    assert "failed 2 of 7 checks: file, source" in done.stderr
    assert json.loads((tmp_path / "verification.json").read_text())["passed"] is False


def test_verify_says_what_it_could_not_do_without_frameworks(demo_model):
    # None in sys.modules makes an import fail as if the package were not there.
    code = (
        "import sys; sys.modules.update(torch=None, keras=None, tensorflow=None);"
        f"from rszoo.cli.main import main; sys.argv = ['rszoo', 'verify', {demo_model!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.count("not run") == 4
    assert 'pip install "rszoo[torch]"' in done.stdout


def test_convert_back_and_forth_on_the_command_line(demo_model, tmp_path):
    done = call("rszoo-convert", "--ckpt", demo_model, "--to", "tf1", "--output", str(tmp_path / "tf1"), "--json")
    assert json.loads(done.stdout) == {
        "prefix": str(tmp_path / "tf1" / "model.ckpt"),
        "left_out": ["the class names", "the preprocessing"],
    }
    words = (
        "--ckpt",
        str(tmp_path / "tf1"),
        "--model",
        "resnet-rs-demo",
        "--output",
        str(tmp_path / "again"),
        "--json",
    )
    report = json.loads(call("rszoo-convert", *words).stdout)
    assert (report["model"], report["result"]["tensors"]) == ("resnet-rs-demo", 194)


def test_demo_runs_from_an_empty_folder(tmp_path):
    done = start("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "torch: 359 of 360 held-out digits right" in done.stdout
    assert "keras: 359 of 360 held-out digits right" in done.stdout


MISTAKES = [
    (("rszoo", "info", "resnet-rs-152-i288"), 2, "resnet-rs-152-i224"),
    (("rszoo", "list", "*-i999"), 2, "rszoo list"),
    (("rszoo", "inof"), 2, "info"),
    (("rszoo", "predict", "MODEL", "no.jpg"), 3, "no.jpg"),
    (("rszoo", "predict", "MODEL", "TEXT"), 3, "cannot read"),
    (("rszoo", "predict", "./nowhere", "TEXT"), 3, "rszoo-convert --ckpt"),
    (("rszoo", "verify", "EMPTY"), 3, "no config.json"),
    (("rszoo-convert", "--ckpt", "no.tar.gz", "--output", "x"), 3, "no.tar.gz"),
    (("rszoo-convert", "--ckpt", "no.tar.gz"), 3, "no.tar.gz"),
    (("rszoo-convert", "--ckpt", "TEXT"), 2, "give --output"),
    (("rszoo-convert", "--ckpt", "./no", "--to", "tf1"), 3, "no does not exist"),
    (("rszoo-convert", "--ckpt", "MODEL", "--to", "tf2"), 2, "choose tf1"),
    (("rszoo-convert", "--ckpt", "TEXT", "--output", "x"), 3, "no checkpoint"),
    (("rszoo-convert", "--ckpt", "EMPTY", "--output", "x"), 3, "*.index"),
    (("rszoo-convert", "--ckpt", "resnet-rs-51", "--output", "x"), 2, "resnet-rs-50-i160"),
    (("rszoo-convert", "--ckpt", "resnet-rs-demo", "--output", "EMPTYFILE"), 5, "choose another --output"),
    (("rszoo-convert", "--ckpt", "resnet-rs-demo", "--output", "x", "--weights", "best"), 2, "ema"),
    (("rszoo-convert", "--ckpt", "MODEL", "--to", "tf1"), 2, "--output"),
    (("rszoo-convert", "--ckpt", "resnet-rs-50-i160", "--output", "x"), 4, "RSZOO_OFFLINE"),
]


@pytest.mark.parametrize(("words", "code", "hint"), MISTAKES, ids=[" ".join(words) for words, _, _ in MISTAKES])
def test_mistakes_get_a_line_a_hint_and_a_code(demo_model, tmp_path, words, code, hint):
    (tmp_path / "text.txt").write_text("not an image")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    places = {"MODEL": demo_model, "TEXT": "text.txt", "EMPTY": "empty", "EMPTYFILE": "file"}
    before = sorted(tmp_path.rglob("*"))
    done = call(*(places.get(word, word) for word in words), cwd=tmp_path, RSZOO_OFFLINE="1")
    assert done.returncode == code, done.stderr
    assert hint in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "words", [("-m", "rszoo"), ("-m", "rszoo.cli"), ("-m", "converters"), ("-m", "rszoo", "convert")], ids=" ".join
)
def test_version_is_printed_by_every_entry_point(words):
    done = subprocess.run([sys.executable, *words, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"rszoo {rszoo.__version__}\n", "")


def test_interrupted_is_one_line_without_the_chatter_of_frameworks(demo_model):
    # It waits where the frameworks have been imported.
    code = (
        # Who runs the tests in the background may have it ignored.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys, time, rszoo.cli.console as console, rszoo.cli.main as main\n"
        "genuine = console.load_frameworks\n"
        "def wait(*frameworks):\n"
        "    genuine(*frameworks)\n"
        "    print('loaded', flush=True)\n"
        "    time.sleep(60)\n"
        "import rszoo.cli.verify as verify\n"
        "verify.load_frameworks = wait\n"
        f"sys.argv = ['rszoo', 'verify', {demo_model!r}]\n"
        "main.main()\n"
    )
    done = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.stdout.readline() == "loaded\n"
    done.send_signal(signal.SIGINT)
    assert done.communicate()[1].strip() == "interrupted"
    assert done.returncode == 130


def test_interrupted_while_it_starts_is_one_line(tmp_path):
    # Everything but the first few milliseconds of Python's own: a package that is slow to import.
    (tmp_path / "typer").mkdir()
    (tmp_path / "typer" / "__init__.py").write_text("import time; print('begun', flush=True); time.sleep(60)")
    # Who runs the tests in the background may have it ignored.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{heard}; from rszoo.cli.start import start_rszoo; start_rszoo()"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert done.stdout.readline() == "begun\n"
    done.send_signal(signal.SIGINT)
    assert (done.communicate()[1], done.returncode) == ("interrupted\n", 130)


def test_convert_is_a_command_of_rszoo_too(tmp_path):
    done = call("rszoo", "convert", "--ckpt", "resnet-rs-demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "resnet-rs-demo" / "model.safetensors").is_file()


def test_completion_is_offered():
    environment = {**os.environ, "_RSZOO_COMPLETE": "complete_bash", "COMP_WORDS": "rszoo con", "COMP_CWORD": "1"}
    done = subprocess.run(
        [Path(sys.executable).with_name("rszoo"), "con"], capture_output=True, text=True, env=environment
    )
    assert done.stdout.split() == ["convert"], done.stderr


def test_unknown_keras_backend_is_a_line(demo_model, digit_files):
    words = ("predict", demo_model, digit_files[0], "--framework", "keras")
    done = start(*words, KERAS_BACKEND="tensorflwo")
    assert (done.returncode, done.stderr) == (
        2,
        "error: KERAS_BACKEND is 'tensorflwo'; set it to tensorflow, or leave it out\n",
    )


def test_debug_shows_the_traceback():
    assert "Traceback" in call("rszoo", "info", "nothing", RSZOO_DEBUG="1").stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_ends_with_examples_and_exit_codes(program):
    words = (program,) if program == "rszoo-convert" else (program, "predict")
    text = call(*words, "--help").stdout
    assert text.index("Examples:") < text.index("Exit codes:")
    assert text.count(f"{program} ") >= 2


def test_output_is_plain_without_a_terminal(demo_model):
    done = call("rszoo", "info", demo_model)
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert np.char.count(done.stdout, "parameters") == 1
