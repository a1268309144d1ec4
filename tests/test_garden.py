"""The Model Garden's checkpoints: numbers against the original code's outputs and TensorFlow's own reading."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file

import rszoo
from converters.convert import Identity, convert
from converters.formats.garden import layer_paths
from converters.tensorbundle.bundle import Bundle, write_bundle
from converters.tensorbundle.object_graph import OBJECT_GRAPH, ObjectGraph, write_graph
from converters.tensorbundle.wire import read_message, write_field
from converters.write_back import write_checkpoint
from rszoo.arch.config import ArchConfig
from rszoo.arch.names import to_torch_layout, torch_name
from rszoo.arch.walk import iter_tensors
from rszoo.errors import CheckpointError, ConversionError, RszooError, UsageError
from rszoo.folder.model_folder import ModelFolder, read_folder
from rszoo.registry.manifest import get_entry
from rszoo.registry.preprocessing import Preprocessing
from rszoo.verify import stages as parity
from rszoo.verify.checks import check_original, verify
from rszoo.verify.garden_graph import Classifier
from tests.commands import call
from tests.garden import OPS, SAVED, TINY, GardenCheckpoint, write_garden
from tests.manifests import model as model_of
from tests.manifests import own
from tests.servers import FaultServer

SIZE = Identity(image_size=64)
IMAGES = [np.random.default_rng(size).standard_normal((2, size, size, 3)).astype(np.float32) for size in (64, 75)]
RUNS: dict[str, Callable[..., list[parity.Stages]]] = {"torch": parity.torch_stages, "keras": parity.keras_stages}
FIXTURE = "garden-50-w0125-c11.tar.gz"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, GardenCheckpoint]:
    """The same small network, as each of the things that can be saved."""
    return {kind: write_garden(TINY, tmp_path_factory.mktemp(kind), saved=kind) for kind in SAVED}


@pytest.fixture(scope="module")
def folder(saved, tmp_path_factory) -> ModelFolder:
    """Its averages, converted."""
    path = tmp_path_factory.mktemp("converted") / "m"
    convert(str(saved["trainer"].prefix), path, identity=SIZE)
    return read_folder(path)


def tensors_of(network: Classifier) -> dict[str, np.ndarray]:
    """The values of a network by PyTorch's names, found by the objects and not by the names in a checkpoint."""
    specs = list(iter_tensors(TINY))
    found = {}
    for spec, path in zip(specs, layer_paths(specs), strict=True):
        part, *names = path.split("/")
        place = network.backbone if part == "backbone" else network
        for name in names:
            place = network.dense if name == "layer_with_weights-1" and part == "model" else child(place, name)
        found[torch_name(spec)] = to_torch_layout(spec.kind, place.numpy())
    return found


def child(place: tf.Module, name: str) -> tf.Module | tf.Variable:
    return place._trackable_children()[name]


def assert_same_values(folder: Path, expected: dict[str, np.ndarray]) -> None:
    there = load_file(folder / "model.safetensors")
    assert expected.keys() <= there.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(there[name], values, err_msg=name)


@pytest.mark.parametrize(("size", "weights"), list(itertools.product(("64", "75"), ("ema", "raw"))))
def test_equals_outputs_of_the_original_code(shared, tmp_path, size, weights):
    """The shared fixture: checkpoint and outputs of tensorflow/models' own code."""
    convert(str(shared / FIXTURE), tmp_path / "m", weights=weights, identity=SIZE)
    folder = read_folder(tmp_path / "m")
    assert folder.config.arch == ArchConfig((3, 4, 6, 3), num_classes=11, width_multiplier=0.125, **OPS)
    reference = np.load(shared / "garden_reference_outputs.npz")
    for framework, run in RUNS.items():
        (stages,) = run(folder, [reference[f"{size}/input_nhwc"]], "float32")
        for number in (1, 2, 3, 4):
            expected = reference[f"{size}/{weights}/endpoint{number + 1}"]
            height = stages[f"stage{number}"].shape[1]
            step = max(1, height // 8)
            subsampled = stages[f"stage{number}"][:, ::step, ::step, ::4]
            assert parity.relative_l2(subsampled, expected) <= 2e-6, (framework, number)
        assert parity.relative_l2(stages["logits"], reference[f"{size}/{weights}/logits"]) <= 2e-6, framework
        other = "raw" if weights == "ema" else "ema"
        assert parity.relative_l2(stages["logits"], reference[f"{size}/{other}/logits"]) > 1e-2


@pytest.mark.parametrize(("kind", "weights"), list(itertools.product(SAVED, ("ema", "raw"))))
def test_whatever_was_saved_the_values_are_found_by_the_objects(saved, tmp_path, kind, weights):
    checkpoint = saved[kind]
    names = [name for name, _ in tf.train.list_variables(str(checkpoint.prefix))]
    # The four spell the names in three ways.
    assert any(name.startswith({"alone": "layer_with", "model": "model/layer"}.get(kind, "backbone")) for name in names)
    account = convert(str(checkpoint.prefix), tmp_path / "m", weights=weights, identity=SIZE)
    has_averages = kind in ("trainer", "model")
    assert_same_values(
        tmp_path / "m", tensors_of(checkpoint.ema if has_averages and weights == "ema" else checkpoint.raw)
    )
    listed = [*account["mapped"], *(name for names in account["skipped"].values() for name in names)]
    assert sorted(listed) == sorted(names)
    assert any("has one set of weights" in note for note in account["source"].get("notes", ())) == (not has_averages)
    assert account["source"]["global_step"] == (None if kind == "alone" else 5)
    assert account["format"] == "garden"
    config = read_folder(tmp_path / "m").config
    assert (config.arch, config.preprocessing.interpolation) == (TINY, "bilinear")


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_both_frameworks_equal_tensorflow(saved, tmp_path, weights):
    convert(str(saved["trainer"].prefix), tmp_path / "m", weights=weights, identity=SIZE)
    network = saved["trainer"].ema if weights == "ema" else saved["trainer"].raw
    expected = [network.stages(images) for images in IMAGES]
    for run in RUNS.values():
        errors = parity.stage_errors(run(read_folder(tmp_path / "m"), IMAGES, "float32"), expected)
        assert max(errors.values()) <= 2e-6, errors


@pytest.mark.slow
@pytest.mark.parametrize("depth", [50, 350])
def test_full_depths_equal_tensorflow(depth, tmp_path):
    arch = get_entry(f"resnet-rs-{depth}.garden").arch
    checkpoint = write_garden(replace(arch, dropout_rate=0.0, drop_connect_rate=0.0), tmp_path)
    convert(str(checkpoint.prefix), tmp_path / "m", identity=Identity(model=f"resnet-rs-{depth}.garden"))
    expected = [checkpoint.ema.stages(images) for images in IMAGES]
    for run in RUNS.values():
        errors = parity.stage_errors(run(read_folder(tmp_path / "m"), IMAGES, "float32"), expected)
        assert max(errors.values()) <= 2e-6, errors


@pytest.mark.parametrize("framework", ["torch", "keras"])
@pytest.mark.parametrize(
    ("field", "value", "stage"),
    [
        ("activation", "relu", "stem"),
        ("strided_padding", "symmetric", "stem"),
        ("shortcut_pool", "strided", "stage1"),
    ],
)
def test_each_difference_to_tf1_matters(saved, folder, framework, field, value, stage):
    arch = replace(TINY, **{field: value})
    other = replace(folder, config=replace(folder.config, arch=arch))
    expected = [saved["trainer"].ema.stages(images) for images in IMAGES]
    errors = parity.stage_errors(RUNS[framework](other, IMAGES, "float32"), expected)
    first = next(name for name, error in errors.items() if error > 1e-3)
    assert stage in first, errors


def test_verify_restores_it_by_tensorflow(saved, folder):
    checks = {check.name: check for check in verify(folder, source=str(saved["trainer"].prefix))}
    assert {name for name, check in checks.items() if check.status != "passed"} == {"published logits"}
    assert "restored by tf.train.Checkpoint" in checks["torch = original graph"].detail


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_back_and_forth_is_exact_and_tensorflow_restores_it(saved, tmp_path, weights):
    convert(str(saved["trainer"].prefix), tmp_path / "m", weights=weights, identity=SIZE)
    written = write_checkpoint(read_folder(tmp_path / "m"), tmp_path / "back", "garden")
    network = Classifier(TINY)
    network.restore(written)
    model = tf.Module()
    model._track_trackable(network.backbone, "layer_with_weights-0")
    model._track_trackable(network.dense, "layer_with_weights-1")
    counter = tf.Variable(0, dtype=tf.int64)
    everything = tf.train.Checkpoint(model=model, backbone=network.backbone, global_step=counter)
    everything.restore(str(written)).assert_consumed().assert_existing_objects_matched()
    expected = tensors_of(saved["trainer"].ema if weights == "ema" else saved["trainer"].raw)
    for name, values in tensors_of(network).items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)
    assert tf.train.latest_checkpoint(str(tmp_path / "back")) == str(written)
    reader = tf.train.load_checkpoint(str(written))
    assert reader.get_tensor("global_step/.ATTRIBUTES/VARIABLE_VALUE") == 5
    convert(str(written), tmp_path / "again", weights=weights, identity=SIZE)
    assert_same_values(tmp_path / "again", expected)


def test_the_model_of_tensorflow_models_restores_it_and_computes_the_same(folder, tmp_path):
    """Where tf-models-official is installed; docs/conversion.md says how."""
    backbones = pytest.importorskip("official.vision.modeling.backbones.resnet", reason="tf-models-official is missing")
    from official.vision.modeling.classification_model import ClassificationModel
    from tf_keras.layers import InputSpec

    backbones.RESNET_SPECS[7] = [("bottleneck", *pair) for pair in zip(TINY.stage_widths, TINY.blocks, strict=True)]
    backbone = backbones.ResNet(
        7,
        input_specs=InputSpec(shape=(None, None, None, 3)),
        depth_multiplier=0.125,
        stem_type="v1",
        resnetd_shortcut=True,
        replace_stem_max_pool=True,
        se_ratio=0.25,
        activation="swish",
        norm_momentum=0.0,
        norm_epsilon=1e-5,
    )
    model = ClassificationModel(
        backbone, num_classes=7, input_specs=InputSpec(shape=(None, None, None, 3)), dropout_rate=0.25
    )
    written = write_checkpoint(folder, tmp_path / "back", "garden")
    for restoring in (tf.train.Checkpoint(model=model), tf.train.Checkpoint(backbone=backbone)):
        restoring.read(str(written)).expect_partial().assert_existing_objects_matched()
    for framework, run in RUNS.items():
        for images, stages in zip(IMAGES, run(folder, IMAGES, "float32"), strict=True):
            error = parity.relative_l2(stages["logits"], model(images, training=False).numpy())
            assert error <= 2e-6, framework


def test_the_background_is_named_and_dropped_on_request(tmp_path, use_manifest):
    use_manifest(small_pair())
    pair = "resnet-rs-50-i160.garden"
    checkpoint = write_garden(SMALL, tmp_path)
    archive = checkpoint.archive(tmp_path / "resnet-rs-50-i160.tar.gz")
    # Its name says TF1 and its content the Garden.
    convert(str(archive), tmp_path / "all")
    everything = read_folder(tmp_path / "all").config
    assert (everything.pair, everything.arch.num_classes) == (pair, 1001)
    assert everything.labels[:2] == ("background", get_entry("resnet-rs-50").labels[0])
    done = call("rszoo-convert", "--ckpt", archive, "--drop-background", "--output", tmp_path / "dropped", "--json")
    assert done.returncode == 0, done.stderr
    assert any("background, was dropped" in note for note in json.loads(done.stdout)["source"]["notes"])
    dropped = read_folder(tmp_path / "dropped")
    assert (dropped.config.pair, dropped.config.arch.num_classes) == (pair, 1000)
    assert dropped.config.labels == get_entry("resnet-rs-50").labels
    whole, part = (load_file(tmp_path / name / "model.safetensors") for name in ("all", "dropped"))
    for name in ("fc.weight", "fc.bias"):
        np.testing.assert_array_equal(part[name], whole[name][1:])
    checks = {check.name: check.status for check in verify(dropped, source=str(archive))}
    assert (checks["source"], checks["torch = original graph"]) == ("passed", "passed")
    # Of 1000 classes, as some published archives may have.
    of_1000 = write_garden(replace(SMALL, num_classes=1000), tmp_path / "x")
    convert(str(of_1000.prefix), tmp_path / "thousand", identity=Identity(model=pair))
    assert read_folder(tmp_path / "thousand").config.labels == get_entry("resnet-rs-50").labels
    with pytest.raises(UsageError, match="has 1000 classes; only of 1001 the first is the background"):
        convert(str(of_1000.prefix), tmp_path / "no", identity=Identity(model=pair), drop_background=True)
    assert not (tmp_path / "no").exists()


#: A pair of the registry, narrow.
SMALL = ArchConfig((3, 4, 6, 3), num_classes=1001, width_multiplier=0.03125, **OPS)


def small_pair() -> dict:
    """Return a manifest whose smallest Garden pair is narrow."""
    values = own()
    model_of(values, "resnet-rs-50-i160.garden")["arch"]["width_multiplier"] = 0.03125
    return values


def test_a_registered_pair_is_downloaded_and_created(tmp_path, monkeypatch, use_manifest):
    use_manifest(small_pair())
    monkeypatch.setenv("RSZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    checkpoint = write_garden(SMALL, tmp_path)
    archive = checkpoint.archive(tmp_path / "x.tar.gz").read_bytes()
    with FaultServer(objects={"/tf_model_garden/vision/resnet-rs/resnet-rs-50-i160.tar.gz": archive}) as server:
        monkeypatch.setenv("RSZOO_GCS_ENDPOINT", server.endpoint)
        model = rszoo.create("resnet-rs-50-i160.garden", pretrained=True)
        keras_model = rszoo.create("resnet-rs-50.garden", pretrained=True, framework="keras")
    assert (model.num_classes, keras_model.output_shape[-1]) == (1001, 1001)
    assert model.preprocessing == Preprocessing(160, interpolation="bilinear")
    expected = checkpoint.ema.stages(IMAGES[0])["logits"]
    import torch

    with torch.no_grad():
        logits = model(torch.from_numpy(IMAGES[0]).permute(0, 3, 1, 2)).numpy()
    assert parity.relative_l2(logits, expected) <= 2e-6
    assert parity.relative_l2(np.asarray(keras_model(IMAGES[0], training=False)), expected) <= 2e-6


def test_the_registry_has_ten_of_them_and_untagged_names_stay_tf1():
    pairs = rszoo.list_models(family="garden")
    assert len(pairs) == 10
    assert all(name.endswith(".garden") for name in pairs)
    assert [get_entry(name).published.top1 for name in pairs] == [
        79.1,
        80.2,
        81.3,
        81.9,
        82.5,
        83.1,
        83.5,
        83.6,
        83.7,
        84.2,
    ]
    assert [get_entry(name).published.top5 for name in pairs] == [
        94.5,
        94.9,
        95.6,
        95.8,
        96.1,
        96.3,
        96.6,
        96.6,
        96.7,
        96.9,
    ]
    for name in ("resnet-rs-50", "resnetrs50", "resnet-rs-50-i160"):
        assert get_entry(name).family.name == "tf1"
    assert get_entry("resnet-rs-350.garden").name == "resnet-rs-350-i320.garden"
    done = call("rszoo", "list", "--family", "garden")
    assert done.stdout.count(".garden") == 10
    assert "choose tf1 or garden or demo" in call("rszoo", "list", "--family", "tf2").stderr


def test_the_two_lineages_are_told_apart(saved, tiny_folder, tiny_checkpoint, folder, tmp_path):
    with pytest.raises(ConversionError, match=r"--model says resnet-rs-50-i160 \(tf1\).*checkpoint \(garden\)"):
        convert(str(saved["trainer"].prefix), tmp_path / "m", identity=Identity(model="resnet-rs-50-i160"))
    with pytest.raises(ConversionError, match=r"--model says resnet-rs-50-i160.garden \(garden\).*checkpoint \(tf1\)"):
        convert(str(tiny_checkpoint.archive), tmp_path / "m", identity=Identity(model="resnet-rs-50-i160.garden"))
    for given, target in ((folder.path, "tf1"), (tiny_folder.path, "garden")):
        done = call("rszoo-convert", "--ckpt", given, "--to", target, "--output", tmp_path / "m")
        assert (done.returncode, done.stderr.count("\n")) == (3, 1)
        assert "its own code would compute something else" in done.stderr
    assert not (tmp_path / "m").exists()


def test_timm_is_told_nothing(folder, tmp_path):
    config = json.loads((folder.path / "config.json").read_text())
    assert set(config) == {"rszoo"}
    assert check_original(folder, "torch").status == "passed"
    rszoo.verify_model(folder.path)
    done = call("rszoo", "push", folder.path, "me/x", "--dry-run", RSZOO_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert "timm has no such network" in done.stdout
    assert "import timm" not in done.stdout
    done = call("rszoo-convert", "--ckpt", folder.path, "--to", "timm", "--output", tmp_path / "m")
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert "a state dict of timm's resnetrs cannot hold this ResNet-RS" in done.stderr
    assert not (tmp_path / "m").exists()


# What is wrong with a checkpoint's graph or its variables.


def rewritten(checkpoint: GardenCheckpoint, folder: Path, change: Callable[[dict, bytes], bytes | None]) -> Path:
    """Write a checkpoint anew, with a changed graph or other tensors; return its prefix."""
    with open(f"{checkpoint.prefix}.data-00000-of-00001", "rb") as data:
        bundle = Bundle(Path(f"{checkpoint.prefix}.index").read_bytes(), {0: data})
        tensors = {name: bundle.read(name) for name in bundle.entries if name != OBJECT_GRAPH}
        graph = bundle.read_string(OBJECT_GRAPH)
    tensors[OBJECT_GRAPH] = change(tensors, graph) or graph
    with (folder / "ckpt.data-00000-of-00001").open("wb") as data:
        (folder / "ckpt.index").write_bytes(write_bundle(sorted(tensors.items()), data))
    return folder / "ckpt"


def forget_averages(tensors: dict, graph: bytes) -> None:
    for name in [name for name in tensors if "average" in name][:3]:
        del tensors[name]


def renamed(old: str, new: str) -> Callable[[dict, bytes], bytes]:
    assert len(old) == len(new)
    return lambda tensors, graph: graph.replace(old.encode(), new.encode())


def without_slots_of_one(tensors: dict, graph: bytes) -> bytes:
    """Leave out the first average."""
    out, left = b"", 1
    for number, node in read_message(graph):
        kept = b""
        for field, value in read_message(node):
            drop = field == 3 and b"average" in value and left
            left -= bool(drop)
            kept += b"" if drop else write_field(field, value)
        out += write_field(number, kept) if kept else bytes([number << 3 | 2, 0])
    return out


def cyclic(tensors: dict, graph: bytes) -> bytes:
    """Every object has the first as a child; the optimizer is one with itself."""
    back = write_field(1, write_field(2, b"again"))
    return b"".join(write_field(number, node + back) for number, node in read_message(graph))


def cut_between_objects(tensors: dict, graph: bytes) -> bytes:
    return b"".join(write_field(*one) for one in list(read_message(graph))[:9])


def add_a_variable(tensors: dict, graph: bytes) -> None:
    tensors["strange"] = np.zeros(3, np.float32)


def halve(tensors: dict, graph: bytes) -> None:
    for name in [name for name in tensors if name.startswith("model/layer_with_weights-1/")]:
        tensors[name] = tensors[name].astype(np.float16)


def shared_variable(tensors: dict, graph: bytes) -> bytes:
    """The second attribute of the first normalization is its first, too."""
    nodes = [node for _, node in read_message(graph)]
    parsed = ObjectGraph(graph)
    norm = parsed.find(0, "backbone/layer_with_weights-1")
    ends = parsed.nodes[norm].children
    child = write_field(1, write_field(1, ends["gamma"]) + write_field(2, b"beta"))
    nodes[norm] += child
    return b"".join(write_field(1, node) if node else b"\x0a\0" for node in nodes)


BROKEN = [
    ("truncated", lambda _, graph: graph[:-7], CheckpointError, "ends before its last field"),
    ("cut between objects", cut_between_objects, CheckpointError, "there is no object"),
    ("empty", lambda *_: write_field(2, 1), CheckpointError, "has 0 objects or more"),
    ("text", lambda *_: b"no graph at all", RszooError, "damaged|not of a ResNet-RS"),
    ("too many", lambda *_: b"\x0a\x00" * 1_000_001, CheckpointError, "has 1000001 objects or more"),
    ("no gate", renamed("_squeeze_excitation", "_squeeze_excitatiom"), ConversionError, "72 unexpected"),
    ("EfficientNet", renamed("_conv2", "_dwise"), ConversionError, "is no bottleneck block"),
    ("no head", renamed("layer_with_weights-1", "layer_with_weights-x"), ConversionError, "no classifier with"),
    ("a slot is missing", without_slots_of_one, ConversionError, "averages of some variables.*; give --weights raw"),
    ("two are one", shared_variable, ConversionError, "stem|are one variable in its object graph"),
    ("averages are gone", forget_averages, ConversionError, "missing"),
    ("unknown variable", add_a_variable, ConversionError, "strange"),
    ("half precision", halve, ConversionError, "float16"),
]


@pytest.mark.parametrize(("change", "error", "text"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_what_is_damaged_or_another_network_is_told_in_a_line(saved, tmp_path, change, error, text):
    prefix = rewritten(saved["trainer"], tmp_path, change)
    with pytest.raises(error, match=text) as told:
        convert(str(prefix), tmp_path / "m", identity=SIZE)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "m").exists()


def test_objects_that_have_each_other_do_no_harm(saved, folder, tmp_path):
    prefix = rewritten(saved["trainer"], tmp_path, cyclic)
    convert(str(prefix), tmp_path / "m", identity=SIZE)
    assert_same_values(tmp_path / "m", tensors_of(saved["trainer"].ema))


def test_a_string_is_read_and_written_as_tensorflow_does(saved, tmp_path):
    reader = tf.train.load_checkpoint(str(saved["trainer"].prefix))
    with open(f"{saved['trainer'].prefix}.data-00000-of-00001", "rb") as data:
        bundle = Bundle(Path(f"{saved['trainer'].prefix}.index").read_bytes(), {0: data})
        assert bundle.read_string(OBJECT_GRAPH) == reader.get_tensor(OBJECT_GRAPH)
        with pytest.raises(CheckpointError, match="has no string 'x'"):
            bundle.read_string("x")
    for length in (0, 1, 127, 128, 70_000):
        text = bytes(range(256)) * 300
        with (tmp_path / "m.data-00000-of-00001").open("wb") as data:
            (tmp_path / "m.index").write_bytes(write_bundle([("text", text[:length]), ("w", np.ones(2))], data))
        reader = tf.train.load_checkpoint(str(tmp_path / "m"))
        assert (reader.get_tensor("text"), reader.get_tensor("w").tolist()) == (text[:length], [1, 1])
    damaged = bytearray((tmp_path / "m.data-00000-of-00001").read_bytes())
    for place in (0, 4, 100):
        changed = damaged.copy()
        changed[place] ^= 1
        (tmp_path / "m.data-00000-of-00001").write_bytes(changed)
        with (tmp_path / "m.data-00000-of-00001").open("rb") as data, pytest.raises(CheckpointError, match="damaged"):
            Bundle((tmp_path / "m.index").read_bytes(), {0: data}).read_string("text")


def test_a_graph_that_is_written_is_the_one_that_is_read():
    graph = ObjectGraph(write_graph({"a/b": "x", "a/c": "y", "d": "z"}, {"g": "a"}))
    found = {path: graph.nodes[graph.find(0, path)].key for path in ("a/b", "a/c", "d", "g/b")}
    assert found == {"a/b": "x", "a/c": "y", "d": "z", "g/b": "x"}
    assert graph.find(0, "a/x") is graph.find(0, "x/y") is None
    assert sorted(graph.keys_below(0)) == ["x", "y", "z"]


def garden_crop(pixels: np.ndarray, size: int) -> np.ndarray:
    """The Garden's evaluation, in TensorFlow: `center_crop_image` and `tf.image.resize`."""
    image_size = tf.cast(tf.shape(pixels)[:2], tf.float32)
    crop_size = 0.875 * tf.math.minimum(image_size[0], image_size[1])
    top, left = tf.unstack(tf.cast((image_size - crop_size) / 2.0, tf.int32))
    side = tf.cast(crop_size, tf.int32)
    cropped = pixels[int(top) : int(top + side), int(left) : int(left + side)]
    return tf.image.resize(cropped, (size, size), method="bilinear").numpy()


def test_preprocessing_is_tensorflows_to_the_bit():
    from rszoo.pipeline import crops

    rng = np.random.default_rng(0)
    for number in range(60):
        height, width = rng.integers(20, 500, 2)
        size = (64, 75, 160, 192, 224, 256, 320)[number % 7]
        pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        expected = garden_crop(pixels, size)
        plain = Preprocessing(size, interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3)
        np.testing.assert_array_equal(rszoo.preprocess(pixels, plain)[0], expected)
        top, left, side, _ = crops.center_box(tf.constant([height, width], tf.int32), plain).numpy()
        cropped = tf.constant(pixels[top : top + side, left : left + side])
        np.testing.assert_array_equal(crops.resize(cropped, plain), expected)
    # TF1's is another.
    assert np.abs(rszoo.preprocess(pixels, replace(plain, interpolation="legacy-bicubic"))[0] - expected).max() > 5


def test_fine_tuning_keeps_the_preprocessing(folder, tmp_path):
    done = call(
        "rszoo",
        *(
            "train",
            "--init",
            folder.path,
            "--data",
            "digits",
            "--output",
            tmp_path / "run",
            "--max-steps",
            "1",
            "--json",
        ),
        *("train.batch_size=8", "train.evaluate_every_epochs=1000"),
    )
    assert done.returncode == 0, done.stderr
    trained = read_folder(tmp_path / "run" / "model").config
    assert trained.preprocessing == folder.preprocessing
    assert (trained.arch.activation, trained.arch.num_classes, trained.weights) == ("silu", 10, "trained")


def test_keras_loads_it_without_rszoo(folder, tmp_path):
    from rszoo.publish.keras_files import write_keras_files
    from tests.test_keras_files import IMAGES as GIVEN
    from tests.test_keras_files import load_elsewhere

    (tmp_path / "repository").mkdir()
    logits, _ = load_elsewhere(folder, write_keras_files(folder, tmp_path / "repository"), tmp_path, "tensorflow")
    expected = rszoo.create(folder.path, framework="keras")(GIVEN, training=False)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_weights_without_averages_for_all_are_taken_plain(saved, tmp_path):
    def change(tensors: dict, graph: bytes) -> bytes:
        first = "backbone/layer_with_weights-0/kernel/.OPTIMIZER_SLOT/optimizer/average/.ATTRIBUTES/VARIABLE_VALUE"
        del tensors[first]
        return without_slots_of_one(tensors, graph)

    prefix = rewritten(saved["trainer"], tmp_path, change)
    convert(str(prefix), tmp_path / "m", weights="raw", identity=SIZE)
    assert_same_values(tmp_path / "m", tensors_of(saved["trainer"].raw))


@pytest.mark.parametrize("name", ["average_weights-5", "best_ckpt-5"])
def test_what_was_saved_for_an_evaluation_has_its_sets_exchanged(saved, tmp_path, name):
    for suffix in (".index", ".data-00000-of-00001"):
        (tmp_path / f"{name}{suffix}").write_bytes(Path(f"{saved['trainer'].prefix}{suffix}").read_bytes())
    # Here the variables are the plain values, which such a name says are the averages.
    for weights, network in (("ema", saved["trainer"].raw), ("raw", saved["trainer"].ema)):
        done = call(
            "rszoo-convert",
            "--ckpt",
            tmp_path / name,
            "--image-size",
            64,
            "--weights",
            weights,
            "--output",
            tmp_path / weights,
        )
        assert "note: its name says that it was saved for an evaluation" in done.stdout, done.stderr
        assert_same_values(tmp_path / weights, tensors_of(network))


@pytest.mark.parametrize("trainable_only", [False, True])
def test_the_genuine_optimizer_s_averages(tmp_path, trainable_only):
    """tensorflow/models' own class, as its trainer uses it: before, and while the weights are exchanged."""
    emas = pytest.importorskip("official.modeling.optimization.ema_optimizer", reason="tf-models-official is missing")
    import tf_keras

    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        network = Classifier(TINY)
        for variable in network.variables:
            rng = np.random.default_rng(len(variable.shape))
            variable.assign(rng.uniform(0.5, 1, variable.shape).astype(np.float32))
        norms = [module for module in network.submodules if hasattr(module, "moving_mean")]
        statistics = {id(v) for norm in norms for v in (norm.moving_mean, norm.moving_variance)}

        trained = [v for v in network.variables if id(v) not in statistics]
        both = SimpleNamespace(variables=list(network.variables), trainable_variables=trained)
        model = tf.Module()
        model._track_trackable(network.backbone, "layer_with_weights-0")
        model._track_trackable(network.dense, "layer_with_weights-1")
        base = tf_keras.optimizers.legacy.SGD(0.1, momentum=0.9)
        optimizer = emas.ExponentialMovingAverage(base, trainable_weights_only=trainable_only, average_decay=0.5)
        optimizer.shadow_copy(both)
        pairs = [(tf.ones_like(v), v) for v in trained]
        strategy.run(lambda: optimizer.apply_gradients(pairs))
        step = tf.Variable(1, dtype=tf.int64)
        saving = tf.train.Checkpoint(model=model, backbone=network.backbone, optimizer=optimizer, global_step=step)
        plain = tensors_of(network)
        prefix = saving.write(str(tmp_path / "ckpt-1"))
        optimizer.swap_weights()
        averages = tensors_of(network)
        exchanged = saving.write(str(tmp_path / "average_weights-1"))
    assert any((averages[name] != plain[name]).any() for name in plain)
    convert(prefix, tmp_path / "raw", weights="raw", identity=SIZE)
    assert_same_values(tmp_path / "raw", plain)
    if trainable_only:
        with pytest.raises(ConversionError, match=r"averages of some variables.*give --weights raw"):
            convert(prefix, tmp_path / "ema", identity=SIZE)
        return
    convert(prefix, tmp_path / "ema", identity=SIZE)
    there = load_file(tmp_path / "ema" / "model.safetensors")
    for name, values in averages.items():
        # The exchange, by sums and differences, rounds.
        np.testing.assert_allclose(there[name], values, rtol=1e-6, atol=1e-7, err_msg=name)
    convert(exchanged, tmp_path / "again", identity=SIZE)
    assert_same_values(tmp_path / "again", averages)


def test_1001_classes_of_ones_own_are_imagenets_and_a_background(tmp_path):
    checkpoint = write_garden(replace(TINY, num_classes=1001), tmp_path)
    convert(str(checkpoint.prefix), tmp_path / "m", identity=SIZE)
    labels = ("background", *get_entry("resnet-rs-50").labels)
    assert read_folder(tmp_path / "m").config.labels == labels
    convert(str(checkpoint.prefix), tmp_path / "n", identity=SIZE, drop_background=True)
    assert read_folder(tmp_path / "n").config.labels == labels[1:]


def test_without_an_output_the_folder_is_called_after_what_was_found(tmp_path, use_manifest, monkeypatch):
    use_manifest(small_pair())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "given").mkdir()
    write_garden(SMALL, tmp_path / "given").archive(tmp_path / "given" / "resnet-rs-50-i160.tar.gz")
    # The other's place is taken, which does not matter.
    (tmp_path / "resnet-rs-50-i160").mkdir()
    (tmp_path / "resnet-rs-50-i160" / "mine").touch()
    done = call("rszoo", "convert", "--ckpt", "given/resnet-rs-50-i160.tar.gz")
    assert (done.returncode, "wrote resnet-rs-50-i160.garden;" in done.stdout) == (0, True), done.stderr
    assert read_folder("resnet-rs-50-i160.garden").config.pair == "resnet-rs-50-i160.garden"
    done = call("rszoo", "convert", "--ckpt", "given/resnet-rs-50-i160.tar.gz")
    assert (done.returncode, "exist; choose another --output" in done.stderr) == (5, True), done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "given",
        "resnet-rs-50-i160",
        "resnet-rs-50-i160.garden",
    ]


def test_a_name_with_a_dot_is_seen_in_the_cache(tmp_path, monkeypatch, use_manifest):
    use_manifest(small_pair())
    monkeypatch.setenv("RSZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    archive = write_garden(SMALL, tmp_path).archive(tmp_path / "x.tar.gz").read_bytes()
    with FaultServer(objects={"/tf_model_garden/vision/resnet-rs/resnet-rs-50-i160.tar.gz": archive}) as server:
        monkeypatch.setenv("RSZOO_GCS_ENDPOINT", server.endpoint)
        rszoo.load_weights("resnet-rs-50.garden")
    assert "resnet-rs-50-i160.garden" in call("rszoo", "cache", "list").stdout
    assert json.loads(call("rszoo", "cache", "verify", "--json").stdout)[0]["status"] == "intact"
    done = call("rszoo", "cache", "clear", "resnet-rs-50-i160.garden", "--yes")
    assert (done.returncode, list((tmp_path / "cache" / "models").iterdir())) == (0, [])


def test_other_squeeze_excitations_are_read_off(tmp_path):
    for ratio in (0.5, 0.0):
        arch = replace(TINY, se_ratio=ratio)
        (tmp_path / str(ratio)).mkdir()
        checkpoint = write_garden(arch, tmp_path / str(ratio))
        convert(str(checkpoint.prefix), tmp_path / f"m{ratio}", identity=SIZE)
        folder = read_folder(tmp_path / f"m{ratio}")
        assert folder.config.arch == arch
        written = write_checkpoint(folder, tmp_path / f"back{ratio}", "garden")
        convert(str(written), tmp_path / f"again{ratio}", identity=SIZE)
        assert read_folder(tmp_path / f"again{ratio}").config.arch == arch


def test_options_that_an_export_does_not_take_are_refused(folder, tmp_path):
    done = call(
        "rszoo-convert", "--ckpt", folder.path, "--to", "garden", "--drop-background", "--output", tmp_path / "x"
    )
    assert (done.returncode, "leave out --drop-background" in done.stderr) == (2, True)


def test_a_step_that_no_counter_holds_is_zero(folder, tmp_path):
    import shutil

    for step in ("1" + "0" * 30, "1e400", "-5"):
        copy = shutil.copytree(folder.path, tmp_path / f"m{step[:3]}{len(step)}")
        text = (copy / "conversion.json").read_text()
        (copy / "conversion.json").write_text(text.replace('"global_step": 5', f'"global_step": {step}'))
        written = write_checkpoint(read_folder(copy), tmp_path / f"back{len(step)}", "garden")
        assert tf.train.load_checkpoint(str(written)).get_tensor("global_step/.ATTRIBUTES/VARIABLE_VALUE") == 0
