"""The extras: each can be installed alone, brings no framework that it does not name, and is what the docs say."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import uv

ROOT = Path(__file__).parent.parent
EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "optional-dependencies"
]
FRAMEWORKS = {"torch", "keras", "tensorflow", "jax"}
# TensorFlow brings Keras itself.
BROUGHT = {
    "torch": {"torch"},
    "keras": {"keras"},
    "tensorflow": {"keras", "tensorflow"},
    "jax": {"jax"},
    "data": {"keras", "tensorflow"},
    "train": {"keras", "tensorflow"},
    "hub": set(),
    "snappy": set(),
    "keras2": set(),
    "socks": set(),
    "cuda": {"jax"},
    "tpu": {"jax"},
    "all": FRAMEWORKS,
    "test": FRAMEWORKS,
}
# Those of which an installation takes seconds.
SMALL = ("keras", "hub", "snappy")


def names(requirements: list[str]) -> set[str]:
    """The requirements without their versions, `rszoo[...]` as it is."""
    return {re.split(r"[<>=;]", requirement)[0].strip() for requirement in requirements}


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_resolves_alone_and_brings_what_it_names(extra):
    # As pyproject.toml asks for, 3.11 being the oldest Python.
    words = ["--extra", extra, "--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28", "--no-header"]
    command = [uv.find_uv_bin(), "pip", "compile", "--quiet", "--no-annotate", "pyproject.toml", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    resolved = {line.partition("==")[0] for line in done.stdout.splitlines()}
    assert resolved & FRAMEWORKS == BROUGHT[extra]


def test_the_docs_table_is_what_pyproject_says():
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.+) \|$", (ROOT / "docs" / "install.md").read_text(encoding="utf-8"), re.M)
    told = {extra: set(re.split(r", (?![^\[]*\])", brings)) for extra, brings in rows}
    assert told.pop("test") == {"rszoo[all] and the tools"}
    assert told == {extra: names(needs) for extra, needs in EXTRAS.items() if extra != "test"}
    assert list(dict(rows)) == list(EXTRAS)


def test_every_extra_that_a_text_names_is_there():
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("rszoo/**/*.py"), *ROOT.glob("converters/**/*.py")]
    named = {
        extra.strip()
        for file in files
        for listed in re.findall(r"rszoo\[([a-z, ]+)\]", file.read_text(encoding="utf-8"))
        for extra in listed.split(",")
    }
    assert named - set(EXTRAS) == set()
    assert {"torch", "keras", "train"} <= named


@pytest.mark.slow
@pytest.mark.parametrize("extra", SMALL)
def test_an_extra_installs_alone(extra, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    run = [uv.find_uv_bin(), "--quiet"]
    subprocess.run([*run, "venv", tmp_path / "venv"], check=True, env=environment)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([*run, "pip", "install", "--python", python, f"{ROOT}[{extra}]"], check=True, env=environment)
    subprocess.run([*run, "pip", "check", "--python", python], check=True, env=environment)
    done = subprocess.run([python, "-m", "rszoo.cli.main", "list"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_constraints_hold_for_what_the_tests_import():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", text, re.M))
    wanted = {re.sub(r"[-_.]+", "-", name).lower() for name in names(EXTRAS["test"]) | names(EXTRAS["train"])}
    assert {name for name in wanted if "[" not in name} - set(pinned) == set()
    # Which build of PyTorch is installed is for TORCH to say.
    assert "torch" not in pinned
