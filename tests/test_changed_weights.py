"""Bits that flipped on the disk are found and named; weights that another tool wrote are not taken for rszoo's."""

from __future__ import annotations

import dataclasses
import json
import logging
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from safetensors import safe_open

import rszoo
from rszoo.arch.config import ArchConfig
from rszoo.arch.names import is_counter
from rszoo.errors import WeightsError
from rszoo.folder.model_folder import read_folder
from tests.commands import call
from tests.conftest import ME
from tests.hub_server import use_hub

LABELS = tuple("abcdefg")
# A head of another number of classes, as `rewrite` takes it.
FIVE = {"fc_weight": torch.ones(5, 2048), "fc_bias": torch.zeros(5)}
IMAGES = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A network that timm has too, so that `config.json` has keys for other tools."""
    torch.manual_seed(0)
    model = rszoo.create(ArchConfig((1, 1, 1, 1), num_classes=7))
    model.preprocessing = rszoo.Preprocessing(64)
    return rszoo.save(model, tmp_path_factory.mktemp("saved") / "model", title="mine", labels=LABELS).path


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def weights_of(folder: Path) -> Path:
    return folder / "model.safetensors"


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << place % 8]))


def spans(path: Path) -> dict[str, tuple[int, int]]:
    """Where the values of each tensor are in a file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__")
    return {name: tuple(8 + length + offset for offset in entry["data_offsets"]) for name, entry in header.items()}


def test_each_flipped_bit_is_found_and_the_tensor_named(folder):
    path, rng = weights_of(folder), random.Random(0)
    found = [(name, place) for name, place in spans(path).items() if not is_counter(name)]
    for number, (name, (start, stop)) in enumerate(rng.sample(found, 20)):
        place = rng.randrange(start, stop)
        flip(path, place)
        for framework in ("torch", "keras") if number == 7 else ("torch",):
            with pytest.raises(WeightsError, match=f"damaged: {name} does not have the checksum"):
                rszoo.create(folder, framework=framework)
        with pytest.raises(WeightsError, match=r"cache verify.*check=False"):
            rszoo.load_weights(folder)[name]
        assert len(rszoo.load_weights(folder, check=False)[name])
        assert rszoo.create(folder, check=False).num_classes == 7
        flip(path, place)
    rszoo.create(folder)


def test_every_way_of_reading_finds_a_flipped_bit(folder, tmp_path, hub, monkeypatch):
    path = weights_of(folder)
    place = spans(path)["fc.weight"][0]
    hub.put_repo("me/mine", {file.name: file.read_bytes() for file in folder.iterdir()})
    use_hub(monkeypatch, hub, tmp_path / "home", ME)
    flip(path, place)
    for load in (
        lambda: rszoo.load_weights(folder, "torch")["fc.weight"],
        lambda: rszoo.load_weights(folder, "keras")["head_dense/kernel"],
        lambda: rszoo.load_weights(folder, mmap=True)["fc.weight"],
        lambda: rszoo.create(folder, mmap=True),
        lambda: rszoo.create(folder, dtype="bfloat16"),
    ):
        with pytest.raises(WeightsError, match=r"fc\.weight does not have the checksum"):
            load()
    Image.new("RGB", (80, 80)).save(tmp_path / "image.png")
    for words in (
        ("rszoo", "predict", folder, tmp_path / "image.png"),
        ("rszoo-convert", "--ckpt", folder, "--to", "tf1", "--output", tmp_path / "back"),
    ):
        done = call(*words)
        assert (done.returncode, "fc.weight does not have the checksum" in done.stderr) == (3, True), done.stderr
    assert not (tmp_path / "back").exists()
    # By ranges, from a repository whose file is damaged.
    hub.put_repo("me/damaged", {file.name: file.read_bytes() for file in folder.iterdir()})
    with pytest.raises(WeightsError, match=r"fc\.weight does not have the checksum"):
        rszoo.load_weights("hf-hub:me/damaged")["fc.weight"]
    assert len(rszoo.load_weights("hf-hub:me/mine")["fc.weight"])


@pytest.mark.parametrize("change", ["order", "title", "values"])
def test_a_file_that_was_written_again_with_its_metadata_has_no_checksums(folder, change, caplog):
    """They are of the header that they were written with; then the values alone say what the weights are."""
    path = weights_of(folder)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if change == "order":
        header = dict(reversed(header.items()))
    if change == "title":
        header["__metadata__"]["model"] = "Mine"
    path.write_bytes(data[:8] + json.dumps(header, separators=(",", ":")).encode().ljust(length) + data[8 + length :])
    if change == "values":
        tensors = {name: value * 2 for name, value in safetensors.torch.load_file(path).items()}
        safetensors.torch.save_file(tensors, path, header["__metadata__"])
    title = rszoo.create(folder).origin.title
    assert title == ("changed since, from mine" if change == "values" else "mine")
    assert len(caplog.records) == (change == "values")


def test_one_tensor_has_the_checksum_of_its_place(folder):
    """Found without parsing the header, and after."""
    names = list(rszoo.load_weights(folder))
    for name in random.Random(1).sample(names, 30):
        assert rszoo.load_weights(folder)[name].size
    parsed = rszoo.load_weights(folder)
    assert sum(parsed[name].nbytes for name in parsed) == parsed.nbytes


def test_files_without_checksums_and_with_those_of_another_file_load(folder, tmp_path):
    path = weights_of(folder)
    plain = safetensors.torch.load_file(path)
    with safe_open(path, "numpy") as opened:
        metadata = opened.metadata()
    safetensors.torch.save_file(plain, tmp_path / "plain.safetensors")
    few = {"fc.bias": plain["fc.bias"] + 1}
    safetensors.torch.save_file(few, tmp_path / "few.safetensors", metadata)
    assert torch.equal(rszoo.load_weights(tmp_path / "plain.safetensors", "torch")["fc.bias"], plain["fc.bias"])
    assert torch.equal(rszoo.load_weights(tmp_path / "few.safetensors", "torch")["fc.bias"], few["fc.bias"])


def rewrite(folder: Path, prefix: str = "", **changed: torch.Tensor) -> dict[str, torch.Tensor]:
    """Write the weights again as a tool does that knows nothing of the record: `fc_weight` for `fc.weight`."""
    tensors = safetensors.torch.load_file(weights_of(folder))
    tensors |= {name.replace("_", ".", 1): value for name, value in changed.items()}
    stored = {prefix + name: value.contiguous() for name, value in tensors.items()}
    safetensors.torch.save_file(stored, weights_of(folder), {"format": "pt"})
    return tensors


def test_the_same_values_in_another_file_are_still_the_same_weights(folder, caplog):
    before = read_folder(folder).config
    rewrite(folder, "timm_model.")
    model = rszoo.create(folder)
    assert (model.origin, caplog.text) == (before, "")
    assert (model.origin.title, model.origin.labels) == ("mine", LABELS)


@pytest.mark.parametrize("prefix", ["", "timm_model."])
def test_other_values_are_not_what_the_record_says(folder, prefix, caplog):
    tensors = rewrite(folder, prefix, fc_bias=torch.arange(7.0))
    with caplog.at_level(logging.WARNING, "rszoo"):
        model = rszoo.create(folder)
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder}: another tool changed model.safetensors since rszoo wrote its record; classes are the tensors', "
        "labels those of config.json, and the title is 'changed since, from mine'"
    ]
    assert (model.origin.title, model.origin.weights) == ("changed since, from mine", "trained")
    # Those at the top level of config.json, which a tool that knows `transformers` keeps.
    assert model.origin.labels == LABELS
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())
    described = json.loads(call("rszoo", "info", folder, "--json").stdout)
    assert (described["title"], described["pair"], described["weights"]) == (model.origin.title, None, "trained")


def test_cp_of_other_weights_over_a_published_model(tmp_path):
    for kind in ("ema", "raw"):
        rszoo.convert_checkpoint("resnet-rs-demo", tmp_path / kind, weights=kind)
    shutil.copyfile(weights_of(tmp_path / "raw"), weights_of(tmp_path / "ema"))
    origin = rszoo.create(tmp_path / "ema").origin
    assert (origin.title, origin.pair, origin.weights) == ("changed since, from resnet-rs-demo", None, "trained")
    done = call("rszoo", "push", tmp_path / "ema", "me/x", "--dry-run")
    assert done.returncode != 0
    assert "model.safetensors has SHA-256" in done.stderr
    assert f"rszoo.save(rszoo.create('{tmp_path / 'ema'}'), NEW)" in done.stderr


def test_weights_in_files_of_other_tools_are_named(folder):
    weights_of(folder).rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"has pytorch_model\.bin, which rszoo does not read; save the model again"):
        rszoo.create(folder)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({}, None),
        ({"label_names": list("vwxyz")}, tuple("vwxyz")),
        ({"id2label": {str(index): label for index, label in enumerate("vwxyz")}}, tuple("vwxyz")),
        ({"label_names": list(LABELS)}, None),
        ({"id2label": {"0": "v", "7": "w"}}, None),
    ],
)
def test_classes_and_blocks_are_what_the_tensors_say(folder, written, expected):
    rewrite(
        folder,
        "timm_model.",
        fc_weight=torch.ones(5, read_folder(folder).config.arch.num_features),
        fc_bias=torch.zeros(5),
    )
    keys = json.loads((folder / "config.json").read_text())
    del keys["id2label"]
    (folder / "config.json").write_text(json.dumps(keys | written))
    model = rszoo.create(folder)
    assert (model.num_classes, model.origin.labels) == (5, expected)
    assert (model.fc.weight == 1).all()
    assert rszoo.create(folder, framework="keras").output_shape == (None, 5)


def test_a_deeper_network_and_other_channels_are_recognized(folder, tmp_path):
    arch = dataclasses.replace(read_folder(folder).config.arch, blocks=(1, 2, 1, 1), in_chans=4)
    other = rszoo.create(arch)
    safetensors.torch.save_file(other.state_dict(), weights_of(folder))
    found = rszoo.create(folder)
    assert found.config == arch
    assert torch.equal(found.layer2[1].conv1.weight, other.layer2[1].conv1.weight)
    safetensors.torch.save_file({"a": torch.ones(2)}, weights_of(folder))
    with pytest.raises(WeightsError, match="1 unexpected"):
        rszoo.create(folder)


def test_an_older_folder_has_no_digest_and_is_believed_unless_shapes_differ(folder):
    keys = json.loads((folder / "config.json").read_text())
    del keys["rszoo"]["digest"]
    (folder / "config.json").write_text(json.dumps(keys))
    rewrite(folder, fc_bias=torch.arange(7.0))
    assert rszoo.create(folder).origin.title == "mine"
    rewrite(folder, **FIVE)
    assert rszoo.create(folder).origin.title == "changed since, from mine"


def test_a_repository_that_another_tool_pushed(folder, hub, tmp_path, monkeypatch):
    use_hub(monkeypatch, hub, tmp_path / "home", ME)
    hub.put_repo("me/mine", {file.name: file.read_bytes() for file in folder.iterdir()})
    tensors = rewrite(folder, "timm_model.", **FIVE)
    # A tool that pushes onto the repository leaves rszoo's account there.
    hub.put_repo("me/changed", {file.name: file.read_bytes() for file in folder.iterdir()})
    partial = {"features_only": True, "out_indices": (1,)}
    for name, title in (("hf-hub:me/mine", "mine"), ("hf-hub:me/changed", "changed since, from mine")):
        assert json.loads(call("rszoo", "info", name, "--json").stdout)["title"] == title
        assert rszoo.create(name, pretrained=True, **partial).origin.title == title
        model = rszoo.create(name, pretrained=True)
        assert (model.origin.title, model.num_classes) == (title, 7 if title == "mine" else 5)
    assert torch.equal(model.layer1[0].conv1.weight, tensors["layer1.0.conv1.weight"])
    for name, files in (("mine", {"conversion.json"}), ("changed", set())):
        rszoo.pull_model(f"hf-hub:me/{name}", tmp_path / name)
        assert {path.name for path in (tmp_path / name).iterdir()} == {"config.json", "model.safetensors"} | files
    assert rszoo.create(tmp_path / "changed").origin.title == "changed since, from mine"


def test_labels_are_where_transformers_does_not_keep_them(folder):
    """It writes the labels that its user gives to `label_names`, unless there are some: ours would always win."""
    keys = json.loads((folder / "config.json").read_text())
    assert "label_names" not in keys
    assert keys["id2label"] == {str(index): label for index, label in enumerate(LABELS)}
    assert keys["pretrained_cfg"]["label_names"] == list(LABELS)


def test_labels_given_to_the_same_weights_are_the_models(folder, caplog):
    keys = json.loads((folder / "config.json").read_text())
    mine = {str(index): label for index, label in enumerate("tuvwxyz")}
    (folder / "config.json").write_text(json.dumps({**keys, "id2label": mine}))
    assert rszoo.create(folder).origin.labels == tuple("tuvwxyz")
    assert [record.getMessage().partition(": ")[2][:23] for record in caplog.records] == ["the labels were changed"]
    # Of another number of classes, or no texts, they are not these weights'.
    for labels in ({"0": "a"}, {**mine, "3": None}):
        (folder / "config.json").write_text(json.dumps({**keys, "id2label": labels}))
        assert rszoo.create(folder).origin.labels == LABELS
