"""timm's files: state dicts and checkpoints of its train.py, read and written; what such a file may hide."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import rszoo
from converters.convert import Identity, convert
from converters.state_dict import pickled
from converters.write_back import write_checkpoint
from rszoo.arch.config import ArchConfig
from rszoo.arch.names import is_counter
from rszoo.errors import CheckpointError, ConfigError, ConversionError, MissingPackageError, RszooError, UsageError
from rszoo.folder.model_folder import read_folder
from rszoo.folder.records import read_conversion
from rszoo.registry.preprocessing import Preprocessing
from rszoo.verify import stages as parity
from rszoo.verify.checks import verify
from rszoo.verify.given import check_against
from tests.commands import call

ARCH = ArchConfig((1, 1, 2, 1), num_classes=5, width_multiplier=0.125)
SIZE = Identity(image_size=64)
State = dict[str, torch.Tensor]


def values(seed: int, arch: ArchConfig = ARCH) -> State:
    """A state dict as timm's, with random values, positive variances and counts of batches."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in rszoo.create(arch).state_dict().items():
        if is_counter(name):
            state[name] = torch.tensor(seed)
        elif name.endswith("running_var") or tensor.ndim == 1:
            state[name] = torch.rand(tensor.shape, generator=generator) + 0.5
        else:
            state[name] = torch.randn(tensor.shape, generator=generator) / tensor[0].numel() ** 0.5
    return state


@pytest.fixture(scope="module")
def state() -> State:
    return values(1)


@pytest.fixture(scope="module")
def average() -> State:
    return values(2)


def train_checkpoint(state: State, average: State | None, **arguments: Any) -> dict[str, Any]:
    """What timm's `utils/checkpoint_saver.py` gives to `torch.save`."""
    parameter = torch.nn.Parameter(torch.zeros(5))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    saved = {
        "epoch": 3,
        "arch": "resnetrs50",
        "state_dict": OrderedDict(state),
        "optimizer": optimizer.state_dict(),
        "version": 2,
        # The depth that a name says, unless its blocks are given.
        "args": argparse.Namespace(model="resnetrs50", **({"model_kwargs": {"layers": [1, 1, 2, 1]}} | arguments)),
        "amp_scaler": {"scale": 65536.0, "growth_tracker": 3},
        "metric": 77.5,
    }
    return saved if average is None else {**saved, "state_dict_ema": OrderedDict(average)}


def write(path: Path, content: Any, *, legacy: bool = False) -> str:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return str(path)


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def assert_holds(folder: Path, state: State) -> None:
    """A model folder has a state dict's values, bit by bit, and its network gives their outputs."""
    there = load_file(folder / "model.safetensors")
    assert set(there) == set(state)
    for name, tensor in state.items():
        if not is_counter(name):
            assert there[name].numpy().tobytes() == tensor.numpy().tobytes(), name


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "timm_model.", "_orig_mod.module."])
def test_a_state_dict_is_found_behind_what_wrappers_put_before_it(state, tmp_path, prefix, legacy):
    path = write(tmp_path / "x.pth", prefixed(state, prefix), legacy=legacy)
    report = convert(path, tmp_path / "m", identity=SIZE)
    assert_holds(tmp_path / "m", state)
    assert (report["format"], len(report["mapped"])) == ("timm", 137)
    assert sum(map(len, report["skipped"].values())) == 23
    assert read_folder(tmp_path / "m").config.arch == ARCH


@pytest.mark.parametrize(("weights", "chosen"), [("ema", 1), ("raw", 0)])
def test_a_checkpoint_of_train_py_has_two_sets(state, average, tmp_path, weights, chosen):
    saved = train_checkpoint(prefixed(state, "_orig_mod."), average, img_size=96, mean=[0.5, 0.4, 0.3], crop_pct=0.95)
    saved["arch"] = saved["args"].model = "resnetrs50.tf_in1k"
    # Of a published depth, whose settings timm has.
    report = convert(write(tmp_path / "last.pth.tar", saved), tmp_path / "m", weights=weights, identity=SIZE)
    assert_holds(tmp_path / "m", (state, average)[chosen])
    reasons = {reason: len(names) for reason, names in report["skipped"].items()}
    assert reasons["PyTorch's counts of batches, which no network needs"] == 46
    assert reasons["state of the optimizer, and what else is beside the weights"] == 1
    assert len(reasons) == 3
    assert "optimizer/state/0/momentum_buffer" in json.dumps(report["skipped"])
    assert read_folder(tmp_path / "m").config.weights == weights


def test_without_averages_the_one_set_is_taken_and_a_note_says_so(state, tmp_path):
    report = convert(write(tmp_path / "x.pth.tar", train_checkpoint(state, None)), tmp_path / "m", identity=SIZE)
    assert_holds(tmp_path / "m", state)
    assert report["source"]["notes"] == ["the file has one set of weights, and does not say whether they are averages"]


DEEP = ArchConfig((3, 4, 6, 3), num_classes=5)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, Preprocessing(160, 0.91)),
        ({"img_size": None, "input_size": None, "crop_pct": None, "mean": None, "std": None}, Preprocessing(160, 0.91)),
        ({"img_size": 224, "crop_pct": 0.95}, Preprocessing(224, 0.95)),
        ({"input_size": [3, 192, 192], "mean": [0.5, 0.5, 0.5]}, Preprocessing(192, 0.91, mean=(0.5, 0.5, 0.5))),
    ],
)
def test_train_py_says_what_images_went_through(tmp_path, arguments, expected):
    saved = train_checkpoint(values(3, DEEP), None, model_kwargs={}, **arguments)
    done = convert(write(tmp_path / "x.pth.tar", saved), tmp_path / "m")
    assert read_folder(tmp_path / "m").config.preprocessing == expected
    assert done["architecture"] == "ResNet-RS-50"


@pytest.mark.parametrize("arguments", [{"input_size": [3, 192, 224]}, {"crop_pct": 2.0}, {"mean": ["red"]}])
def test_what_train_py_did_and_rszoo_cannot_is_asked_for(tmp_path, arguments):
    path = write(tmp_path / "x.pth.tar", train_checkpoint(values(3, DEEP), None, model_kwargs={}, **arguments))
    with pytest.raises(UsageError, match="--image-size PIXELS"):
        convert(path, tmp_path / "m")
    convert(path, tmp_path / "m", identity=SIZE)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"gp": "max"}, "train.py was given gp='max'"),
        ({"model_kwargs": {"act_layer": "silu"}}, "train.py was given model_kwargs act_layer='silu'"),
        ({"model_kwargs": {}}, "says that it is a 'resnetrs50', and its tensors are of a ResNet-RS .blocks 1-1-2-1"),
    ],
)
def test_what_train_py_made_of_the_network_is_heeded(state, tmp_path, arguments, text):
    path = write(tmp_path / "x.pth.tar", train_checkpoint(state, None, **arguments))
    with pytest.raises(ConversionError, match=text):
        convert(path, tmp_path / "m", identity=SIZE)
    convert(write(tmp_path / "x.pth.tar", train_checkpoint(state, None, bn_eps=1e-2)), tmp_path / "m", identity=SIZE)
    assert read_folder(tmp_path / "m").config.arch.bn_epsilon == 1e-2


def test_values_without_end_are_refused_soon(tmp_path):
    nested: list[Any] = [1]
    for _ in range(9):
        nested = [nested] * 40
    with pytest.raises(CheckpointError, match="it has more than 1000000 values"):
        convert(write(tmp_path / "x.pth", {"a": nested}), tmp_path / "m", identity=SIZE)


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_a_file_whose_name_is_not_utf8(state, tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/k\xff.pth")
    Path(path).write_bytes(Path(write(tmp_path / "x.pth", state)).read_bytes())
    report = convert(path, tmp_path / "m", identity=SIZE)
    assert report["source"]["name"] == "k\\xff.pth"
    assert_holds(tmp_path / "m", state)


def test_a_folder_of_several_files_is_told_to_give_one(state, tmp_path):
    for name in ("last.pth.tar", "best.pth"):
        write(tmp_path / name, state)
    done = call("rszoo-convert", "--ckpt", tmp_path, "--output", tmp_path / "m", "--image-size", 64)
    assert (done.returncode, "give one of the files in it: 'best.pth', 'last.pth.tar'" in done.stderr) == (3, True)


def test_a_safetensors_file_is_read_without_pytorch(state, tmp_path):
    save_file(prefixed(state, "module."), tmp_path / "x.safetensors", {"format": "pt"})
    code = (
        "import sys; from converters.convert import Identity, convert; "
        f"convert({str(tmp_path / 'x.safetensors')!r}, {str(tmp_path / 'm')!r}, identity=Identity(image_size=64)); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert_holds(tmp_path / "m", state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_half_precision_is_widened_exactly(state, tmp_path, dtype, suffix):
    half = {name: tensor if is_counter(name) else tensor.to(dtype) for name, tensor in state.items()}
    path = tmp_path / f"x{suffix}"
    save_file(half, path) if suffix == ".safetensors" else write(path, half)
    report = convert(str(path), tmp_path / "m", identity=SIZE)
    assert_holds(tmp_path / "m", {name: t if is_counter(name) else t.float() for name, t in half.items()})
    assert "137 tensors of half precision were widened to float32, exactly" in report["source"]["notes"]


def test_channels_last_and_other_strides_are_kept_apart(state, tmp_path):
    turned = {n: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for n, t in state.items()}
    convert(write(tmp_path / "x.pth", turned), tmp_path / "m", identity=SIZE)
    assert_holds(tmp_path / "m", state)


@pytest.mark.parametrize("classes", [0, 5])
def test_there_and_back_is_exact(tmp_path, classes):
    # timm has no other widths than the published ones.
    arch = ArchConfig((1, 1, 2, 1), num_classes=classes)
    state = values(4, arch)
    convert(write(tmp_path / "x.pth", state), tmp_path / "m", identity=SIZE)
    folder = read_folder(tmp_path / "m")
    written = write_checkpoint(folder, tmp_path / "back", "timm")
    assert set(load_file(written)) == set(state)
    convert(str(written.parent), tmp_path / "again")
    assert_holds(tmp_path / "again", state)
    assert read_folder(tmp_path / "again").config == folder.config
    # And through Keras 2.
    written = write_checkpoint(read_folder(tmp_path / "again"), tmp_path / "keras2", "keras2")
    convert(str(written), tmp_path / "third", identity=SIZE)
    assert_holds(tmp_path / "third", state)
    # Given to other code, they are the same network.
    checks = {check.name: check for check in verify(read_folder(tmp_path / "third"), against=str(tmp_path / "x.pth"))}
    assert {name for name, check in checks.items() if check.status == "failed"} == set()
    assert checks["torch = original graph"].status == checks["other source"].status == "passed"
    assert checks["other source"].detail == f"all {137 if classes else 135} tensors equal to x.pth, bit by bit"


def test_a_folder_of_timms_says_what_it_is(state, tmp_path):
    labels = ["a", "b", "c", "d", "e"]
    cfg = {"input_size": [3, 96, 96], "crop_pct": 0.9, "mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]}
    keys = {"architecture": "resnetrs50", "model_args": {"layers": [1, 1, 2, 1]}, "num_classes": 5}
    for suffix, name in ((".safetensors", "model.safetensors"), (".bin", "pytorch_model.bin")):
        folder = tmp_path / f"timm{suffix}"
        folder.mkdir()
        save_file(state, folder / name) if suffix == ".safetensors" else write(folder / name, state)
        (folder / "config.json").write_text(json.dumps({**keys, "label_names": labels, "pretrained_cfg": cfg}))
        report = convert(str(folder), tmp_path / f"m{suffix}")
        config = read_folder(tmp_path / f"m{suffix}").config
        assert config.preprocessing == Preprocessing(96, 0.9, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
        assert (config.labels, report["source"]["name"]) == (tuple(labels), name)
        assert_holds(tmp_path / f"m{suffix}", state)
        assert check_against(read_folder(tmp_path / f"m{suffix}"), str(folder)).status == "passed"


def test_a_repository_of_timms_is_converted(hub, state, tmp_path):
    keys = {"architecture": "resnetrs50", "model_args": {"layers": [1, 1, 2, 1]}, "num_classes": 5}
    cfg = {"input_size": [3, 96, 96], "crop_pct": 0.9}
    save_file(state, tmp_path / "model.safetensors")
    write(tmp_path / "pytorch_model.bin", state)
    config = json.dumps({**keys, "pretrained_cfg": cfg}).encode()
    for name in ("model.safetensors", "pytorch_model.bin"):
        repo = f"you/{name.partition('.')[0]}"
        hub.put_repo(repo, {name: (tmp_path / name).read_bytes(), "config.json": config})
        report = convert(f"hf-hub:{repo}", tmp_path / repo)
        assert report["source"]["name"] == f"hf-hub:{repo}"
        assert read_folder(tmp_path / repo).config.preprocessing == Preprocessing(96, 0.9)
        assert_holds(tmp_path / repo, state)
    rszoo.push_to_hub(tmp_path / "you" / "model", "me/mine", force=True)
    with pytest.raises(UsageError, match="hf-hub:me/mine is a converted model, not a checkpoint; get it with `rszoo p"):
        convert("hf-hub:me/mine", tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_timms_copy_of_a_pair_is_that_pair_with_the_published_preprocessing(hub, tmp_path):
    """Its config.json has timm's crop, with which the published accuracy is not reached."""
    arch = rszoo.get_entry("resnet-rs-50-i160").arch
    save_file(values(5, arch), tmp_path / "model.safetensors")
    keys = {"architecture": "resnetrs50", "pretrained_cfg": {"input_size": [3, 160, 160], "crop_pct": 0.91}}
    files = {"model.safetensors": (tmp_path / "model.safetensors").read_bytes(), "config.json": json.dumps(keys)}
    hub.put_repo("timm/resnetrs50.tf_in1k", {n: c if isinstance(c, bytes) else c.encode() for n, c in files.items()})
    convert("hf-hub:timm/resnetrs50.tf_in1k", tmp_path / "m")
    config = read_folder(tmp_path / "m").config
    assert (config.pair, config.preprocessing) == ("resnet-rs-50-i160", Preprocessing(160))
    assert str(read_conversion(tmp_path / "m").source["proof"]).startswith("weak: the repository of timm's")
    assert rszoo.create("hf-hub:timm/resnetrs50.tf_in1k", pretrained=True).preprocessing == Preprocessing(160)


# What a file may hide.


class Evil:
    """Pickled code, which would end the tests."""

    def __reduce__(self):
        return os._exit, (99,)


def one_too_many(state: State) -> Any:
    return {**state, "layer5.0.conv1.weight": torch.zeros(3)}


def one_too_few(state: State) -> Any:
    return {name: tensor for name, tensor in state.items() if name != "layer3.1.bn2.running_var"}


def misshapen(state: State) -> Any:
    return {**state, "fc.bias": torch.zeros(6)}


def other_network(state: State) -> Any:
    """A ResNet-50 of timm's: no stem of four, no gate."""
    plain = {name: tensor for name, tensor in state.items() if ".se." not in name and "conv1." not in name[:6]}
    return {**plain, "conv1.weight": torch.zeros(64, 3, 7, 7)}


def deep_stem_without_gates(state: State) -> Any:
    """A ResNet-50-D of timm's."""
    return {n: t for n, t in state.items() if ".se." not in n and not n.startswith("maxpool")}


def pickled_code(state: State) -> Any:
    return {**state, "evil": Evil()}


def whole_model(state: State) -> Any:
    return torch.nn.Linear(2, 2)


def no_dict(state: State) -> Any:
    return [state["fc.bias"]]


def two_state_dicts(state: State) -> Any:
    return {"state_dict": state, "model": state}


def unknown_average(state: State) -> Any:
    return {"state_dict": state, "swa": prefixed(state, "module.")}


def other_arch(state: State) -> Any:
    return {**train_checkpoint(state, None), "arch": "seresnet50"}


def double(state: State) -> Any:
    return {**state, "fc.bias": state["fc.bias"].double()}


def expanded(state: State) -> Any:
    """A view that claims a million values of one."""
    return {**state, "fc.weight": torch.zeros(1, 1).expand(1000, 256)}


def sparse(state: State) -> Any:
    return {**state, "fc.weight": state["fc.weight"].to_sparse()}


def meta(state: State) -> Any:
    return {**state, "fc.weight": torch.zeros(5, 256, device="meta")}


def itself(state: State) -> Any:
    found: dict[str, Any] = {**state}
    found["again"] = found
    return found


HIDDEN = [
    (one_too_many, ConversionError, r"1 unexpected \(layer5.0.conv1.weight\)"),
    (one_too_few, ConversionError, r"1 of 137 missing \(layer3.1.bn2.running_var\)"),
    (misshapen, ConversionError, r"fc.bias \(6,\), not \(5,\)"),
    (other_network, ConversionError, r"has no conv1.0.weight \(is this one of timm's resnetrs50"),
    (deep_stem_without_gates, ConversionError, "has no maxpool.0.weight"),
    (pickled_code, CheckpointError, r"is refused: it has more than tensors and plain values \(posix._exit\)"),
    (whole_model, CheckpointError, "is refused: it has more than tensors and plain values"),
    (no_dict, CheckpointError, "has no state dict, but a list"),
    (two_state_dicts, ConversionError, "the file has 2 state dicts, at 'state_dict/', 'model/'"),
    (unknown_average, ConversionError, "another state dict, with 'swa/module.conv1.0.weight'"),
    (other_arch, ConversionError, "says that it is a 'seresnet50'"),
    (double, ConversionError, "fc.bias float64"),
    (expanded, CheckpointError, "the values of 'fc.weight' are not all in it"),
    (sparse, CheckpointError, "the values of 'fc.weight' are not all in it"),
    (meta, CheckpointError, "the values of 'fc.weight' are not all in it"),
    (itself, CheckpointError, "is too deep, or has itself"),
]


@pytest.mark.parametrize(("change", "error", "text"), HIDDEN, ids=[change.__name__ for change, *_ in HIDDEN])
def test_what_a_file_hides_is_refused_in_a_line(state, tmp_path, change, error, text):
    path = write(tmp_path / "x.pth", change(state))
    with pytest.raises(error, match=text) as told:
        convert(path, tmp_path / "m", identity=SIZE)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "m").exists()


def test_the_command_refuses_pickled_code_in_a_line(state, tmp_path):
    path = write(tmp_path / "x.pth", pickled_code(state))
    done = call("rszoo-convert", "--ckpt", path, "--output", tmp_path / "m", "--image-size", 64)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert "save the tensors alone, in the program that wrote it: torch.save(model.state_dict()" in done.stderr
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("part", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_a_truncated_file_is_told(state, tmp_path, part, legacy):
    content = Path(write(tmp_path / "whole.pth", state, legacy=legacy)).read_bytes()
    (tmp_path / "x.pth").write_bytes(content[: int(len(content) * part)])
    with pytest.raises(CheckpointError, match=r"x\.pth is damaged"):
        convert(str(tmp_path / "x.pth"), tmp_path / "m", identity=SIZE)


def test_a_compressed_archive_is_refused(state, tmp_path):
    source = write(tmp_path / "x.pth", {**state, "zeros": torch.zeros(1 << 20)})
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(tmp_path / "y.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    with pytest.raises(CheckpointError, match="in it is compressed"):
        convert(str(tmp_path / "y.pth"), tmp_path / "m", identity=SIZE)


def test_another_pickle_is_told(tmp_path):
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"conv1.0.weight": Evil()}))
    with pytest.raises(CheckpointError, match=r"is refused|is damaged, or no file of torch\.save"):
        convert(str(tmp_path / "x.pth"), tmp_path / "m", identity=SIZE)


def test_a_name_without_end_is_refused_at_once(state, tmp_path):
    """PyTorch's own search of its message takes minutes for it."""
    source = write(tmp_path / "x.pth", state)
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(tmp_path / "y.pth", "w") as changed:
        for name in archive.namelist():
            long = b"\x80\x02ccollections\n" + b"O" * 200_000 + b"\n."
            changed.writestr(name, long if name.endswith("data.pkl") else archive.read(name))
    with pytest.raises(CheckpointError, match="it names an object by 200012 characters"):
        convert(str(tmp_path / "y.pth"), tmp_path / "m", identity=SIZE)


def test_an_old_pytorch_is_not_trusted_with_it(state, tmp_path, monkeypatch):
    path = write(tmp_path / "x.pth", state)
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(MissingPackageError, match=r"needs PyTorch 2.10 or newer, here is 2.9.1\+cpu"):
        convert(path, tmp_path / "m", identity=SIZE)


def test_a_model_folders_weights_are_not_taken_for_timms(tiny_folder, tmp_path):
    """A network of the Model Garden has the same names and shapes, and computes something else."""
    with pytest.raises(ConversionError, match="belongs to a model folder of rszoo's"):
        convert(str(tiny_folder.weights_path), tmp_path / "m", identity=SIZE)


def test_a_config_beside_that_is_of_other_tensors_is_told(state, tmp_path):
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "resnetrs50"}')
    with pytest.raises(ConversionError, match=r"the config\.json beside them says a ResNet-RS-50"):
        convert(str(tmp_path / "model.safetensors"), tmp_path / "m")
    for text, told in (("{", "it is not JSON"), ('{"architecture": "resnet18"}', "'resnet18' is not a ResNet-RS")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ConfigError, match=told):
            convert(str(tmp_path / "model.safetensors"), tmp_path / "m")
    # Of other files it says nothing.
    save_file(state, tmp_path / "mine.safetensors")
    convert(str(tmp_path / "mine.safetensors"), tmp_path / "mine", identity=SIZE)
    (tmp_path / "config.json").write_text('{"model_type": "other"}')
    convert(str(tmp_path / "model.safetensors"), tmp_path / "m", identity=SIZE)


def test_flipped_bytes_give_an_error_of_ours_or_other_values(tmp_path):
    # Small, so that most flips hit the structure.
    content = Path(write(tmp_path / "x.pth", {"conv1.0.weight": torch.zeros(2), "a": {"b": [1, "c"]}})).read_bytes()
    rng = np.random.default_rng(0)
    changes: list[Callable[[bytearray], object]] = [
        lambda data: data.__setitem__(int(rng.integers(len(data))), int(rng.integers(256))),
        lambda data: data.__delitem__(slice(start := int(rng.integers(len(data))), start + 3)),
    ]
    for number in range(200):
        data = bytearray(content)
        changes[number % 2](data)
        (tmp_path / "x.pth").write_bytes(data)
        with pytest.raises(RszooError):
            convert(str(tmp_path / "x.pth"), tmp_path / "m", identity=SIZE)


def test_two_frameworks_compute_with_it(state, tmp_path):
    convert(write(tmp_path / "x.pth", state), tmp_path / "m", identity=SIZE)
    model = rszoo.create(ARCH)
    model.load_state_dict(state)
    images = np.random.default_rng(0).standard_normal((2, 75, 75, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    for run in (parity.torch_stages, parity.keras_stages):
        (stages,) = run(read_folder(tmp_path / "m"), [images], "float32")
        assert parity.relative_l2(stages["logits"], expected) <= 2e-6


def test_pickles_of_any_kind_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(pickled, "_MAX_PICKLE_BYTES", 100)
    with pytest.raises(CheckpointError, match=r"data.pkl in it has \d+ bytes"):
        convert(write(tmp_path / "x.pth", {"a": "b" * 200}), tmp_path / "m", identity=SIZE)
