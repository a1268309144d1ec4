"""A model does not depend on the file that it came from: every tensor is contiguous and owns its memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import rszoo
from tests.conftest import ME
from tests.hub_server import use_hub

IMAGES = np.random.default_rng(0).standard_normal((2, 64, 64, 3)).astype(np.float32)
WAYS = {
    "whole": {},
    "adapted": {"num_classes": 3, "in_chans": 1},
    "features": {"features_only": True, "out_indices": (0, 2)},
    "bfloat16": {"dtype": "bfloat16"},
    "float64": {"dtype": "float64"},
    "unchecked": {"check": False},
}
# Keras on PyTorch, in a process of its own: the variables that are not contiguous or share their memory.
KERAS_ON_TORCH = """
import json, sys
import rszoo
found = {}
for way, options in json.loads(sys.argv[2]).items():
    model = rszoo.create(sys.argv[1], framework="keras", **options)
    values = [(variable.path, variable.value) for variable in model.variables]
    starts = [value.untyped_storage().data_ptr() for _, value in values]
    found[way] = [len(values), [
        path for path, value in values
        if not value.is_contiguous() or value.untyped_storage().nbytes() != value.nbytes
        or starts.count(value.untyped_storage().data_ptr()) > 1
    ]]
print(json.dumps(found))
"""


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_folder.path, tmp_path / "model"))


def outputs(model) -> np.ndarray:
    if isinstance(model, torch.nn.Module):
        with torch.no_grad():
            return model(torch.from_numpy(IMAGES).permute(0, 3, 1, 2)).numpy()
    return np.asarray(model(IMAGES, training=False))


def overwrite(path: Path) -> None:
    """Write other values into the file itself, as `cp` and `rsync --inplace` do."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    with path.open("r+b") as file:
        file.write(data[:start] + np.full((len(data) - start) // 4, 0.5, "<f4").tobytes())


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_what_is_written_into_the_file_changes_no_model(folder, framework):
    model, weights = rszoo.create(folder, framework=framework), rszoo.load_weights(folder)
    before, kernel = outputs(model), weights["fc.weight"]
    expected = kernel.copy()
    overwrite(folder / "model.safetensors")
    np.testing.assert_array_equal(outputs(model), before)
    # A shorter file would end this process, were a page of it mapped.
    os.truncate(folder / "model.safetensors", 0)
    np.testing.assert_array_equal(outputs(model), before)
    np.testing.assert_array_equal(kernel, expected)


def test_a_mapped_model_is_the_file(folder):
    model, copied = rszoo.create(folder, mmap=True), rszoo.create(folder)
    np.testing.assert_array_equal(outputs(model), outputs(copied))
    overwrite(folder / "model.safetensors")
    assert (model.fc.weight == 0.5).all()
    # What the model is given stays its own.
    with torch.no_grad():
        model.fc.bias.fill_(7)
    assert (rszoo.load_weights(folder, check=False)["fc.bias"] == 0.5).all()


@pytest.mark.parametrize("way", WAYS)
def test_every_tensor_of_a_torch_model_is_contiguous_and_owns_its_memory(tiny_folder, way):
    check_torch(rszoo.create(tiny_folder.path, **WAYS[way]))


def test_so_is_every_tensor_that_was_drawn_or_came_by_ranges(tiny_folder, hub, monkeypatch, tmp_path):
    check_torch(rszoo.create(tiny_folder.config.arch))
    hub.put_repo("me/tiny", {path.name: path.read_bytes() for path in tiny_folder.path.iterdir()})
    use_hub(monkeypatch, hub, tmp_path, ME)
    check_torch(rszoo.create("hf-hub:me/tiny", pretrained=True, features_only=True, out_indices=(2,)))
    with rszoo.load_weights("hf-hub:me/tiny") as weights:
        loaded = weights.load(list(weights))
    bases = [value if value.base is None else value.base for value in loaded.values()]
    assert sum(base.nbytes for base in bases) == weights.nbytes
    assert len(set(map(id, bases))) == len(bases)


def check_torch(model: torch.nn.Module) -> None:
    state = model.state_dict()
    assert len(state) > 5
    storages = {}
    for name, tensor in state.items():
        assert tensor.is_contiguous(), name
        assert tensor.untyped_storage().nbytes() == tensor.nbytes, name
        assert storages.setdefault(tensor.untyped_storage().data_ptr(), name) == name


def test_so_is_every_variable_of_keras_on_pytorch(tiny_folder):
    """An export to LiteRT of views gave wrong numbers (measured: errors of 18 to 43)."""
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    command = [sys.executable, "-c", KERAS_ON_TORCH, str(tiny_folder.path), json.dumps(WAYS)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["whole"][0] >= tiny_folder.config.arch.num_classes
    assert {way: wrong for way, (_, wrong) in found.items() if wrong} == {}
