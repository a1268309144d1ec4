"""Keras's files for the Hub: the same bytes anywhere, loaded where rszoo is not, and read back when written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import torch

import rszoo
from rszoo.errors import OutputError, WeightsError
from rszoo.folder.model_folder import KERAS_KEYS, ModelFolder, read_folder
from rszoo.models.saving import save
from rszoo.publish.keras_files import write_keras_files
from rszoo.registry.preprocessing import Preprocessing
from tests.tf1 import TINY

# Both kinds of dropout: their random states are named by counters, and drawn anew for each model.
CONFIG = replace(TINY, dropout_rate=0.25, drop_connect_rate=0.2)
IMAGES = np.random.default_rng(1).standard_normal((2, 64, 75, 3)).astype(np.float32)
# With the PyTorch backend, Keras would import TensorFlow if it could, which takes seconds and is not needed.
WITHOUT_TENSORFLOW = """
import os, sys
if os.environ["KERAS_BACKEND"] == "torch":
    sys.modules["tensorflow"] = None
"""
LOAD = f"""{WITHOUT_TENSORFLOW}
sys.modules["rszoo"] = sys.modules["converters"] = None
import keras, numpy as np
model = keras.saving.load_model("repository")
np.save("logits.npy", keras.ops.convert_to_numpy(model(np.load("images.npy"), training=False)))
print(sys.getrecursionlimit(), model.compiled, len(model.weights), model.get_layer("stem_conv1").dtype_policy.name)
"""


def random_folder(config, path: Path) -> ModelFolder:
    """A folder with a value of its own in every place of every tensor."""
    model = rszoo.create(config)
    model.preprocessing = Preprocessing(image_size=64)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor += 0.1 * torch.rand(tensor.shape, generator=generator)
    return save(model, path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> ModelFolder:
    """A small network with dropout."""
    return random_folder(CONFIG, tmp_path_factory.mktemp("keras") / "small")


def load_elsewhere(folder: ModelFolder, keys: dict, home: Path, backend: str) -> tuple[np.ndarray, str]:
    """Merge the keys into the folder's config, add what else a repository has, and load it where rszoo is not."""
    repository = home / "repository"
    config = {**json.loads((folder.path / "config.json").read_text()), **keys}
    (repository / "config.json").write_text(json.dumps(config, separators=(",", ":")))
    for name in ("README.md", "conversion.json", "model.safetensors"):
        (repository / name).write_text("Keras has no use for it")
    np.save(home / "images.npy", IMAGES)
    environment = {**os.environ, "KERAS_BACKEND": backend}
    # -P and the folder: neither the checkout nor an installed rszoo is what is imported.
    command = [sys.executable, "-P", "-c", LOAD]
    run = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return np.load(home / "logits.npy"), run.stdout.strip()


def test_keras_loads_a_repository_where_rszoo_is_not(folder, tmp_path):
    (tmp_path / "repository").mkdir()
    keys = write_keras_files(folder, tmp_path / "repository")
    assert tuple(keys) == KERAS_KEYS
    logits, said = load_elsewhere(folder, keys, tmp_path, "torch")
    expected = rszoo.create(folder.path, framework="keras")(IMAGES, training=False)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        other = rszoo.create(folder.path)(torch.from_numpy(IMAGES).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(logits, other, rtol=1e-4, atol=1e-4)
    tensors = rszoo.load_weights(folder.path).count
    assert said == f"1000 False {tensors} float32"
    # rszoo's and timm's side of the same file is as it was.
    (tmp_path / "repository" / "model.safetensors").write_bytes(folder.weights_path.read_bytes())
    assert read_folder(tmp_path / "repository").config == folder.config


def test_the_bytes_depend_on_nothing_but_the_folder(folder, tmp_path):
    # A digit more in every counter of Keras's.
    for _ in range(12):
        keras.layers.Dropout(0.5), keras.layers.Conv2D(3, 3), keras.layers.Activation("relu")
    rszoo.create(folder.path, framework="keras")
    settings = keras.config.floatx(), keras.config.image_data_format(), keras.config.dtype_policy()
    outcomes = {}
    try:
        for name, policy in (("plain", "float32"), ("settings", "mixed_bfloat16")):
            keras.config.set_dtype_policy(policy)
            if name == "settings":
                keras.config.set_floatx("float16")
                keras.config.set_image_data_format("channels_first")
            (tmp_path / name).mkdir()
            keys = write_keras_files(folder, tmp_path / name)
            outcomes[name] = json.dumps(keys), (tmp_path / name / "model.weights.h5").read_bytes()
            assert keras.config.dtype_policy().name == policy
        assert (keras.config.floatx(), keras.config.image_data_format()) == ("float16", "channels_first")
    finally:
        keras.config.set_floatx(settings[0])
        keras.config.set_image_data_format(settings[1])
        keras.config.set_dtype_policy(settings[2])
    code = WITHOUT_TENSORFLOW + (
        "import json, pathlib; from rszoo.folder.model_folder import read_folder;"
        "from rszoo.publish.keras_files import write_keras_files;"
        "keys = write_keras_files(read_folder(sys.argv[1]), pathlib.Path(sys.argv[2]));"
        "pathlib.Path(sys.argv[2], 'keys').write_text(json.dumps(keys))"
    )
    (tmp_path / "process").mkdir()
    # Another process, and another backend.
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    command = [sys.executable, "-c", code, folder.path, tmp_path / "process"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    process = tmp_path / "process"
    outcomes["process"] = (process / "keys").read_text(), (process / "model.weights.h5").read_bytes()
    assert [outcome == outcomes["plain"] for outcome in outcomes.values()] == [True] * 3
    assert [path.name for path in (tmp_path / "plain").iterdir()] == ["model.weights.h5"]


def test_what_layers_leave_out_is_what_they_would_have_anyway(folder, tmp_path):
    slim = write_keras_files(folder, tmp_path)
    # Of a copy: Keras changes what it reads.
    rebuilt = keras.saving.deserialize_keras_object(json.loads(json.dumps(slim)))
    whole = json.loads(json.dumps(keras.saving.serialize_keras_object(rebuilt)))
    built = rszoo.create(folder.path, framework="keras", dtype="float32")
    assert whole == json.loads(json.dumps(keras.saving.serialize_keras_object(built)))
    assert len(json.dumps(slim)) < 0.65 * len(json.dumps(whole))
    layers = [layer for part in slim["config"]["layers"] for layer in part["config"].get("layers", [part])]
    assert {layer["config"]["dtype"] for layer in layers} == {"float32"}
    conv = [layer["config"] for layer in layers if layer["class_name"] == "Conv2D"]
    # Whoever loads it may have set channels_first; and random values start as published.
    assert {layer["data_format"] for layer in conv} == {"channels_last"}
    assert {layer["kernel_initializer"]["class_name"] for layer in conv} == {"VarianceScaling"}
    # The newest options, which older versions of Keras refuse.
    assert not {"renorm", "optional", "quantization_config", "input_axes"} & set(json.dumps(slim).split('"'))


@pytest.mark.parametrize("damage", ["swapped", "zeroed"])
def test_a_file_with_other_values_is_found(folder, damage, tmp_path, monkeypatch):
    save_weights = keras.Model.save_weights

    def save_wrongly(model, path, *rest):
        save_weights(model, path, *rest)
        with h5py.File(path, "r+") as file:
            layers = file["layers/functional_2/layers"]
            first, second = layers["batch_normalization/vars/0"], layers["batch_normalization_1/vars/0"]
            assert first.shape == second.shape
            values = first[...], second[...]
            first[...], second[...] = values[::-1] if damage == "swapped" else (np.zeros_like(values[0]), values[1])

    monkeypatch.setattr(keras.Model, "save_weights", save_wrongly)
    with pytest.raises(OutputError, match=r"model.weights.h5 reads back with other values for stage2_block1_bn1/gamma"):
        write_keras_files(folder, tmp_path)


def test_a_tensor_that_keras_does_not_load_is_found_even_of_zeros(folder, tmp_path, monkeypatch):
    model = rszoo.create(folder.path)
    torch.nn.init.zeros_(model.fc.bias)
    zeros = save(model, tmp_path / "zeros")
    load_weights = keras.Model.load_weights

    def load_all_but_one(model, path):
        bias = model.get_layer("head_dense").bias
        before = np.asarray(bias).copy()
        load_weights(model, path)
        bias.assign(before)

    monkeypatch.setattr(keras.Model, "load_weights", load_all_but_one)
    with pytest.raises(OutputError, match="other values for head_dense/bias"):
        write_keras_files(zeros, tmp_path)


def test_the_weights_are_those_of_the_folders_file(folder, tmp_path):
    twin = random_folder(replace(CONFIG, drop_connect_rate=0.1), tmp_path / "twin")
    (tmp_path / "twin" / "model.raw.safetensors").write_bytes(folder.weights_path.read_bytes())
    write_keras_files(replace(twin, weights_file="model.raw.safetensors"), tmp_path)
    with h5py.File(tmp_path / "model.weights.h5") as file:
        bias = file["layers/dense/vars/1"][...]
    np.testing.assert_array_equal(bias, rszoo.load_weights(folder.path)["fc.bias"])
    other = random_folder(replace(CONFIG, num_classes=5), tmp_path / "other")
    (other.path / "model.safetensors").write_bytes(folder.weights_path.read_bytes())
    with pytest.raises(WeightsError, match="2 misshapen"):
        write_keras_files(other, tmp_path)


@pytest.mark.slow
def test_the_deepest_loads_at_the_default_recursion_limit(tmp_path):
    folder = random_folder(rszoo.get_entry("resnet-rs-420").arch, tmp_path / "420")
    (tmp_path / "repository").mkdir()
    keys = write_keras_files(folder, tmp_path / "repository")
    assert len(json.dumps(keys, separators=(",", ":"))) < 1_150_000
    logits, said = load_elsewhere(folder, keys, tmp_path, "tensorflow")
    assert said == f"1000 False {rszoo.load_weights(folder.path).count} float32"
    with torch.no_grad():
        expected = rszoo.create(folder.path)(torch.from_numpy(IMAGES).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
