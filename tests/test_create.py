"""`rszoo.create` in both frameworks: weights, heads, channels, sizes, initial values, training behaviour."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import torch

import rszoo
from rszoo.arch.config import ArchConfig
from rszoo.arch.names import counter_names, keras_name, to_tf_layout, torch_name
from rszoo.arch.walk import Initial, iter_tensors
from rszoo.errors import (
    ConfigError,
    MissingPackageError,
    SourceNotFoundError,
    UnknownModelError,
    UsageError,
    WeightsError,
)
from rszoo.inference.images import preprocess
from rszoo.models import keras_resnet_rs, torch_resnet_rs
from rszoo.models.initial import TRUNCATED_STD, KernelDraws
from rszoo.weights.mapping import Weights
from tests.tf1 import TINY

RNG = np.random.default_rng(0)
ODD_SIZED = np.random.default_rng(1).standard_normal((2, 75, 97, 3)).astype(np.float32)


def logits_of(model, images_nhwc: np.ndarray) -> np.ndarray:
    # On the PyTorch backend a Keras model is a torch.nn.Module as well.
    if not isinstance(model, keras.Model):
        with torch.no_grad():
            return model(torch.from_numpy(images_nhwc).permute(0, 3, 1, 2)).numpy()
    return keras.ops.convert_to_numpy(model(images_nhwc, training=False))


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_every_weight_arrives_and_nothing_is_drawn(tiny_folder, framework, monkeypatch):
    draws = []

    # Keras: its initializers, and our own draws. PyTorch: its generator.
    monkeypatch.setattr(keras.initializers.VarianceScaling, "__call__", lambda *_, **__: draws.append("kernel"))
    monkeypatch.setattr(keras.initializers.RandomNormal, "__call__", lambda *_, **__: draws.append("dense"))
    monkeypatch.setattr(KernelDraws, "_draw", lambda *_: draws.append("ahead"))
    before = torch.get_rng_state()
    model = rszoo.create(tiny_folder.path, framework=framework)
    assert torch.equal(torch.get_rng_state(), before)
    assert draws == []
    weights = rszoo.load_weights(tiny_folder.path)
    if framework == "torch":
        state = model.state_dict()
        assert all(np.array_equal(state[name].numpy(), weights[name]) for name in weights)
        assert not model.training
        return
    variables = {(v.path.split("/")[-2], v.name): v for v in model.weights}
    for spec in iter_tensors(TINY):
        expected = to_tf_layout(spec.kind, weights[torch_name(spec)])
        np.testing.assert_array_equal(np.asarray(variables[keras_name(spec)]), expected)


def test_preprocessing_comes_with_the_model(tiny_folder):
    image = RNG.integers(0, 256, (80, 70, 3), dtype=np.uint8)
    expected = preprocess(image, tiny_folder)
    for framework in ("torch", "keras"):
        model = rszoo.create(tiny_folder.path, framework=framework)
        np.testing.assert_array_equal(rszoo.preprocess(image, model), expected)


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_another_class_count_keeps_the_backbone_and_says_so(tiny_folder, framework, caplog):
    images = RNG.standard_normal((1, 64, 64, 3)).astype(np.float32)
    with caplog.at_level(logging.WARNING, "rszoo"):
        model = rszoo.create(tiny_folder.path, framework=framework, num_classes=3)
    assert "new head: 3 classes" in caplog.text
    assert logits_of(model, images).shape == (1, 3)
    original = rszoo.create(tiny_folder.path, framework=framework)
    if framework == "torch":
        features = [
            m.forward_head(m.forward_features(torch.from_numpy(images.transpose(0, 3, 1, 2))), pre_logits=True)
            for m in (model, original)
        ]
        assert torch.equal(*features)
        assert model.fc.weight.std() < 0.02
        assert (model.fc.bias == 0).all()
    else:
        features = [keras_resnet_rs.stage_model(m)(images)["pooled"] for m in (model, original)]
        np.testing.assert_array_equal(*features)


@pytest.mark.parametrize("in_chans", [1, 2, 4, 6])
def test_other_channel_counts_adapt_the_stem_alike(tiny_folder, in_chans, caplog):
    images = RNG.standard_normal((2, 64, 64, in_chans)).astype(np.float32)
    ours, theirs = (rszoo.create(tiny_folder.path, framework=name, in_chans=in_chans) for name in ("torch", "keras"))
    assert "first convolution adapted from 3 to" in caplog.text
    np.testing.assert_allclose(logits_of(ours, images), logits_of(theirs, images), atol=1e-5)
    original = rszoo.create(tiny_folder.path)
    if in_chans == 1:
        # Gray as RGB: the same answer.
        np.testing.assert_allclose(logits_of(ours, images), logits_of(original, images.repeat(3, -1)), atol=1e-4)
    if in_chans == 6:
        doubled = np.concatenate([images[..., :3]] * 2, axis=-1)
        np.testing.assert_allclose(logits_of(ours, doubled), logits_of(original, images[..., :3]), atol=1e-4)


@pytest.mark.parametrize("size", [(33, 47), (64, 65), (128, 96)])
def test_any_input_size_gives_the_same_in_both(tiny_folder, size):
    images = RNG.standard_normal((1, *size, 3)).astype(np.float32)
    ours, theirs = (rszoo.create(tiny_folder.path, framework=name) for name in ("torch", "keras"))
    np.testing.assert_allclose(logits_of(ours, images), logits_of(theirs, images), atol=1e-5)


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_published_initial_values(framework):
    config = ArchConfig((1, 1, 1, 1), width_multiplier=0.5, num_classes=500)
    model = rszoo.create(config, framework=framework)
    if framework == "torch":
        state = {name: values.numpy() for name, values in model.state_dict().items()}
        values = {spec: state[torch_name(spec)] for spec in iter_tensors(config)}
    else:
        variables = {(v.path.split("/")[-2], v.name): np.asarray(v) for v in model.weights}
        values = {spec: variables[keras_name(spec)] for spec in iter_tensors(config)}
    for spec, actual in values.items():
        if spec.initial in (Initial.ZEROS, Initial.ONES):
            assert (actual == (spec.initial is Initial.ONES)).all(), spec
        elif actual.size > 5000:
            std = 0.01 if spec.initial is Initial.NORMAL else np.sqrt(1 / np.prod(spec.shape[:-1]))
            assert actual.std() == pytest.approx(std, rel=0.05), spec
            # The truncated normal ends at two of its own standard deviations.
            assert (np.abs(actual).max() < 2.3 * std) == (spec.initial is Initial.FAN_IN), spec
            if spec.initial is Initial.FAN_IN:
                # The share within one standard deviation of the normal before the cut; a uniform's would be 0.66.
                within = (np.abs(actual) < std / TRUNCATED_STD).mean()
                assert within == pytest.approx(math.erf(0.5**0.5) / math.erf(2**0.5), abs=0.03), spec
    zero_gammas = [spec.layer for spec in values if spec.initial is Initial.ZEROS and spec.kind.variable == "gamma"]
    assert zero_gammas == [f"stage{stage}.block0.bn3" for stage in (1, 2, 3, 4)]


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_drop_connect_drops_whole_samples_and_keeps_the_mean(framework):
    rate, ones = 0.4, np.ones((4000, 2, 2, 3), np.float32)
    if framework == "torch":
        layer = torch_resnet_rs.DropConnect(rate)
        out = layer.train()(torch.from_numpy(ones)).numpy()
        assert (layer.eval()(torch.from_numpy(ones)).numpy() == 1).all()
    else:
        config = replace(TINY, drop_connect_rate=rate)
        block = keras_resnet_rs.build_model(config).get_layer("stage4_block0")
        layer = block.get_layer("stage4_block0_drop_connect")
        out = keras.ops.convert_to_numpy(layer(ones, training=True))
        assert (keras.ops.convert_to_numpy(layer(ones, training=False)) == 1).all()
    per_sample = out.reshape(len(ones), -1)
    assert (per_sample == per_sample[:, :1]).all()
    np.testing.assert_allclose(np.unique(per_sample), [0, 1 / 0.6], rtol=1e-6)
    assert (per_sample[:, 0] == 0).mean() == pytest.approx(rate, abs=0.03)


def test_published_rates_and_usable_momentum_are_in_both_models():
    config = replace(TINY, dropout_rate=0.4, drop_connect_rate=0.1)
    expected = [block.drop_connect_rate for block in config.iter_blocks()]
    ours, theirs = (rszoo.create(config, framework=name) for name in ("torch", "keras"))
    assert [m.rate for m in ours.modules() if isinstance(m, torch_resnet_rs.DropConnect)] == expected
    blocks = [layer for layer in theirs.layers if "_block" in layer.name]
    assert [block.get_layer(f"{block.name}_drop_connect").rate for block in blocks] == expected
    assert (ours.dropout.p, theirs.get_layer("head_dropout").rate) == (0.4, 0.4)
    assert {m.momentum for m in ours.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {0.1}
    momenta = {layer.momentum for block in blocks for layer in block.layers if "_bn" in layer.name}
    assert momenta == {0.9}


@pytest.mark.parametrize("kind", ["dropout_rate", "drop_connect_rate"])
@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_rates_act_in_training_and_only_there(framework, kind):
    """Batch statistics are the same in both passes, so what differs between them is the random dropping."""
    model = rszoo.create(replace(TINY, **{kind: 0.5}), framework=framework)
    images = RNG.standard_normal((8, 64, 64, 3)).astype(np.float32)
    if framework == "torch":
        inputs = torch.from_numpy(images).permute(0, 3, 1, 2)
        for module in model.modules():
            if isinstance(module, torch_resnet_rs.Bottleneck):
                torch.nn.init.ones_(module.bn3.weight)
        with torch.no_grad():
            outputs = [[model.train(mode)(inputs).numpy() for _ in range(2)] for mode in (True, False)]
    else:
        for block in model.layers:
            if "_block" in block.name:
                gamma = block.get_layer(f"{block.name}_bn3").gamma
                gamma.assign(np.ones(gamma.shape))
        outputs = [[np.asarray(model(images, training=mode)) for _ in range(2)] for mode in (True, False)]
    assert not np.allclose(*outputs[0], atol=1e-4)
    np.testing.assert_allclose(*outputs[1], atol=1e-6)


def test_keras_seed_decides_the_initial_values():
    kernels = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        kernels.append(np.asarray(rszoo.create(TINY, framework="keras").get_layer("stem_conv2").kernel))
    assert np.array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])


def test_training_changes_memory_and_never_the_file(tiny_folder):
    before = tiny_folder.weights_path.read_bytes()
    model = rszoo.create(tiny_folder.path).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(4, 3, 64, 64)).square().mean().backward()
    optimizer.step()
    changed = rszoo.load_weights(tiny_folder.path)["fc.weight"]
    assert not np.array_equal(model.fc.weight.detach().numpy(), changed)
    assert model.bn1.num_batches_tracked == 1
    assert tiny_folder.weights_path.read_bytes() == before


def test_saved_keras_model_loads_where_rszoo_is_not(tiny_folder, tmp_path):
    model = rszoo.create(tiny_folder.path, framework="keras")
    images = RNG.standard_normal((2, 64, 64, 3)).astype(np.float32)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", images)
    # -P and the folder: neither the checkout nor an installed rszoo can be imported.
    code = (
        "import sys; sys.modules['rszoo'] = None; import keras, numpy as np;"
        "model = keras.saving.load_model('model.keras');"
        "np.save('logits.npy', model(np.load('images.npy'), training=False))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), logits_of(model, images), atol=1e-6)
    # Rebuilt from its config alone it starts from published initial values, not from a copy of the weights.
    fresh = keras.Model.from_config(model.get_config())
    assert fresh.get_layer("stem_conv1").get_config()["kernel_initializer"]["class_name"] == "VarianceScaling"


def test_the_deepest_keras_model_builds_within_the_default_recursion_limit():
    narrow = ArchConfig.from_dict({"depth": 420, "width_multiplier": 0.016, "num_classes": 3})
    assert sys.getrecursionlimit() <= 1000 or sys.gettrace() is not None
    model = keras_resnet_rs.build_model(narrow)
    assert logits_of(model, np.zeros((1, 32, 32, 3), np.float32)).shape == (1, 3)


def test_torch_model_follows_timms_interface(tiny_folder):
    model = rszoo.create(tiny_folder.path)
    images = torch.randn(2, 3, 64, 64)
    stages = model.forward_stages(images)
    assert torch.equal(model.forward_head(model.forward_features(images)), model(images))
    assert torch.equal(stages["logits"], model(images))
    assert (model.num_features, model.num_classes) == (256, 7)
    assert model.get_classifier() is model.fc
    model.reset_classifier(4)
    assert model(images).shape == (2, 4)
    with pytest.raises(ConfigError, match="num_classes"):
        model.reset_classifier(-1)


def test_without_classes_a_model_returns_the_pooled_features(tiny_folder, tmp_path, caplog):
    images = RNG.standard_normal((2, 75, 64, 3)).astype(np.float32)
    whole = rszoo.create(tiny_folder.path)
    with torch.no_grad():
        pooled = whole.forward_stages(torch.from_numpy(images).permute(0, 3, 1, 2))["pooled"].numpy()
    model = rszoo.create(tiny_folder.path, num_classes=0)
    assert (model.num_classes, type(model.get_classifier())) == (0, torch.nn.Identity)
    keras_model = rszoo.create(tiny_folder.path, num_classes=0, framework="keras")
    # It was asked for, and nothing was drawn.
    assert caplog.text == ""
    np.testing.assert_array_equal(logits_of(model, images), pooled)
    np.testing.assert_allclose(logits_of(keras_model, images), pooled, rtol=1e-5, atol=1e-6)
    for number, made in enumerate((model, keras_model)):
        folder = rszoo.save(made, tmp_path / str(number))
        assert (folder.config.arch.num_classes, folder.config.labels) == (0, None)
        np.testing.assert_array_equal(logits_of(rszoo.create(folder), images), pooled)
    whole.reset_classifier(0)
    np.testing.assert_array_equal(logits_of(whole, images), pooled)
    whole.reset_classifier(3)
    assert whole(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_name_without_pretrained_draws_and_demo_loads():
    torch.manual_seed(0)
    first = rszoo.create("resnet-rs-demo")
    assert first.training
    loaded = rszoo.create("resnet-rs-demo", pretrained=True)
    assert not torch.equal(first.fc.weight, loaded.fc.weight)
    np.testing.assert_array_equal(loaded.fc.weight.detach().numpy(), rszoo.load_weights("resnet-rs-demo")["fc.weight"])


def maps_of(model, images_nhwc: np.ndarray) -> list[np.ndarray]:
    """Feature maps of either framework, NHWC."""
    if not isinstance(model, keras.Model):
        with torch.no_grad():
            maps = model(torch.from_numpy(images_nhwc).permute(0, 3, 1, 2))
        assert isinstance(maps, list)
        return [x.permute(0, 2, 3, 1).numpy() for x in maps]
    maps = model(images_nhwc, training=False)
    return [keras.ops.convert_to_numpy(x) for x in (maps if isinstance(maps, list) else [maps])]


@pytest.fixture
def read_names(monkeypatch):
    """The names of all tensors that are read from files from now on."""
    names = []
    load = Weights.load
    monkeypatch.setattr(Weights, "load", lambda self, wanted: load(self, [names.append(n) or n for n in wanted]))
    return names


@pytest.mark.parametrize("out_indices", [None, (1, 2, 3, 4), (0,), (-1,), (3, 1), [-5, 2]])
def test_feature_maps_are_the_classifiers_in_both_frameworks(tiny_folder, out_indices):
    full = rszoo.create(tiny_folder.path)
    with torch.no_grad():
        images = torch.from_numpy(ODD_SIZED).permute(0, 3, 1, 2)
        stages = full.forward_stages(images)
        everything = [full.act1(full.bn1(full.conv1(images))), *(stages[f"stage{number}"] for number in range(1, 5))]
    chosen = [range(5)[index] for index in (range(5) if out_indices is None else out_indices)]
    expected = [everything[index].permute(0, 2, 3, 1).numpy() for index in chosen]
    ours, theirs = (
        rszoo.create(tiny_folder.path, framework=name, features_only=True, out_indices=out_indices)
        for name in ("torch", "keras")
    )
    for actual, wanted in zip(maps_of(ours, ODD_SIZED), expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)
    for actual, wanted in zip(maps_of(theirs, ODD_SIZED), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-5)
    for model in (ours, theirs):
        assert model.feature_info.channels() == [x.shape[-1] for x in expected]
        assert [-(-75 // stride) for stride in model.feature_info.reduction()] == [x.shape[1] for x in expected]
        assert model.feature_info.out_indices == tuple(chosen)
        assert model.preprocessing == tiny_folder.preprocessing
    modules = dict(ours.named_modules())
    assert all(name in modules for name in ours.feature_info.module_name())


@pytest.mark.parametrize(("last", "needed"), [(0, "conv1 bn1"), (2, "conv1 bn1 maxpool layer1 layer2")])
@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_what_lies_behind_the_last_map_is_neither_built_nor_read(tiny_folder, read_names, framework, last, needed):
    specs = [spec for spec in iter_tensors(TINY) if torch_name(spec).split(".")[0] in needed.split()]
    model = rszoo.create(tiny_folder.path, framework=framework, features_only=True, out_indices=(last,))
    assert sorted(read_names) == sorted(torch_name(spec) for spec in specs)
    if framework == "torch":
        built = {name for name in model.state_dict() if not name.endswith("num_batches_tracked")}
        assert built == {torch_name(spec) for spec in specs}
        random = rszoo.create(TINY, features_only=True, out_indices=(last,))
        assert random.state_dict().keys() == model.state_dict().keys()
        random.init_weights()
    else:
        assert {variable.path for variable in model.weights} == {"/".join(keras_name(spec)) for spec in specs}


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_features_take_channels_and_seeds_as_the_classifier_does(tiny_folder, framework):
    for source, settings in ((TINY, {}), (tiny_folder.path, {"in_chans": 1})):
        models = []
        for features_only in (True, False):
            torch.manual_seed(3)
            keras.utils.set_random_seed(3)
            models.append(rszoo.create(source, framework=framework, features_only=features_only, **settings))
        backbone, full = models
        if framework == "torch":
            state = full.state_dict()
            assert all(torch.equal(values, state[name]) for name, values in backbone.state_dict().items())
        else:
            values = {variable.path: np.asarray(variable) for variable in full.weights}
            assert all(np.array_equal(variable, values[variable.path]) for variable in backbone.weights)


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_another_class_count_does_not_read_the_head(tiny_folder, read_names, framework):
    rszoo.create(tiny_folder.path, framework=framework, num_classes=3)
    names = [torch_name(spec) for spec in iter_tensors(TINY)]
    assert sorted(read_names) == sorted(names[:-2])
    assert names[-2:] == ["fc.weight", "fc.bias"]


@pytest.mark.parametrize("dtype", ["float32", "float16", torch.bfloat16, "float64"])
@pytest.mark.parametrize("settings", [{}, {"features_only": True}, {"num_classes": 3, "in_chans": 4}])
@pytest.mark.parametrize("stored", [True, False])
def test_torch_dtype_is_that_of_a_converted_model(tiny_folder, dtype, settings, stored):
    source = tiny_folder.path if stored else TINY
    torch.manual_seed(5)
    expected = rszoo.create(source, **settings).to(dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype))
    torch.manual_seed(5)
    model = rszoo.create(source, dtype=dtype, device="cpu", **settings)
    assert model.training == expected.training == (not stored)
    actual = model.state_dict()
    assert actual.keys() == expected.state_dict().keys()
    for name, values in expected.state_dict().items():
        assert actual[name].dtype == values.dtype
        assert torch.equal(actual[name], values), name
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_conversion_holds_one_float32_tensor_or_one_block_at_a_time(tiny_folder, framework, monkeypatch):
    read, alive = Weights.load, []

    def load(self, names):
        # Pages of a mapped file are memory, too.
        assert sys.platform != "linux" or str(tiny_folder.path) not in Path("/proc/self/maps").read_text()
        tensors = read(self, names)
        references.extend(weakref.ref(tensor) for tensor in tensors.values())
        alive.append(sum(reference() is not None for reference in references))
        return tensors

    references: list[weakref.ref[object]] = []
    monkeypatch.setattr(Weights, "load", load)
    rszoo.create(tiny_folder.path, framework=framework, dtype="bfloat16")
    specs = list(iter_tensors(TINY))
    assert len(references) == len(specs)
    # Keras: a block's variables get their values together.
    blocks = Counter(spec.layer.rpartition(".")[0] for spec in specs)
    assert max(alive) <= (2 if framework == "torch" else max(blocks.values()) + 1)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's alone")
def test_blocks_share_tensorflows_kernels():
    # It makes one, in most of a millisecond, for each name and shape of a variable that it has not seen.
    weights = rszoo.create("resnet-rs-50", framework="keras").weights
    seen = {(weight.value.name, tuple(weight.shape)) for weight in weights if weight.path.startswith("stage")}
    assert (len(seen) < 60, len({weight.path for weight in weights})) == (True, len(weights))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "mixed_float16", "mixed_bfloat16"])
def test_keras_dtype_is_a_policy_while_building(tiny_folder, dtype):
    if (keras.backend.backend(), dtype) == ("jax", "float64"):
        with pytest.raises(UsageError, match="JAX_ENABLE_X64"):
            rszoo.create(tiny_folder.path, framework="keras", dtype=dtype)
        assert keras.config.dtype_policy().name == "float32"
        return
    expected = rszoo.create(tiny_folder.path, framework="keras")
    model = rszoo.create(tiny_folder.path, framework="keras", dtype=dtype, device="cpu")
    assert keras.config.dtype_policy().name == "float32"
    variable_dtype = "float32" if dtype.startswith("mixed") else dtype
    assert {variable.dtype for variable in model.weights} == {variable_dtype}
    for before, after in zip(expected.weights, model.weights, strict=True):
        wanted = keras.ops.cast(before.value, variable_dtype)
        assert keras.ops.all(keras.ops.equal(after.value, wanted)), after.path
    logits = model(ODD_SIZED, training=False)
    assert keras.backend.standardize_dtype(logits.dtype) == dtype.removeprefix("mixed_")
    reference = logits_of(expected, ODD_SIZED)
    error = np.abs(keras.ops.convert_to_numpy(keras.ops.cast(logits, "float32")) - reference).max()
    assert error < 0.1 * np.abs(reference).max()


def test_keras_policy_is_restored_when_building_fails(tiny_folder, monkeypatch):
    def fail(*_):
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
        raise MemoryError

    monkeypatch.setattr(keras_resnet_rs._Builder, "dense", fail)
    for source in (tiny_folder.path, TINY):
        with pytest.raises(MemoryError):
            rszoo.create(source, framework="keras", dtype="mixed_bfloat16")
        assert keras.config.dtype_policy().name == "float32"


def test_weights_are_lazy_and_a_mapping(tiny_folder):
    with rszoo.load_weights(tiny_folder.path) as weights:
        specs = list(iter_tensors(TINY))
        assert list(weights) == [*counter_names(specs), *map(torch_name, specs)]
        assert weights.shape("conv1.0.weight") == (4, 3, 3, 3)
        assert weights["conv1.0.weight"].shape == (4, 3, 3, 3)
        assert "nothing" not in weights
        assert weights.metadata["weights"] == "ema"
        with pytest.raises(KeyError):
            weights["nothing"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda folder: rszoo.create("resnet-rs-51"), UnknownModelError, "resnet-rs-50"),
        (lambda folder: rszoo.create("no/such/folder"), SourceNotFoundError, "rszoo-convert"),
        (lambda folder: rszoo.create(folder.parent), SourceNotFoundError, "not a model folder"),
        (lambda folder: rszoo.create(folder, framework="tensorflow"), UsageError, "torch or keras"),
        (lambda folder: rszoo.create("resnet-rs-50-i160.tar.gz"), UnknownModelError, "rszoo-convert --ckpt"),
        (lambda folder: rszoo.create(folder, num_classes=-1), ConfigError, "num_classes"),
        (lambda folder: rszoo.create(TINY, pretrained=True), UsageError, "no pretrained weights"),
        (lambda folder: rszoo.create(folder, features_only=True, num_classes=3), UsageError, "no head.*num_classes=3"),
        (lambda folder: rszoo.create(folder, out_indices=(1,)), UsageError, "features_only=True"),
        *(
            (lambda folder, bad=bad: rszoo.create(folder, features_only=True, out_indices=bad), UsageError, "0 to 4")
            for bad in ((), (5,), (-6,), (1, 1), (4, -1), (1.0,), (True,), 3, "12")
        ),
        (lambda folder: rszoo.create(folder, dtype="bfloat61"), UsageError, "one of bfloat16, .*'bfloat61'"),
        (lambda folder: rszoo.create(folder, dtype=torch.int8), UsageError, "float32.*torch.int8"),
        (lambda folder: rszoo.create(folder, dtype="mixed_bfloat16"), UsageError, "for torch must be one of bfloat16"),
        (lambda folder: rszoo.create(folder, framework="keras", dtype="int8"), UsageError, "mixed_float16.*'int8'"),
        *(
            (lambda folder, bad=bad: rszoo.create(folder, device=bad), UsageError, "this machine has cpu")
            for bad in ("cuda:99", "graphics", "meta", 3.5)
        ),
        *(
            (lambda folder, bad=bad: rszoo.create(folder, framework="keras", device=bad), UsageError, "has cpu:0")
            for bad in ("gpu:99", "graphics")
        ),
    ],
)
def test_wrong_arguments(tiny_folder, call, error, message):
    with pytest.raises(error, match=message):
        call(tiny_folder.path)


def copy_of(folder, target):
    target.mkdir()
    for file in folder.path.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-100], "damaged"),
        (lambda data: b"", "damaged"),
        (lambda data: data.replace(b'"conv1.0.weight"', b'"conv1.0.wEight"'), r"1 of \d+ missing .conv1.0.weight"),
        (lambda data: data.replace(b'"shape":[4,3,3,3]', b'"shape":[3,4,3,3]'), "1 misshapen .conv1.0.weight"),
    ],
)
@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_damaged_weights_are_refused(tiny_folder, tmp_path, framework, damage, message):
    folder = copy_of(tiny_folder, tmp_path / "damaged")
    weights = folder / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(WeightsError, match=message):
        rszoo.create(folder, framework=framework)


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_missing_framework_names_the_extra(framework):
    code = (
        f"import sys; sys.modules[{framework!r}] = None; import rszoo\n"
        f"try: rszoo.create('resnet-rs-demo', framework={framework!r})\n"
        "except rszoo.RszooError as error: print(type(error).__name__, error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.startswith(MissingPackageError.__name__)
    extra = {"torch": "torch", "keras": "keras,tensorflow"}[framework]
    assert f'pip install "rszoo[{extra}]"' in run.stdout
