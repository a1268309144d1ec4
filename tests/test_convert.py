"""Conversion: bits, account, identity, reproducibility, the way back to TF1, and what happens when it goes wrong."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import rszoo
from converters.account import take_account
from converters.convert import Identity, convert
from converters.formats import get_format
from converters.formats.tf1 import EMA_SUFFIX, infer_arch, tf1_names
from converters.read.files import open_prefix
from converters.read.local import open_known
from converters.read.source import find_entries
from converters.tensorbundle.bundle import Bundle, write_bundle
from converters.write_back import write_checkpoint
from rszoo.arch.config import BLOCKS_OF_DEPTH, ArchConfig
from rszoo.arch.names import counter_names, to_torch_layout, torch_name
from rszoo.arch.walk import iter_tensors
from rszoo.disk.safetensors_writer import SafetensorsWriter
from rszoo.errors import (
    ArchiveError,
    ConversionError,
    OutputError,
    RszooError,
    SourceNotFoundError,
    UnknownModelError,
    UsageError,
)
from rszoo.folder.model_folder import read_folder, sha256_of
from rszoo.verify.checks import check_source
from rszoo.verify.demo import run_demo
from rszoo.verify.tf1_graph import build_inference
from tests.tf1 import TINY

SPECS = list(iter_tensors(TINY))
SIZE = Identity(image_size=64)


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rewrite(checkpoint, folder: Path, change) -> str:
    """Write the checkpoint anew after `change(values)`; return its prefix."""
    folder.mkdir(exist_ok=True)
    values = dict(checkpoint.values)
    change(values)
    with (folder / "model.ckpt.data-00000-of-00001").open("wb") as data:
        index = write_bundle(sorted(values.items()), data)
    (folder / "model.ckpt.index").write_bytes(index)
    return str(folder / "model.ckpt")


@pytest.mark.parametrize("weights", ["ema", "raw"])
@pytest.mark.parametrize("source", ["archive", "prefix", "folder", "index file"])
def test_every_tensor_is_the_checkpoints_bit_for_bit(tiny_checkpoint, tmp_path, weights, source):
    prefix = tiny_checkpoint.prefix
    path = {
        "archive": tiny_checkpoint.archive,
        "prefix": prefix,
        "folder": prefix.parent,
        "index file": f"{prefix}.index",
    }
    report = convert(str(path[source]), tmp_path / "m", weights=weights, identity=SIZE)
    converted = rszoo.load_weights(tmp_path / "m")
    suffix = EMA_SUFFIX if weights == "ema" else ""
    for spec, name in zip(SPECS, tf1_names(SPECS), strict=True):
        expected = to_torch_layout(spec.kind, tiny_checkpoint.values[name + suffix])
        np.testing.assert_array_equal(converted[torch_name(spec)].view(np.int32), expected.view(np.int32))
    counts = set(counter_names(SPECS))
    assert set(converted) - counts == set(map(torch_name, SPECS))
    assert {int(converted[name]) for name in counts} == {0}
    assert len(SPECS) == len(report["mapped"]) == report["result"]["tensors"] == converted.count


def test_account_covers_every_variable_once(tiny_checkpoint, tmp_path):
    report = convert(str(tiny_checkpoint.archive), tmp_path / "m", identity=SIZE)
    assert json.loads((tmp_path / "m" / "conversion.json").read_text()) == report
    listed = [*report["mapped"], *(name for names in report["skipped"].values() for name in names)]
    assert sorted(listed) == sorted(tiny_checkpoint.values)
    trainable = sum(spec.kind.trainable for spec in SPECS)
    assert {reason: len(names) for reason, names in report["skipped"].items()} == {
        "plain weights; their averages were taken": len(SPECS),
        "momentum of the optimizer": trainable,
        "step counter": 1,
    }
    assert report["source"]["global_step"] == 1234
    assert report["parameters"] == sum(spec.size for spec in SPECS if spec.kind.trainable)


def test_two_runs_give_the_same_bytes_and_no_paths(tiny_checkpoint, tmp_path):
    for name in ("a", "b/c"):
        elsewhere = tmp_path / name / "sub"
        elsewhere.mkdir(parents=True)
        shutil.copy(tiny_checkpoint.archive, elsewhere / "checkpoint.tar.gz")
        convert(str(elsewhere / "checkpoint.tar.gz"), tmp_path / name / "out", identity=SIZE)
    first, second = (everything_in(tmp_path / name / "out") for name in ("a", "b/c"))
    assert first == second
    assert not any(str(tmp_path).encode() in content for content in first.values())
    metadata = rszoo.load_weights(tmp_path / "a" / "out").metadata
    assert metadata == {
        "format": "pt",
        "model": TINY.label,
        "source": "checkpoint.tar.gz",
        "source_sha256": sha256_of(tiny_checkpoint.archive),
        "weights": "ema",
        "converter": f"rszoo {rszoo.__version__}",
    }


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_way_back_to_tf1_is_bit_exact_and_restores(tiny_checkpoint, tmp_path, weights):
    convert(str(tiny_checkpoint.archive), tmp_path / "m", weights=weights, identity=SIZE)
    prefix = write_checkpoint(read_folder(tmp_path / "m"), tmp_path / "tf1", "tf1")
    reader = tf.train.load_checkpoint(str(tmp_path / "tf1"))
    suffix = EMA_SUFFIX if weights == "ema" else ""
    names = tf1_names(SPECS)
    expected = {*names, "global_step"} | ({name + EMA_SUFFIX for name in names} if weights == "ema" else set())
    assert set(reader.get_variable_to_dtype_map()) == expected
    assert reader.get_tensor("global_step") == 1234
    for name in names:
        restored = reader.get_tensor(name + suffix)
        np.testing.assert_array_equal(restored.view(np.int32), tiny_checkpoint.values[name + suffix].view(np.int32))
    images = [np.random.default_rng(0).standard_normal((1, 64, 64, 3)).astype(np.float32)]
    graph = build_inference(TINY)
    (ours,) = graph.run_stages(prefix, images, ema=weights == "ema")
    (theirs,) = graph.run_stages(tiny_checkpoint.prefix, images, ema=weights == "ema")
    np.testing.assert_array_equal(ours["logits"], theirs["logits"])
    again = convert(str(prefix), tmp_path / "again", weights=weights, identity=SIZE)
    assert again["result"]["tensors"] == len(SPECS)
    first, second = (rszoo.load_weights(tmp_path / name) for name in ("m", "again"))
    assert all(np.array_equal(first[name], second[name]) for name in first)


CONV = "conv2d_7/kernel"
BAD_CHECKPOINTS = {
    "average missing": (lambda v: v.pop(CONV + EMA_SUFFIX), r"1 of \d+ missing \(conv2d_7/kernel/Exp"),
    "all averages missing": (
        lambda v: [v.pop(name) for name in list(v) if name.endswith(EMA_SUFFIX)],
        "no averages at all.*--weights raw",
    ),
    "unknown variable": (lambda v: v.update({"lamb/beta": v[CONV]}), r"1 unexpected \(lamb/beta\)"),
    "misshapen": (lambda v: v.update({CONV + EMA_SUFFIX: v[CONV][..., :-1]}), r"1 misshapen \(conv2d_7"),
    "not float32": (lambda v: v.update({CONV + EMA_SUFFIX: v[CONV].astype(np.float64)}), "1 not float32"),
    "one block too many": (
        lambda v: v.update({"conv2d_99/kernel": v["conv2d_6/kernel"]}),
        "does not account for a ResNet-RS",
    ),
    "another network": (
        lambda v: [v.pop(name) for name in list(v) if name.startswith("conv2d")],
        "no variables conv2d/kernel",
    ),
}


@pytest.mark.parametrize("case", BAD_CHECKPOINTS)
def test_what_does_not_add_up_is_an_error(tiny_checkpoint, tmp_path, case):
    change, message = BAD_CHECKPOINTS[case]
    prefix = rewrite(tiny_checkpoint, tmp_path / "ckpt", change)
    with pytest.raises(ConversionError, match=message):
        convert(prefix, tmp_path / "m", identity=SIZE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt"]


def test_averages_alone_are_enough(tiny_checkpoint, tmp_path):
    plain = [name for name in tiny_checkpoint.values if not name.endswith(EMA_SUFFIX)]
    prefix = rewrite(tiny_checkpoint, tmp_path / "ckpt", lambda values: [values.pop(name) for name in plain])
    assert convert(prefix, tmp_path / "m", identity=SIZE)["source"]["variables"] == len(SPECS)
    with pytest.raises(ConversionError, match=f"{len(SPECS)} of {len(SPECS)} missing"):
        convert(prefix, tmp_path / "raw", weights="raw", identity=SIZE)


def test_flipped_byte_names_the_tensor(tiny_checkpoint, tmp_path):
    prefix = rewrite(tiny_checkpoint, tmp_path / "ckpt", lambda values: None)
    index = Path(f"{prefix}.index").read_bytes()
    shard = Path(f"{prefix}.data-00000-of-00001")
    data = bytearray(shard.read_bytes())
    with shard.open("rb") as opened:
        data[Bundle(index, {0: opened}).entries[CONV + EMA_SUFFIX].offset + 5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(RszooError, match=f"CRC32C mismatch.*{CONV}{EMA_SUFFIX}"):
        convert(prefix, tmp_path / "m", identity=SIZE)
    # The plain weights are intact, and are not held up by the damage elsewhere.
    convert(prefix, tmp_path / "m", weights="raw", identity=SIZE)


@pytest.mark.parametrize("depth", BLOCKS_OF_DEPTH)
@pytest.mark.parametrize(
    "extra", [{}, {"width_multiplier": 0.5, "num_classes": 3, "in_chans": 1}, {"width_multiplier": 0.3}]
)
def test_architecture_is_recognized_from_shapes(depth, extra):
    arch = ArchConfig.from_dict({"depth": depth, **extra})
    specs = list(iter_tensors(arch))
    found = infer_arch(dict(zip(tf1_names(specs), (spec.shape for spec in specs), strict=True)))
    assert list(iter_tensors(found)) == specs
    if extra.get("width_multiplier") != 0.3:
        assert found == arch


def test_name_and_content_must_agree(tiny_checkpoint, tmp_path):
    archive = tmp_path / "resnet-rs-101-i192.tar.gz"
    shutil.copy(tiny_checkpoint.archive, archive)
    with pytest.raises(ConversionError, match=r"the name says resnet-rs-101-i192 .tf1., a ResNet-RS-101.*1-2-2-1"):
        convert(str(archive), tmp_path / "m")
    with pytest.raises(ConversionError, match=r"resnet-rs-demo .tf1., a ResNet-RS .blocks 2-2-2-2"):
        convert(str(tiny_checkpoint.archive), tmp_path / "m", identity=Identity(model="resnet-rs-demo"))
    with pytest.raises(UsageError, match="give --image-size PIXELS"):
        convert(str(tiny_checkpoint.archive), tmp_path / "m")
    with pytest.raises(UsageError, match="is of input size 64, but --image-size 65"):
        convert("resnet-rs-demo", tmp_path / "m", identity=Identity(image_size=65))
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]


SOURCES = [
    ("resnet-rs-152", "resnet-rs-152-i256"),
    ("resnetrs50", "resnet-rs-50-i160"),
    ("resnet-rs-152.tar.gz", None),
    ("a/resnet-rs-152", None),
    ("a/resnet-rs-152-i192", "resnet-rs-152-i192"),
    ("a/resnet-rs-152-i192.tar.gz", "resnet-rs-152-i192"),
    ("resnet_rs_152_i192.tgz", "resnet-rs-152-i192"),
    ("https://h/x/resnet-rs-152.tar.gz", None),
    ("https://h/x/resnet-rs-152-i224.tar.gz?signature=a/b", "resnet-rs-152-i224"),
    ("https://h/my.tar.gz", None),
]


@pytest.mark.parametrize(("source", "pair"), SOURCES)
def test_what_a_source_says_it_is(source, pair):
    entries = [entry.name for entry in find_entries(source)]
    assert entries[:1] == ([] if pair is None else [pair])
    # An archive of the Garden has the same name; a registered name is one pair's.
    assert entries[1:] == ([f"{pair}.garden"] if pair is not None and pair in source.replace("_", "-") else [])


def test_registered_name_is_not_shadowed_by_a_former_result(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    convert("resnet-rs-demo", "resnet-rs-demo")
    convert("resnet-rs-demo", "resnet-rs-demo", overwrite=True)
    assert check_source(read_folder("resnet-rs-demo"), None).status == "passed"
    assert rszoo.load_weights("./resnet-rs-demo").count == 194


def test_an_archive_of_another_hash_than_the_manifests_is_refused(tmp_path):
    entry = rszoo.get_entry("resnet-rs-demo")
    wrong = replace(entry, source=replace(entry.source, sha256="0" * 64))
    with pytest.raises(ArchiveError, match=r"SHA-256 is 43820ea1.*the manifest says 0000"):
        open_known(wrong, entry.source.path, tmp_path, None)
    assert list(tmp_path.iterdir()) == []


def test_the_pairs_facts_come_with_its_name(tmp_path):
    convert("resnet-rs-demo", tmp_path / "m")
    config = read_folder(tmp_path / "m").config
    entry = rszoo.get_entry("resnet-rs-demo")
    assert (config.pair, config.arch, config.preprocessing) == (entry.name, entry.arch, entry.preprocessing)
    assert config.labels == entry.labels


def test_existing_results_stay_unless_overwritten(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="not a result of rszoo-convert"):
        convert("resnet-rs-demo", tmp_path / "mine", overwrite=True)
    convert("resnet-rs-demo", tmp_path / "m")
    before = everything_in(tmp_path)
    with pytest.raises(OutputError, match="--overwrite"):
        convert("resnet-rs-demo", tmp_path / "m", weights="raw")
    with pytest.raises(RszooError):
        convert(str(tmp_path / "no.tar.gz"), tmp_path / "m", overwrite=True)
    assert everything_in(tmp_path) == before
    convert("resnet-rs-demo", tmp_path / "m", weights="raw", overwrite=True)
    assert rszoo.load_weights(tmp_path / "m").metadata["weights"] == "raw"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "mine"]


def test_what_is_not_ours_is_never_overwritten(tmp_path):
    convert("resnet-rs-demo", tmp_path / "m")
    (tmp_path / "m" / "NOTES.md").write_text("mine")
    with pytest.raises(OutputError, match="not a result"):
        convert("resnet-rs-demo", tmp_path / "m", overwrite=True)
    convert("resnet-rs-demo", tmp_path / "raw", weights="raw")
    other = tmp_path / "raw" / "config.json"
    other.write_text(other.read_text().replace('"pair": "resnet-rs-demo"', '"pair": null'))
    with pytest.raises(OutputError, match="exists"):
        run_demo(tmp_path / "raw")


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_a_failing_replacement_puts_the_old_result_back(tmp_path, monkeypatch, error):
    convert("resnet-rs-demo", tmp_path / "m")
    before = everything_in(tmp_path)
    rename = Path.rename

    def fail_on_new(self, target):
        if self.name == "new":
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_on_new)
    with pytest.raises((OutputError, KeyboardInterrupt)):
        convert("resnet-rs-demo", tmp_path / "m", weights="raw", overwrite=True)
    assert everything_in(tmp_path) == before


def test_failure_takes_new_parent_folders_away(tmp_path):
    with pytest.raises(RszooError):
        convert(str(tmp_path / "no.tar.gz"), tmp_path / "a" / "b" / "m")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("signal_name", ["SIGINT", "SIGTERM"])
def test_a_stopped_conversion_leaves_nothing(tmp_path, signal_name):
    # Stopped where the archive has been read and the weights would be written. A shell starts what it runs in the
    # background with SIGINT ignored, and Python then leaves it so: the test brings Python's own handler back.
    code = (
        "import os, signal, sys, time; from rszoo.cli.convert import main;"
        "from rszoo.disk.safetensors_writer import SafetensorsWriter;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"
        # Another thread may be the one that gets the signal: the main one hears of it after what it does just then.
        f"stop = lambda *_: (os.kill(os.getpid(), signal.{signal_name}), [time.sleep(0.01) for _ in range(1000)]);"
        "SafetensorsWriter.write = stop;"
        f"sys.argv = ['rszoo-convert', '--ckpt', 'resnet-rs-demo', '--output', {str(tmp_path / 'm')!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == (130 if signal_name == "SIGINT" else 143)
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))


def test_disk_full_is_one_line_and_leaves_nothing(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "rszoo.cli.convert", "--ckpt", "resnet-rs-demo", "--output", str(tmp_path / "m")],
        preexec_fn=limit_file_size,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 5
    assert run.stderr.startswith("error: cannot ")
    assert run.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_place_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        convert("resnet-rs-demo", tmp_path / "m")


@pytest.mark.parametrize("corrupt", ["value", "header"])
def test_a_file_that_reads_back_differently_is_never_published(tmp_path, monkeypatch, corrupt):
    seal = SafetensorsWriter.seal

    def seal_and_corrupt(self):
        sealed = seal(self)
        path = next(tmp_path.rglob("model.safetensors"))
        data = bytearray(path.read_bytes())
        data[-7 if corrupt == "value" else 20] ^= 1
        path.write_bytes(data)
        return sealed

    monkeypatch.setattr(SafetensorsWriter, "seal", seal_and_corrupt)
    with pytest.raises(OutputError, match=r"read back|reads back"):
        convert("resnet-rs-demo", tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_garden_checkpoint_is_named_as_what_it_is(shared, tmp_path):
    shutil.copy(shared / "garden-50-w0125-c11.tar.gz", tmp_path / "resnet-rs-50-i160.tar.gz")
    with pytest.raises(ConversionError, match=r"the name says resnet-rs-50-i160\.garden .*checkpoint \(garden\) holds"):
        convert(str(tmp_path / "resnet-rs-50-i160.tar.gz"), tmp_path / "m")


def test_account_needs_no_particular_order(tiny_checkpoint, tmp_path):
    prefix = rewrite(tiny_checkpoint, tmp_path / "ckpt", lambda values: None)
    with open_prefix(Path(prefix)) as files:
        reader = files.reader
    forward = take_account(get_format("tf1"), reader, "ema")
    reader.entries = dict(reversed(reader.entries.items()))
    backward = take_account(get_format("tf1"), reader, "ema")
    assert forward == backward


def test_memory_does_not_grow_with_the_archive(tmp_path):
    """Ten times the data in other members: the peak stays where it was."""
    peaks = []
    for padding in (0, 300):
        archive = tmp_path / f"{padding}.tar.gz"
        with tarfile.open(rszoo.get_entry("resnet-rs-demo").source.path) as old, tarfile.open(archive, "w:gz") as new:
            for member in old.getmembers():
                new.addfile(member, old.extractfile(member))
            if padding:
                (tmp_path / "zeros").write_bytes(bytes(padding << 20))
                new.add(tmp_path / "zeros", "model.ckpt.extra")
        code = (
            "import resource, sys; from converters.convert import Identity, convert;"
            "convert(sys.argv[1], sys.argv[2], identity=Identity(model='resnet-rs-demo'));"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        command = [sys.executable, "-c", code, str(archive), str(tmp_path / f"m{padding}")]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1024)
    assert peaks[1] < peaks[0] + 20


def test_what_is_no_checkpoint_is_named_as_what_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    convert("resnet-rs-demo", "demo")
    with pytest.raises(UsageError, match=r"is a model folder already, not a checkpoint; .* add --to and a format"):
        convert("./demo", "again")
    with pytest.raises(SourceNotFoundError, match=r"no checkpoint at \./nothing"):
        convert("./nothing", tmp_path / "model")
    with pytest.raises(UnknownModelError, match="unknown model 'nothing'"):
        convert("nothing", tmp_path / "model")
    identity = Identity(model="resnet-rs-50-i160")
    with pytest.raises(ConversionError, match=r"--model says resnet-rs-50-i160 .*; give another, or leave it out"):
        convert("resnet-rs-demo", tmp_path / "model", identity=identity)
