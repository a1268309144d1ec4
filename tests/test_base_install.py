"""The base install: a wheel in an environment of its own, with its dependencies from the index and no framework."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import typer
import uv

from rszoo.cli.main import app

ROOT = Path(__file__).parent.parent
# What the extras bring. matplotlib and scikit-learn are in it to show that the environment really is alone.
EXTRAS = ("torch", "tensorflow", "keras", "jax", "tf_keras", "matplotlib", "sklearn", "pytest")


class BaseInstall:
    """An environment that has rszoo's wheel and what the wheel depends on, and an empty folder to work in."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.work = folder / "venv" / "bin", folder / "work"
        self.work.mkdir()
        build = [uv.find_uv_bin(), "build", "--quiet", "--wheel", "--out-dir", folder, ROOT]
        subprocess.run(build, check=True)
        (wheel,) = folder.glob("rszoo-*.whl")
        subprocess.run([uv.find_uv_bin(), "venv", "--quiet", folder / "venv"], check=True)
        install = [uv.find_uv_bin(), "pip", "install", "--quiet", "--python", folder / "venv", wheel]
        constraints = ROOT / "constraints.txt"
        subprocess.run([*install, *(("--constraints", constraints) if constraints.is_file() else ())], check=True)

    def run(self, program: str, *words: str, code: int = 0, hint: str = "") -> str:
        """Run a program of the environment, which must end with a code and a hint on stderr; return its stdout."""
        done = subprocess.run([self.bin / program, *words], cwd=self.work, capture_output=True, text=True)
        assert (done.returncode, bool(done.stderr)) == (code, bool(hint)), (words, done.stderr)
        assert hint in done.stderr, words
        return done.stdout

    def json(self, program: str, *words: str) -> object:
        """Run a program with --json; return what it printed."""
        return json.loads(self.run(program, *words, "--json"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseInstall:
    with pytest.MonkeyPatch.context() as patched:
        for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
            patched.delenv(name, raising=False)
        return BaseInstall(tmp_path_factory.mktemp("base"))


def test_no_framework_is_there_and_the_package_is_the_wheels(base: BaseInstall) -> None:
    code = (
        "import importlib.util, json, rszoo, converters\n"
        f"found = [name for name in {EXTRAS} if importlib.util.find_spec(name)]\n"
        "print(json.dumps([found, rszoo.__file__, converters.__file__]))"
    )
    found, *files = json.loads(base.run("python", "-c", code))
    assert found == []
    assert all(file.startswith(str(base.bin.parent)) for file in files)
    assert all(Path(file).with_name("py.typed").is_file() for file in files)


def test_it_lists_models_recipes_and_labels(base: BaseInstall) -> None:
    assert len(base.json("rszoo", "list")) == 22
    assert len(base.json("rszoo", "recipes")) == 14
    code = "import rszoo; print(rszoo.get_entry('resnet-rs-50').labels[388])"
    assert base.run("python", "-c", code).startswith("giant panda")


def test_it_converts_verifies_and_shows_what_it_would_push(base: BaseInstall) -> None:
    report = base.json("rszoo-convert", "--ckpt", "resnet-rs-demo", "--output", "demo")
    assert (report["model"], report["result"]["tensors"]) == ("resnet-rs-demo", 194)
    assert base.json("rszoo", "info", "demo")["parameters"] == 313_094
    checks = {check["name"]: check["status"] for check in base.json("rszoo", "verify", "demo")}
    assert {name for name, status in checks.items() if status == "passed"} == {"file", "values", "source"}
    assert set(checks.values()) == {"passed", "not run"}
    pushed = ("push", "demo", "me/demo", "--dry-run")
    # No framework that the weights could be compared in.
    base.run("rszoo", *pushed, code=1, hint="could compare these weights with no other implementation")
    assert "model.safetensors" in base.run("rszoo", *pushed, "--force", hint="pushed with --force")
    code = "import rszoo; print(len(rszoo.load_weights('resnet-rs-demo')))"
    assert base.run("python", "-c", code) == "226\n"


def test_each_command_starts(base: BaseInstall) -> None:
    commands = typer.main.get_command(app).commands
    assert len(commands) > 10
    for name in commands:
        assert f"Usage: rszoo {name} " in base.run("rszoo", name, "--help")


def test_what_needs_a_framework_names_the_extra(base: BaseInstall) -> None:
    code = "import rszoo; rszoo.create('resnet-rs-demo')"
    base.run("python", "-c", code, code=1, hint='pip install "rszoo[torch]"')


def test_it_decodes_a_jpeg_as_tensorflow_does(base: BaseInstall) -> None:
    code = (
        "from PIL import Image; from rszoo.inference.images import read_image\n"
        "Image.new('RGB', (40, 40), 'red').save('red.jpg'); print(read_image('red.jpg').exact)"
    )
    assert base.run("python", "-c", code) == "True\n"
