"""`hubconf.py` as torch.hub uses it: from a copy of what a repository has, where no rszoo is installed."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

import rszoo

ROOT = Path(__file__).parent.parent
IMAGES = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32))
# The checkout is on the path by way of the environment; without it, rszoo is found only if torch.hub has put it there.
PRELUDE = """
import importlib.util, json, sys
sys.path[:] = [path for path in sys.path if path not in ("", {root!r})]
# An editable installation leaves a folder rszoo with the manifest alone, which has no loader.
found = map(importlib.util.find_spec, ("rszoo", "converters", "hubconf"))
assert not any(spec and spec.loader for spec in found)
import torch
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A clone's files, where torch.hub would have put those of me/rszoo's branch main; PyTorch's home is above it."""
    folder = tmp_path_factory.mktemp("torch") / "hub" / "me_rszoo_main"
    for package in ("rszoo", "converters"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("hubconf.py", "weights_manifest.json"):
        shutil.copy(ROOT / file, folder / file)
    return folder


def result(repository: Path, code: str):
    """Run code in an interpreter of its own, in an empty folder, whose path does not have the checkout.

    Returns what the last line that it prints says in JSON.
    """
    home = repository.parent.parent
    empty = home / "empty"
    empty.mkdir(exist_ok=True)
    environment = {"TORCH_HOME": str(home), "RSZOO_CACHE": str(home / "cache"), "PATH": "", "HOME": str(empty)}
    program = PRELUDE.format(root=str(ROOT)) + code
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=empty, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_list_and_help_have_the_entry_points_and_nothing_else(repository):
    code = (
        "names = torch.hub.list('me/rszoo:main', trust_repo=True);"
        "helps = {name: torch.hub.help('me/rszoo:main', name, trust_repo=True) for name in names};"
        "print(json.dumps(helps))"
    )
    helps = result(repository, code)
    pairs = {re.sub(r"\W", "_", name): name for name in rszoo.list_models()}
    depths = {f"resnet_rs_{depth}": f"resnet-rs-{depth}" for depth in (50, 101, 152, 200, 270, 350, 420)}
    gardens = {f"resnet_rs_{depth}_garden": f"resnet-rs-{depth}.garden" for depth in (50, 101, 152, 200, 270, 350)}
    named = pairs | depths | gardens
    assert set(helps) == set(named)
    assert len(helps) == 35
    for name, text in helps.items():
        entry = rszoo.get_entry(named[name])
        assert entry.name in text.splitlines()[0]
        assert f"input {entry.image_size} x {entry.image_size}" in text
        assert f"published top-1 {entry.published.top1:.1f} %" in text
        assert "num_classes: another number" in text
    assert helps["resnet_rs_152"].startswith("resnet-rs-152, which means resnet-rs-152-i256: 86.6 M parameters")


def test_the_demo_loads_with_the_same_logits_and_can_be_trained_and_saved(repository, tmp_path):
    torch.save(IMAGES, tmp_path / "images.pt")
    # It is in the cache already, so that loading it needs nothing of the converter; and typer is for commands alone.
    with torch.no_grad():
        expected = rszoo.create("resnet-rs-demo", pretrained=True)(IMAGES)
    code = f"""
import importlib, os
sys.modules["typer"] = None
os.environ["RSZOO_CACHE"] = {os.environ["RSZOO_CACHE"]!r}
model = torch.hub.load({str(repository)!r}, "resnet_rs_demo", source="local", trust_repo=True, pretrained=True)
with torch.no_grad():
    torch.save(model(torch.load({str(tmp_path / "images.pt")!r})), {str(tmp_path / "logits.pt")!r})
assert sys.path.count({str(repository)!r}) == 0
importlib.import_module("rszoo.models.saving").save(model, {str(tmp_path / "mine")!r})
print(json.dumps([sys.modules["rszoo"].__file__, type(model).__name__, model.training]))
"""
    file, kind, training = result(repository, code)
    assert Path(file).is_relative_to(repository)
    assert (kind, training) == ("ResNetRS", False)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)
    with torch.no_grad():
        assert torch.equal(rszoo.create(tmp_path / "mine")(IMAGES), expected)


def test_arguments_are_those_of_create_and_a_missing_package_is_named(repository):
    code = """
from unittest import mock
load = lambda name, *args, **kwargs: torch.hub.load(
    "me/rszoo:main", name, *args, trust_repo=True, **kwargs)
maps = load("resnet_rs_demo", True, features_only=True, out_indices=(1, 2), in_chans=1)
calls = []
with mock.patch("rszoo.create", lambda *args, **kwargs: calls.append([args, kwargs])):
    load("resnet_rs_152_i224", pretrained=True, num_classes=3, dtype="bfloat16", device="cpu")
    load("resnet_rs_50")
    try:
        load("resnet_rs_50", classes=3)
    except TypeError as error:
        calls.append(str(error))
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "isal" else real(name, *rest)
try:
    load("resnet_rs_demo")
except RuntimeError as error:
    calls.append(str(error))
print(json.dumps([len(maps(torch.zeros(1, 1, 32, 32))), calls]))
"""
    count, (chosen, plain, unknown, missing) = result(repository, code)
    assert count == 2
    defaults = {
        **{"pretrained": False, "num_classes": None, "in_chans": None, "features_only": False},
        **{"out_indices": None, "dtype": None, "device": None},
    }
    given = {"pretrained": True, "num_classes": 3, "dtype": "bfloat16", "device": "cpu"}
    assert chosen == [["resnet-rs-152-i224"], {**defaults, **given}]
    assert plain == [["resnet-rs-50"], defaults]
    assert "classes" in unknown
    assert missing == "Missing dependencies: isal"


def test_dependencies_are_what_the_base_package_and_torch_need():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # What is not for every machine is not needed.
    needs = {re.split(r"[<>=]", need)[0] for need in project["dependencies"] if ";" not in need}
    # Commands alone need typer, and recipes PyYAML; pillow is imported by another name.
    expected = {need.replace("-", "_") for need in needs - {"typer", "pyyaml", "pillow"}} | {"torch", "PIL"}
    assert sorted(runpy.run_path(str(ROOT / "hubconf.py"))["dependencies"]) == sorted(expected)
