"""A format that is made up here, with names, axes, files, sets and defaults of its own: it goes the whole way.

Nothing else knows of it. Checkpoints of it are numpy's `.npz` files, one set of weights after the other, kernels with
PyTorch's axes; its reference is PyTorch, given the weights by this file's own names.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import rszoo
from converters.account import take_account
from converters.convert import Identity, convert
from converters.formats import get_format, list_formats, list_targets, register, unregister
from converters.formats.format import Contents, Export, Format, Reader, Reference
from converters.write_back import write_checkpoint
from rszoo.arch.config import ArchConfig
from rszoo.arch.names import torch_name, torch_shape
from rszoo.arch.walk import iter_tensors
from rszoo.errors import CheckpointError, ConversionError, UsageError
from rszoo.folder.model_folder import ModelFolder, read_folder
from rszoo.folder.records import read_conversion
from rszoo.registry.preprocessing import Preprocessing
from rszoo.verify.checks import check_original, check_source, verify
from tests.commands import call

ARCH = ArchConfig((1, 1, 2, 1), num_classes=5, width_multiplier=0.125, activation="silu", shortcut_pool="always")
FILE = "weights.npz"


class Npz:
    """An `.npz` file as a reader."""

    def __init__(self, path: Path) -> None:
        self._arrays = np.load(path, allow_pickle=False)
        self.entries = {
            name: SimpleNamespace(dtype=values.dtype, shape=values.shape) for name, values in self._arrays.items()
        }

    def read(self, name: str) -> np.ndarray:
        """Return an array."""
        return self._arrays[name]

    def close(self) -> None:
        """Close the file."""
        self._arrays.close()


def open_npz(path: Path) -> Npz | None:
    try:
        return Npz(path) if zipfile.is_zipfile(path) else None
    except ValueError as error:
        raise CheckpointError(f"{path} holds pickled objects, which are not read: {error}") from error


def names_of(arch: ArchConfig, place: str) -> list[str]:
    """The last tensor first in number, so that no order can be right by chance."""
    specs = list(iter_tensors(arch))
    return [f"{place}:{len(specs) - number:04}:{spec.kind.name.lower()}" for number, spec in enumerate(specs)]


def contents_of(reader: Reader) -> Contents:
    blocks, classes = reader.read("blocks"), reader.entries["mean:0001:dense_bias"].shape[0]
    arch = replace(ARCH, blocks=tuple(blocks.tolist()), num_classes=classes)
    sets = {"ema": names_of(arch, "mean"), "raw": names_of(arch, "last")}
    return Contents(arch, sets, skippable={"count of blocks": ["blocks"]}, step="steps")


def write_npz(export: Export, folder: Path) -> str:
    specs = list(iter_tensors(export.config.arch))
    place = "mean" if export.config.weights == "ema" else "last"
    arrays = {name: export.read(spec) for spec, name in zip(specs, names_of(export.config.arch, place), strict=True)}
    np.savez(folder / FILE, blocks=np.array(export.config.arch.blocks), steps=np.array(export.step), **arrays)
    return FILE


def run_reference(folder: ModelFolder, batches: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Return the stages of a PyTorch network with the values of the file that lies beside the folder."""
    import torch

    arrays = np.load(folder.path.parent / FILE)
    model = rszoo.create(folder.config.arch)
    place = "mean" if folder.config.weights == "ema" else "last"
    named = zip(iter_tensors(folder.config.arch), names_of(folder.config.arch, place), strict=True)
    model.load_state_dict({torch_name(spec): torch.from_numpy(arrays[name]) for spec, name in named})
    results = []
    for images in batches:
        with torch.no_grad():
            stages = model.eval().forward_stages(torch.from_numpy(images).permute(0, 3, 1, 2))
        results.append({name: (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).numpy() for name, x in stages.items()})
    return results


MADE_UP = Format(
    name="made-up",
    title="checkpoint of a program that nobody has",
    axes="torch",
    why_not=lambda reader: None if "blocks" in reader.entries else "has no count of blocks",
    contents=contents_of,
    fits=lambda arch: replace(arch, blocks=ARCH.blocks, num_classes=ARCH.num_classes) == ARCH,
    preprocessing=lambda size: Preprocessing(size, crop=0.9, mean=(0.1, 0.2, 0.3)),
    labels=lambda arch: tuple(f"kind {number}" for number in range(arch.num_classes)),
    reference=Reference(f"{__name__}:run_reference", "torch", "given to PyTorch by the made-up names"),
    write=write_npz,
    open_file=open_npz,
)


@pytest.fixture
def made_up() -> Iterator[Format]:
    register(MADE_UP)
    yield MADE_UP
    unregister(MADE_UP.name)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A file with both sets of a small network."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {"blocks": np.array(ARCH.blocks), "steps": np.array(77)}
    for place in ("mean", "last"):
        for spec, name in zip(iter_tensors(ARCH), names_of(ARCH, place), strict=True):
            values = 0.1 * rng.standard_normal(torch_shape(spec))
            arrays[name] = np.abs(1 + values if len(spec.shape) == 1 else values * np.sign(values)).astype(np.float32)
    np.savez(tmp_path / FILE, **arrays)
    return tmp_path / FILE


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_a_made_up_format_is_converted_verified_and_written_back(made_up, checkpoint, tmp_path, weights):
    report = convert(str(checkpoint), tmp_path / "m", weights=weights, identity=Identity(image_size=64))
    folder, values = read_folder(tmp_path / "m"), np.load(checkpoint)
    place = "mean" if weights == "ema" else "last"
    converted = rszoo.load_weights(folder.path)
    for spec, name in zip(iter_tensors(ARCH), names_of(ARCH, place), strict=True):
        np.testing.assert_array_equal(converted[torch_name(spec)], values[name], err_msg=name)

    assert (report["format"], read_conversion(folder.path).format) == ("made-up", "made-up")
    assert report["source"]["global_step"] == 77
    listed = [*report["mapped"], *(name for names in report["skipped"].values() for name in names)]
    assert sorted(listed) == sorted(values.files)
    assert folder.config.arch == ARCH
    assert folder.config.labels == ("kind 0", "kind 1", "kind 2", "kind 3", "kind 4")
    assert (folder.preprocessing.crop, folder.preprocessing.mean) == (0.9, (0.1, 0.2, 0.3))

    outcome = {check.name: check for check in verify(folder, source=str(checkpoint))}
    assert {name for name, check in outcome.items() if check.status != "passed"} == {"published logits"}
    assert "by the made-up names" in outcome["keras = original graph"].detail

    written = write_checkpoint(folder, tmp_path / "back", "made-up")
    assert written == tmp_path / "back" / FILE
    again = np.load(written)
    assert set(again.files) == {"blocks", "steps", *names_of(ARCH, place)}
    for name in again.files:
        np.testing.assert_array_equal(again[name], values[name], err_msg=name)


def test_what_verify_compares_with_is_the_formats_own_reference(made_up, checkpoint, tmp_path):
    convert(str(checkpoint), tmp_path / "m", identity=Identity(image_size=64))
    folder = read_folder(tmp_path / "m")
    arrays = dict(np.load(checkpoint))
    # Two kernels of one shape, of the second and third block of a stage, change places.
    specs = list(iter_tensors(ARCH))
    name_of = dict(zip((spec.layer + spec.kind.name for spec in specs), names_of(ARCH, "mean"), strict=True))
    first, second = name_of["stage3.block0.conv2CONV_KERNEL"], name_of["stage3.block1.conv2CONV_KERNEL"]
    arrays[first], arrays[second] = arrays[second], arrays[first]
    np.savez(checkpoint, **arrays)
    check = check_original(folder, "torch")
    assert (check.status, "first diverges at batch 0 stage3" in check.detail) == ("failed", True)
    assert check_source(folder, str(checkpoint)).status == "failed"


def test_a_registered_format_is_among_those_to_write(made_up, tiny_folder):
    assert list_targets() == ["safetensors", "tf1", "garden", "keras2", "timm", "made-up"]
    done = call("rszoo-convert", "--ckpt", tiny_folder, "--to", "another")
    assert "choose safetensors or tf1 or garden or keras2 or timm or made-up" in done.stderr


def test_formats_are_told_apart_and_refused_by_what_they_hold(made_up, checkpoint, tiny_folder, tmp_path):
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(
        ConversionError, match=r"has no count of blocks\. Known formats: tf1 \(.*\), garden .*, made-up \("
    ):
        convert(str(tmp_path / "other.npz"), tmp_path / "m", identity=Identity(image_size=64))
    convert(str(checkpoint), tmp_path / "m", identity=Identity(image_size=64))
    # Neither can hold the other's network.
    with pytest.raises(ConversionError, match=r"cannot hold this ResNet-RS .*activation silu"):
        write_checkpoint(read_folder(tmp_path / "m"), tmp_path / "back", "tf1")
    with pytest.raises(ConversionError, match=r"cannot hold this ResNet-RS .*activation relu"):
        write_checkpoint(tiny_folder, tmp_path / "back", "made-up")
    with pytest.raises(UsageError, match="choose made-up"):
        write_checkpoint(tiny_folder, tmp_path / "back", "madeup")
    with pytest.raises(UsageError, match="already"):
        register(replace(MADE_UP, name="tf1"))
    assert not (tmp_path / "back").exists()
    assert [known.name for known in list_formats()] == ["tf1", "garden", "keras2", "timm", "made-up"]


def test_a_format_that_names_two_tensors_alike_is_refused(made_up, checkpoint):
    def names_twice(reader: Reader) -> Contents:
        contents = contents_of(reader)
        names = list(contents.names["ema"])
        # Gamma and beta of the stem's first normalization are of one shape: no comparison of values would see it.
        names[2] = names[1]
        return replace(contents, names={"ema": names})

    with pytest.raises(ConversionError, match="made-up has one name for two tensors"):
        take_account(replace(MADE_UP, contents=names_twice), Npz(checkpoint), "ema")
    with pytest.raises(ConversionError, match="has no plain weights; give --weights ema"):
        take_account(replace(MADE_UP, contents=names_twice), Npz(checkpoint), "raw")


def test_an_account_without_a_format_is_tf1s(tiny_folder, tmp_path):
    account = json.loads((tiny_folder.path / "conversion.json").read_text())
    assert account.pop("format") == "tf1"
    (tmp_path / "conversion.json").write_text(json.dumps(account))
    assert read_conversion(tmp_path).format == get_format("tf1").name
