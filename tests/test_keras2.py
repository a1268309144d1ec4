"""Files of Keras 2: tf_keras's own, written and read by it, and what an HDF5 file may hide."""

from __future__ import annotations

import base64
import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

import rszoo
from converters.convert import Identity, convert
from converters.keras2 import hdf5
from converters.keras2.files import Layer
from converters.keras2.surroundings import Surroundings
from converters.write_back import write_checkpoint
from rszoo.arch.config import ArchConfig
from rszoo.errors import CheckpointError, ConversionError, RszooError
from rszoo.folder.model_folder import read_folder
from rszoo.registry.preprocessing import Preprocessing
from rszoo.verify import stages as parity
from rszoo.verify.checks import verify
from tests.commands import call

FILES = ("keras2-small-c7.h5", "keras2-small-c7-whole.h5", "keras2-small-c7.keras")
RUNS: dict[str, Callable[..., list[parity.Stages]]] = {"torch": parity.torch_stages, "keras": parity.keras_stages}
SIZE = Identity(image_size=64)
BLOCKS = (1, 2, 1, 1)
# The application has a fixed size.
IMAGES = [np.random.default_rng(seed).standard_normal((2, 64, 64, 3)).astype(np.float32) for seed in range(2)]


def build(classes: int = 5, *, preprocessing: bool = False, channels: int = 3, bn_epsilon: float = 1e-5):
    """A small network of tf_keras's own, with random values."""
    pytest.importorskip("tf_keras", reason="tf_keras is not installed")
    from tf_keras.src.applications.resnet_rs import ResNetRS

    network = ResNetRS(
        50,
        block_args=[{"input_filters": 8 << n, "num_repeats": count} for n, count in enumerate(BLOCKS)],
        input_shape=(64, 64, channels),
        bn_epsilon=bn_epsilon,
        weights=None,
        classes=classes,
        classifier_activation=None,
        include_preprocessing=preprocessing,
    )
    rng = np.random.default_rng(0)
    for layer in network.layers:
        if not layer.name.startswith(("normalization", "rescaling")):
            layer.set_weights([_values(weight.name, weight.shape, rng) for weight in layer.weights])
    return network


def _values(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if "gamma" in name or "variance" in name:
        return rng.uniform(0.3, 1.0, shape).astype(np.float32)
    return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]) or 1)).astype(np.float32)


@pytest.fixture(scope="module")
def network():
    return build()


@pytest.fixture(scope="module")
def weights_file(network, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("keras2") / "small.h5"
    network.save_weights(path)
    return path


def values_of(network) -> dict[str, np.ndarray]:
    """The values of a network of tf_keras by its own names."""
    # The stems of a process are counted.
    names = {layer: re.sub(r"^stem_\d+", "stem_1", layer.name) for layer in network.layers}
    return {f"{names[layer]}/{w.name.rpartition('/')[2]}": w.numpy() for layer in names for w in layer.weights}


def assert_same_outputs(folder: Path, network) -> None:
    expected = [network(images, training=False).numpy() for images in IMAGES]
    for framework, run in RUNS.items():
        for stages, logits in zip(run(read_folder(folder), IMAGES, "float32"), expected, strict=True):
            assert parity.relative_l2(stages["logits"], logits) <= 2e-6, framework


@pytest.mark.parametrize("name", FILES)
def test_equals_outputs_of_tf_keras(shared, tmp_path, name):
    """The shared fixtures: three files of one network, and its outputs."""
    report = convert(str(shared / name), tmp_path / "m", identity=SIZE)
    folder = read_folder(tmp_path / "m")
    assert folder.config.arch == ArchConfig(
        (1, 2, 1, 1), num_classes=7, stage_widths=(8, 16, 32, 64), stem_widths=(32, 32, 64, 64)
    )
    assert (report["format"], len(report["mapped"])) == ("keras2", 137)
    reference = np.load(shared / "keras2_reference_outputs.npz")
    for run in RUNS.values():
        for size in ("64", "75"):
            (stages,) = run(folder, [reference[f"{size}/input_nhwc"]], "float32")
            assert parity.relative_l2(stages["logits"], reference[f"{size}/logits"]) <= 2e-6


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("kind", ["weights", "whole", "archive", "trained", "preprocessing"])
def test_what_tf_keras_saves_is_read(network, tmp_path, kind):
    import tf_keras

    if kind == "preprocessing":
        network = build(preprocessing=True)
    path = tmp_path / ("x.keras" if kind == "archive" else "x.h5")
    if kind == "trained":
        network = build()
        network.compile(tf_keras.optimizers.SGD(0.01, momentum=0.9), "mse")
        network.fit(IMAGES[0], np.zeros((2, 5), np.float32), verbose=0)
    network.save_weights(path) if kind == "weights" else network.save(path)
    report = convert(str(path), tmp_path / "m", identity=SIZE)
    there = load_file(tmp_path / "m" / "model.safetensors")
    assert there["conv1.0.weight"].shape[0] == 32
    kernel = values_of(network)["predictions/kernel:0"]
    np.testing.assert_array_equal(there["fc.weight"], kernel.T)
    assert any("optimizer" in reason for reason in report["skipped"]) == (kind == "trained")
    if kind not in ("preprocessing", "trained"):
        assert_same_outputs(tmp_path / "m", network)
    assert any("one set of weights" in note for note in report["source"]["notes"])


def test_back_and_forth_is_exact_and_tf_keras_loads_it(network, weights_file, tmp_path):
    convert(str(weights_file), tmp_path / "m", identity=SIZE)
    written = write_checkpoint(read_folder(tmp_path / "m"), tmp_path / "back", "keras2")
    other = build()
    for layer in other.layers:
        layer.set_weights([np.zeros(weight.shape, np.float32) for weight in layer.weights])
    other.load_weights(written)
    expected = values_of(network)
    for name, values in values_of(other).items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)
    convert(str(written), tmp_path / "again", identity=SIZE)
    first, again = (load_file(tmp_path / name / "model.safetensors") for name in ("m", "again"))
    assert all(first[name].tobytes() == again[name].tobytes() for name in first)
    # And from there to TF1 and back.
    prefix = write_checkpoint(read_folder(tmp_path / "m"), tmp_path / "tf1", "tf1")
    convert(str(prefix), tmp_path / "third", identity=SIZE)
    third = load_file(tmp_path / "third" / "model.safetensors")
    assert all(first[name].tobytes() == third[name].tobytes() for name in first)


def test_verify_holds_it_against_the_original_graph(weights_file, tmp_path):
    convert(str(weights_file), tmp_path / "m", identity=SIZE)
    checks = {check.name: check.status for check in verify(read_folder(tmp_path / "m"), source=str(weights_file))}
    assert {name for name, status in checks.items() if status != "passed"} == {"published logits"}


@pytest.mark.slow
def test_the_application_loads_an_export_of_its_size(tmp_path):
    applications = pytest.importorskip("tf_keras", reason="tf_keras is not installed").applications
    model = rszoo.create("resnet-rs-50-i160")
    folder = rszoo.save(model, tmp_path / "m")
    written = write_checkpoint(folder, tmp_path / "back", "keras2")
    theirs = applications.resnet_rs.ResNetRS50(
        weights=str(written), input_shape=(160, 160, 3), classifier_activation=None, include_preprocessing=False
    )
    images = IMAGES[0][:, :64, :64].repeat(3, 1).repeat(3, 2)[:, :160, :160]
    (stages,) = parity.torch_stages(folder, [images], "float32")
    assert parity.relative_l2(stages["logits"], theirs(images, training=False).numpy()) <= 2e-6


def test_the_layers_of_a_network_too_deep_for_one_attribute_are_listed(tmp_path):
    reading = pytest.importorskip("tf_keras.src.saving.legacy.hdf5_format", reason="tf_keras is not installed")
    model = rszoo.create(ArchConfig((1, 1, 220, 1), width_multiplier=0.0625, num_classes=5))
    model.preprocessing = Preprocessing(64)
    written = write_checkpoint(rszoo.save(model, tmp_path / "m"), tmp_path / "back", "keras2")
    with h5py.File(written) as file:
        assert "layer_names" not in file.attrs
        listed = reading.load_attributes_from_hdf5_group(file, "layer_names")
        assert sorted(listed) == sorted(file)
        assert len(listed) == 4 * 2 + 223 * 8 + 4 * 2 + 1


def with_own_head(network):
    """A network as people built on one: pooled features, a layer of theirs, a classifier called as the former one."""
    import tf_keras

    features = network.get_layer("avg_pool").output
    hidden = tf_keras.layers.Dense(6, activation="relu", name="my_hidden")(features)
    return tf_keras.Model(network.input, tf_keras.layers.Dense(3, name="predictions")(hidden))


def in_a_sequence(network):
    import tf_keras

    backbone = tf_keras.Model(network.input, network.get_layer("avg_pool").output, name="backbone")
    return tf_keras.Sequential([backbone, tf_keras.layers.Dropout(0.2), tf_keras.layers.Dense(3, name="mine")])


def without_top(network):
    import tf_keras

    # The last feature map, as `include_top=False` gives it.
    return tf_keras.Model(network.input, network.get_layer("avg_pool").input)


HEADS = [
    (with_own_head, ["my_hidden/bias", "my_hidden/kernel", "predictions/bias", "predictions/kernel"]),
    (in_a_sequence, ["mine/bias", "mine/kernel"]),
    (without_top, []),
]


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("suffix", ["weights.h5", "whole.h5", "x.keras"])
@pytest.mark.parametrize(("build_on", "left"), HEADS, ids=[change.__name__ for change, _ in HEADS])
def test_of_a_model_with_another_head_the_backbone_is_taken(network, tmp_path, build_on, left, suffix):
    import tf_keras

    path, model = tmp_path / suffix, build_on(network)
    model.save_weights(path) if suffix == "weights.h5" else model.save(path)
    report = convert(str(path), tmp_path / "m", identity=SIZE if suffix == "weights.h5" else None)
    folder = read_folder(tmp_path / "m")
    assert (folder.config.arch.num_classes, len(report["mapped"])) == (0, 135)
    assert sorted(report["skipped"].get("layers that are not the network's", ())) == left
    notes = report["source"]["notes"]
    assert len(notes) == 1 + bool(left) + (suffix == "weights.h5")
    assert all(name in notes[-1] for name in left)
    assert any("does not list its layers" in note for note in notes) == (suffix == "weights.h5")
    # The size of the input is in the file.
    assert folder.preprocessing == Preprocessing(64)
    if build_on is with_own_head:
        pooled = tf_keras.Model(network.input, network.get_layer("avg_pool").output)
        for framework in RUNS:
            model = rszoo.create(folder, framework=framework)
            if framework == "torch":
                features = model(torch.from_numpy(IMAGES[0]).permute(0, 3, 1, 2)).detach().numpy()
            else:
                features = np.asarray(model(IMAGES[0], training=False))
            assert parity.relative_l2(features, pooled(IMAGES[0], training=False).numpy()) <= 2e-6
        checks = {check.name: check.status for check in verify(folder)}
        assert {name for name, status in checks.items() if status != "passed"} == {"source", "published logits"}


def layers():
    return pytest.importorskip("tf_keras", reason="tf_keras is not installed").layers


def pooled_by_maximum(network):
    return layers().GlobalMaxPooling2D()(network.get_layer("avg_pool").input)


def normalized(network):
    return layers().UnitNormalization()(network.get_layer("avg_pool").output)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("suffix", ["x.h5", "x.keras"])
@pytest.mark.parametrize("features", [pooled_by_maximum, normalized])
def test_a_classifier_on_other_features_is_not_taken(network, tmp_path, features, suffix):
    import tf_keras

    head = tf_keras.layers.Dense(3, name="predictions")(features(network))
    tf_keras.Model(network.input, head).save(tmp_path / suffix)
    report = convert(str(tmp_path / suffix), tmp_path / "m")
    assert read_folder(tmp_path / "m").config.arch.num_classes == 0
    left = report["skipped"]["layers that are not the network's"]
    assert sorted(left) == ["predictions/bias", "predictions/kernel"]
    by_maximum = any("pooled by their maximum" in note for note in report["source"]["notes"])
    assert by_maximum == (features is pooled_by_maximum)


def in_front(network, *given, side: int = 64):
    """A model that does something to images of 0 to 255 before the network."""
    import tf_keras

    images = outputs = tf_keras.Input((side, side, network.input_shape[-1]))
    for layer in given:
        outputs = layer(outputs)
    return tf_keras.Model(images, network(outputs))


def adapted():
    layer = layers().Normalization()
    layer.adapt(np.random.default_rng(1).uniform(20, 220, (8, 64, 64, 3)).astype(np.float32))
    return layer


FRONTS = [
    lambda: [layers().Rescaling(1 / 127.5, -1.0)],
    lambda: [layers().Rescaling(1 / 255)],
    lambda: [adapted()],
    lambda: [
        layers().Rescaling(2 / 255, -1.0),
        layers().Normalization(mean=[0.5, 0.4, 0.3], variance=[0.04, 0.05, 0.06]),
    ],
]


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("suffix", ["x.h5", "x.keras"])
@pytest.mark.parametrize("front", FRONTS, ids=["-1 to 1", "0 to 1", "adapted", "own"])
def test_what_layers_in_front_do_to_images_becomes_the_preprocessing(network, tmp_path, front, suffix):
    model = in_front(network, *front())
    model.save(tmp_path / suffix)
    convert(str(tmp_path / suffix), tmp_path / "m")
    folder = read_folder(tmp_path / "m")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.float32)
    settings = folder.preprocessing
    images = ((pixels / 255 - np.array(settings.mean)) / np.array(settings.std)).astype(np.float32)
    (stages,) = parity.torch_stages(folder, [images], "float32")
    assert parity.relative_l2(stages["logits"], model(pixels, training=False).numpy()) <= 2e-6
    assert settings.image_size == 64


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_gray_images_that_are_only_rescaled_and_resized_ones(tmp_path):
    network = build(channels=1, preprocessing=True)
    network.save(tmp_path / "x.h5")
    convert(str(tmp_path / "x.h5"), tmp_path / "m")
    assert read_folder(tmp_path / "m").preprocessing == Preprocessing(64, mean=(0.0,), std=(1.0,))
    in_front(build(), layers().Resizing(64, 64), side=128).save(tmp_path / "y.h5")
    convert(str(tmp_path / "y.h5"), tmp_path / "n")
    assert read_folder(tmp_path / "n").preprocessing == Preprocessing(64)
    shape = {"batch_input_shape": [None, 128, 128, 3]}
    before = [Layer("InputLayer", "x", shape), Layer("Resizing", "y", {"height": 64, "width": 64})]
    assert (Surroundings(before).image_size, Surroundings(before[:1]).image_size) == (64, 128)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_the_epsilon_is_read_and_named_where_it_is_lost(tmp_path):
    network = build(bn_epsilon=1e-2)
    network.save(tmp_path / "x.h5")
    convert(str(tmp_path / "x.h5"), tmp_path / "m", identity=SIZE)
    assert read_folder(tmp_path / "m").config.arch.bn_epsilon == 1e-2
    assert_same_outputs(tmp_path / "m", network)
    done = call("rszoo-convert", "--ckpt", tmp_path / "m", "--to", "keras2", "--output", tmp_path / "back")
    assert "the normalizations' epsilon 0.01" in done.stdout


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_layers_within_the_network_and_unknown_ones_before_it(network, tmp_path):
    import tf_keras

    def again(tensor):
        return tf_keras.layers.ReLU(name="mine")(tensor)

    middle = network.get_layer("BlockGroup3__block_1__output_act").output
    first, second = tf_keras.Model(network.input, middle), tf_keras.Model(middle, network.output)
    tf_keras.Model(network.input, second(again(first.output))).save(tmp_path / "x.h5")
    with pytest.raises(ConversionError, match=r"other layers within the network: 'mine' \(ReLU\)"):
        convert(str(tmp_path / "x.h5"), tmp_path / "m")
    in_front(network, tf_keras.layers.ReLU(name="mine")).save(tmp_path / "y.h5")
    report = convert(str(tmp_path / "y.h5"), tmp_path / "m")
    assert "layers before the network that are not kept: 'mine' (ReLU)" in report["source"]["notes"]


@pytest.mark.parametrize("metrics", [[], ["mae"]])
def test_a_fitted_model_is_read_from_its_archive(tmp_path, metrics):
    network = build()
    network.compile("adam", "mse", metrics=metrics)
    network.fit(IMAGES[0], np.zeros((2, 5), np.float32), verbose=0)
    network.save(tmp_path / "x.keras")
    report = convert(str(tmp_path / "x.keras"), tmp_path / "m", identity=SIZE)
    assert any("metrics/" in name for names in report["skipped"].values() for name in names)
    np.testing.assert_array_equal(
        load_file(tmp_path / "m" / "model.safetensors")["fc.weight"], values_of(network)["predictions/kernel:0"].T
    )


def test_files_that_do_not_name_layers_and_compressed_ones_are_told(network, tmp_path):
    network.save_weights(tmp_path / "x.weights.h5")
    with pytest.raises(CheckpointError, match=r"save the whole model, model\.save\('x\.keras'\)"):
        convert(str(tmp_path / "x.weights.h5"), tmp_path / "m", identity=SIZE)
    network.save(tmp_path / "y.keras")
    with zipfile.ZipFile(tmp_path / "y.keras") as archive, zipfile.ZipFile(tmp_path / "z.keras", "w", 8) as packed:
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    with pytest.raises(CheckpointError, match="in it is compressed"):
        convert(str(tmp_path / "z.keras"), tmp_path / "m", identity=SIZE)


def test_a_backbone_is_used_for_features_and_fine_tuning_alone(network, tmp_path):
    path = tmp_path / "x.h5"
    without_top(network).save_weights(path)
    convert(str(path), tmp_path / "m", identity=SIZE)
    for words in (("predict", tmp_path / "m", tmp_path / "x.jpg"), ("eval", tmp_path / "m", "--data", "digits")):
        if words[0] == "predict":
            Image.new("RGB", (64, 64)).save(tmp_path / "x.jpg")
        done = call("rszoo", *words)
        assert done.returncode == 2
        assert done.stderr.endswith(
            f"{tmp_path / 'm'} has no classifier, only a backbone; fine-tune it to get one: rszoo train --init "
            f"{tmp_path / 'm'} --data IMAGES --output RUN\n"
        )
    done = call("rszoo-convert", "--ckpt", tmp_path / "m", "--to", "tf1", "--output", tmp_path / "tf1")
    assert (done.returncode, "0 classes" in done.stderr) == (3, True)
    done = call("rszoo-convert", "--ckpt", tmp_path / "m", "--to", "keras2", "--output", tmp_path / "back")
    assert done.returncode == 0
    fresh = without_top(build(preprocessing=False))
    fresh.load_weights(tmp_path / "back" / "resnet-rs.h5")
    for mine, theirs in zip(fresh.get_weights(), without_top(network).get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert rszoo.create(tmp_path / "m", num_classes=4)(torch.zeros(1, 3, 64, 64)).shape == (1, 4)
    card = call("rszoo", "push", tmp_path / "m", "me/x", "--dry-run", "--force").stdout
    assert "without a classifier: it gives pooled features" in card
    assert "pipeline_tag: image-feature-extraction" in card


def test_a_file_without_top_that_has_a_pairs_name_is_a_part_of_it(tmp_path):
    arch = replace(rszoo.get_entry("resnet-rs-50").arch, num_classes=0)
    model = rszoo.create(arch)
    model.preprocessing = Preprocessing(64)
    written = write_checkpoint(rszoo.save(model, tmp_path / "m"), tmp_path / "back", "keras2")
    written.rename(tmp_path / "resnet-rs-50-i160_notop.h5")
    convert(str(tmp_path / "resnet-rs-50-i160_notop.h5"), tmp_path / "again")
    config = read_folder(tmp_path / "again").config
    assert (config.title, config.pair) == ("resnet-rs-50-i160, without its classifier", None)
    assert (config.preprocessing, config.labels, config.arch.dropout_rate) == (Preprocessing(160), None, 0.25)


def test_the_manifests_hashes_are_those_that_tf_keras_has():
    from tf_keras.src.applications.resnet_rs import BASE_WEIGHTS_URL, WEIGHT_HASHES

    pairs = rszoo.list_models(family="tf1")
    assert len(pairs) == 11
    for name in pairs:
        copy = rszoo.get_entry(name).copies[0]
        assert (copy.format, copy.url) == ("keras2", f"{BASE_WEIGHTS_URL}{name}.h5")
        assert base64.b64decode(copy.md5).hex() == WEIGHT_HASHES[f"{name}.h5"]


def test_a_garden_network_is_refused(tmp_path):
    model = rszoo.create(ArchConfig((1, 1, 1, 1), width_multiplier=0.125, activation="silu"))
    model.preprocessing = Preprocessing(64)
    folder = rszoo.save(model, tmp_path / "m")
    done = call("rszoo-convert", "--ckpt", folder.path, "--to", "keras2", "--output", tmp_path / "back")
    assert (done.returncode, "cannot hold this ResNet-RS" in done.stderr) == (3, True)
    assert not (tmp_path / "back").exists()


# What a file may hide.


def soft_link(file: h5py.File, path: Path) -> None:
    file["link"] = h5py.SoftLink("/predictions")


def external_link(file: h5py.File, path: Path) -> None:
    file["link"] = h5py.ExternalLink("/etc/passwd", "/")


def cycle(file: h5py.File, path: Path) -> None:
    file["predictions/again"] = file["predictions"]


def external_storage(file: h5py.File, path: Path) -> None:
    (path.parent / "secret").write_bytes(bytes(4000))
    file.create_dataset("x/x/kernel:0", (1000,), "f4", external=[(str(path.parent / "secret"), 0, 4000)])


def virtual(file: h5py.File, path: Path) -> None:
    layout = h5py.VirtualLayout((10,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (10,))
    file.create_virtual_dataset("x/x/kernel:0", layout)


def compressed(file: h5py.File, path: Path) -> None:
    file.create_dataset("x/x/kernel:0", data=np.zeros(1 << 20, "f4"), compression="gzip")


def huge(file: h5py.File, path: Path) -> None:
    file.create_dataset("x/x/kernel:0", (1 << 40,), "f4", chunks=(1 << 20,))


def named_type(file: h5py.File, path: Path) -> None:
    file["type"] = np.dtype("f4")


def references(file: h5py.File, path: Path) -> None:
    file.create_dataset("x/x/reference:0", (1,), h5py.ref_dtype)[0] = file["predictions"].ref


def one_too_many(file: h5py.File, path: Path) -> None:
    file["BlockGroup9__block_0__conv_1/BlockGroup9__block_0__conv_1/kernel:0"] = np.zeros(3, "f4")


def twice(file: h5py.File, path: Path) -> None:
    file["other/predictions/kernel:0"] = np.zeros(3, "f4")


def other_network(file: h5py.File, path: Path) -> None:
    for name in list(file):
        del file[name]
    file["conv1_conv/conv1_conv/kernel:0"] = np.zeros((7, 7, 3, 64), "f4")


def too_wide(file: h5py.File, path: Path) -> None:
    name = "predictions/predictions/bias:0"
    del file[name]
    file[name] = np.zeros(6, "f4")


def half(file: h5py.File, path: Path) -> None:
    name = "predictions/predictions/bias:0"
    del file[name]
    file[name] = np.zeros(5, "f2")


HIDDEN = [
    (soft_link, CheckpointError, "link is a link to elsewhere"),
    (external_link, CheckpointError, "link is a link to elsewhere"),
    (cycle, CheckpointError, "have each other"),
    (external_storage, CheckpointError, "are not in it"),
    (virtual, CheckpointError, "are not in it"),
    (compressed, CheckpointError, "is compressed"),
    (huge, CheckpointError, "bytes; at most"),
    (named_type, CheckpointError, "no group and no dataset"),
    (references, ConversionError, "x/reference"),
    (one_too_many, ConversionError, "BlockGroup9__block_0__conv_1/kernel"),
    (twice, CheckpointError, "two tensors predictions/kernel"),
    (other_network, ConversionError, "has no layer stem_1_stem_conv_1"),
    (too_wide, ConversionError, "predictions/bias"),
    (half, ConversionError, "float16"),
]


@pytest.mark.parametrize(("change", "error", "text"), HIDDEN, ids=[change.__name__ for change, *_ in HIDDEN])
def test_what_a_file_hides_is_refused_in_a_line(weights_file, tmp_path, change, error, text):
    path = tmp_path / "x.h5"
    path.write_bytes(weights_file.read_bytes())
    with h5py.File(path, "a") as file:
        change(file, path)
    with pytest.raises(error, match=text) as told:
        convert(str(path), tmp_path / "m", identity=SIZE)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_told(weights_file, tmp_path, part):
    content = weights_file.read_bytes()
    (tmp_path / "x.h5").write_bytes(content[: int(len(content) * part)])
    with pytest.raises(CheckpointError, match="is damaged"):
        convert(str(tmp_path / "x.h5"), tmp_path / "m", identity=SIZE)


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("import os; os.kill(os.getpid(), 11)", "damaged: reading it ended the HDF5 library, by signal 11"),
        ("import time; time.sleep(60)", "damaged: its structure was not read within 1 s"),
        ("raise ImportError('libhdf5.so')", "cannot be read: ImportError: libhdf5.so"),
    ],
)
def test_a_file_that_ends_or_stops_the_hdf5_library_is_told(weights_file, tmp_path, monkeypatch, program, text):
    (tmp_path / "scan.py").write_text(program)
    monkeypatch.setattr(hdf5, "_SCAN", tmp_path / "scan.py")
    monkeypatch.setattr(hdf5, "_TIMEOUT", 1)
    with pytest.raises(CheckpointError, match=text):
        convert(str(weights_file), tmp_path / "m", identity=SIZE)


def test_flipped_bytes_give_an_error_of_ours_or_other_values(weights_file, tmp_path):
    content, rng = weights_file.read_bytes(), np.random.default_rng(0)
    for number in range(30):
        changed = bytearray(content)
        for place in rng.integers(0, min(len(content), 200_000), 3):
            changed[place] ^= 1 << rng.integers(8)
        (tmp_path / "x.h5").write_bytes(changed)
        try:
            convert(str(tmp_path / "x.h5"), tmp_path / f"m{number}", identity=SIZE)
        except RszooError:
            continue


def rewritten(path: Path, target: Path, change: Callable[[dict], object]) -> Path:
    """Write a `.keras` file anew with another config.json."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(target, "w") as written:
        for name in archive.namelist():
            content = archive.read(name)
            if name == "config.json":
                values = json.loads(content)
                changed = change(values)
                content = changed if isinstance(changed, bytes) else json.dumps(values).encode()
            written.writestr(name, content)
    return target


def other_activation(values: dict) -> None:
    for layer in values["config"]["layers"]:
        if layer["class_name"] == "Activation":
            layer["config"]["activation"] = "tanh"


def lambda_layer(values: dict) -> None:
    code = {"class_name": "__lambda__", "config": {"code": "4wEAAAA=", "defaults": None, "closure": None}}
    layer = {"class_name": "Lambda", "config": {"name": "evil", "function": code}}
    values["config"]["layers"].insert(0, {**layer, "module": "os", "registered_name": "system"})


ARCHIVES = [
    (other_activation, ConversionError, "its activations are tanh"),
    (lambda values: b"{", CheckpointError, "says of its layers is damaged"),
    (lambda values: b"[" * 100_000, CheckpointError, "says of its layers is damaged"),
    (lambda values: values.update(config=[]), CheckpointError, "no model"),
    (lambda values: values["config"].update(layers=[3]), CheckpointError, "a layer without a class"),
]


@pytest.mark.parametrize(("change", "error", "text"), ARCHIVES, ids=range(len(ARCHIVES)))
def test_what_an_archive_says_of_its_layers_is_checked(network, tmp_path, change, error, text):
    network.save(tmp_path / "x.keras")
    path = rewritten(tmp_path / "x.keras", tmp_path / "y.keras", change)
    with pytest.raises(error, match=text):
        convert(str(path), tmp_path / "m", identity=SIZE)
    assert not (tmp_path / "m").exists()


def test_no_layer_is_made_of_what_a_file_says(network, tmp_path):
    network.save(tmp_path / "x.keras")
    path = rewritten(tmp_path / "x.keras", tmp_path / "y.keras", lambda_layer)
    convert(str(path), tmp_path / "m", identity=SIZE)
    assert_same_outputs(tmp_path / "m", network)


def test_a_file_of_keras_3_is_told(tmp_path):
    model = rszoo.create(ArchConfig((1, 1, 1, 1), width_multiplier=0.125), framework="keras")
    model.save(tmp_path / "x.keras")
    with pytest.raises(ConversionError, match="has no layer stem_1_stem_conv_1"):
        convert(str(tmp_path / "x.keras"), tmp_path / "m", identity=SIZE)
