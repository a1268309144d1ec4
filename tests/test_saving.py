"""`rszoo.save`: every value arrives and comes back bit by bit; what cannot be saved leaves nothing behind."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import subprocess
import sys

import keras
import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn.utils import parametrize, prune

import rszoo
from rszoo.arch.config import ArchConfig
from rszoo.arch.names import counter_names, is_counter, keras_name, to_torch_layout, torch_name
from rszoo.arch.walk import Kind, iter_tensors
from rszoo.disk.safetensors_writer import SafetensorsWriter
from rszoo.errors import OutputError, UsageError
from rszoo.folder import writing
from rszoo.folder.model_folder import find_damage, read_folder
from rszoo.models.saving import save
from rszoo.registry.preprocessing import Preprocessing
from rszoo.verify.checks import verify
from rszoo.verify.given import check_golden, check_source
from tests.tf1 import TINY

IMAGES = np.random.default_rng(1).standard_normal((2, 64, 75, 3)).astype(np.float32)
SETTINGS = Preprocessing(image_size=64, crop=0.9)


def logits_of(model, images_nhwc: np.ndarray = IMAGES) -> np.ndarray:
    if isinstance(model, keras.Model):
        return keras.ops.convert_to_numpy(model(images_nhwc, training=False))
    with torch.no_grad():
        return model.eval()(torch.from_numpy(images_nhwc).permute(0, 3, 1, 2)).numpy()


def trained(source, framework: str = "torch", **settings):
    """Create a model and give it other values, as training would: every tensor its own."""
    model = rszoo.create(source, framework=framework, **settings)
    put(model, values_of(model, np.random.default_rng(2)))
    return model


def values_of(model, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
    """Return all tensors by PyTorch's names in PyTorch's layout, float64; with `rng`, moved a little."""
    state = model.state_dict() if not isinstance(model, keras.Model) else None
    variables = {} if state is not None else {(v.path.split("/")[-2], v.name): v for v in model.weights}
    found = {}
    for spec in iter_tensors(model.config):
        if state is not None:
            values = state[torch_name(spec)].to(torch.float64).numpy()
        else:
            stored = keras.ops.convert_to_numpy(variables[keras_name(spec)]).astype(np.float64)
            values = to_torch_layout(spec.kind, stored)
        found[torch_name(spec)] = values if rng is None else values + 0.1 * rng.random(values.shape)
    return found


def put(model, values: dict[str, np.ndarray]) -> None:
    """Set all tensors."""
    if not isinstance(model, keras.Model):
        state = {name: torch.from_numpy(array) for name, array in values.items()}
        model.load_state_dict({**model.state_dict(), **state})
        return
    variables = {(v.path.split("/")[-2], v.name): v for v in model.weights}
    for spec in iter_tensors(model.config):
        axes = {Kind.CONV_KERNEL: (2, 3, 1, 0), Kind.DENSE_KERNEL: (1, 0)}.get(spec.kind)
        array = values[torch_name(spec)]
        variables[keras_name(spec)].assign(array if axes is None else array.transpose(axes))


def stored_values(folder) -> dict[str, np.ndarray]:
    with safe_open(folder.weights_path, framework="numpy") as opened:
        names = [name for name in opened.keys() if not is_counter(name)]  # noqa: SIM118 - no mapping
        return {name: opened.get_tensor(name) for name in names}


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_a_saved_model_comes_back_bit_by_bit(tiny_folder, framework, tmp_path):
    model = trained(tiny_folder.path, framework)
    folder = save(model, tmp_path / "new" / "mine")
    stored, values = stored_values(folder), values_of(model)
    original = rszoo.load_weights(tiny_folder.path)
    assert stored.keys() == values.keys() == set(filter(lambda name: not is_counter(name), original))
    for name, array in values.items():
        assert stored[name].dtype == np.float32
        np.testing.assert_array_equal(stored[name], array, err_msg=name)
        assert not np.array_equal(stored[name], original[name])
    again = rszoo.create(folder.path, framework=framework)
    np.testing.assert_array_equal(logits_of(again), logits_of(model))
    assert not np.array_equal(logits_of(again), logits_of(rszoo.create(tiny_folder.path, framework=framework)))
    other = rszoo.create(folder.path, framework="keras" if framework == "torch" else "torch")
    np.testing.assert_allclose(logits_of(other), logits_of(model), atol=1e-4, rtol=1e-5)
    assert (again.config, again.preprocessing, again.origin) == (TINY, tiny_folder.preprocessing, folder.config)


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_the_folder_says_what_it_is(tiny_folder, framework, tmp_path):
    model = trained(tiny_folder.path, framework)
    folder = save(model, tmp_path / "mine", labels=list("abcdefg"))
    config = folder.config
    assert (config.weights, config.pair, config.arch) == ("trained", None, TINY)
    assert (config.labels, config.preprocessing) == (tuple("abcdefg"), tiny_folder.preprocessing)
    assert config.title == f"{tiny_folder.config.title}, trained further"
    account = json.loads((folder.path / "conversion.json").read_text())
    assert find_damage(folder.path) is None
    names = [torch_name(spec) for spec in iter_tensors(TINY)]
    assert list(account["mapped"].values()) == names
    assert account["source"]["name"] == tiny_folder.config.title
    assert (account["source"]["framework"], account["source"]["dtypes"]) == (framework, ["float32"])
    counters = [name for group in account["skipped"].values() for name in group]
    assert sorted(counters) == sorted(key for key in getattr(model, "state_dict", dict)() if key.endswith("_tracked"))
    assert account["parameters"] == sum(spec.size for spec in iter_tensors(TINY) if spec.kind.trainable)
    # Counts of batches, then the walk's order in the file, and the same bytes each time.
    assert list(rszoo.load_weights(folder.path)) == [*counter_names(iter_tensors(TINY)), *names]
    twin = save(model, tmp_path / "twin", labels=list("abcdefg"))
    for file in ("config.json", "conversion.json", "model.safetensors"):
        assert (twin.path / file).read_bytes() == (folder.path / file).read_bytes()


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_an_untouched_model_stays_what_it_is(verified, framework, tmp_path):
    for weights, source in verified.items():
        model, origin = rszoo.create(source, framework=framework), read_folder(source).config
        folder = save(model, tmp_path / weights)
        assert folder.config == origin
        assert (origin.title, origin.pair, origin.weights) == ("resnet-rs-demo", "resnet-rs-demo", weights)
        assert find_damage(folder.path) is None
        # What is said of the images or classes is not the pair's; the weights are still the published ones.
        named = save(model, tmp_path / f"{weights}-named", title="Mine", labels=list("abcdefghij")).config
        assert (named.title, named.pair, named.weights) == ("Mine", None, weights)
    model.preprocessing = SETTINGS
    assert save(model, tmp_path / "other").config.pair is None
    # One bit of one tensor, or a number of the architecture, and it is another model.
    values = values_of(model)
    values["layer2.0.bn1.bias"][0] = np.nextafter(values["layer2.0.bn1.bias"][0].astype(np.float32), np.float32(9))
    put(model, values)
    config = save(model, tmp_path / "changed").config
    assert (config.title, config.pair, config.weights) == ("resnet-rs-demo, trained further", None, "trained")
    model = rszoo.create(verified["ema"], framework=framework)
    model.config = dataclasses.replace(model.config, dropout_rate=0.5)
    assert save(model, tmp_path / "dropout").config.weights == "trained"


def test_an_untouched_model_can_be_verified_like_the_folder_that_it_came_from(verified, tmp_path):
    folder = save(rszoo.create(verified["ema"]), tmp_path / "mine")
    assert check_source(folder, None).status == "passed"
    assert check_golden(folder, None).status == "not run"


def test_a_trained_network_passes_verification(tiny_folder, tmp_path):
    model = rszoo.create(tiny_folder.path).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model(torch.from_numpy(IMAGES).permute(0, 3, 1, 2)).square().mean().backward()
    optimizer.step()
    folder = save(model, tmp_path / "mine")
    assert not np.array_equal(stored_values(folder)["bn1.running_mean"], stored_values(tiny_folder)["bn1.running_mean"])
    checks = {check.name: check for check in verify(folder)}
    passed = {name for name, check in checks.items() if check.status == "passed"}
    assert passed == {"file", "values", "torch = keras", "torch = original graph", "keras = original graph"}, checks
    assert {check.status for check in checks.values()} == {"passed", "not run"}
    # Saved again, it is still trained further, once.
    assert save(rszoo.create(folder.path), tmp_path / "again").config.title == folder.config.title


def test_a_compiled_and_trained_keras_model_is_saved_without_its_optimizer(tmp_path):
    model = rszoo.create("resnet-rs-demo", pretrained=True, framework="keras")
    before = logits_of(model, IMAGES[:, :32, :32])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss, run_eagerly=True)
    model.train_on_batch(IMAGES[:, :32, :32], np.array([3, 4]))
    folder = save(model, tmp_path / "mine")
    assert (folder.config.labels, folder.config.title) == (tuple("0123456789"), "resnet-rs-demo, trained further")
    again = logits_of(rszoo.create(folder.path, framework="keras"), IMAGES[:, :32, :32])
    np.testing.assert_array_equal(again, logits_of(model, IMAGES[:, :32, :32]))
    assert not np.array_equal(again, before)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "mixed_float16"])
@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_other_dtypes_are_widened_exactly(tiny_folder, framework, dtype, tmp_path, caplog):
    if framework == "torch" and dtype == "mixed_float16":
        pytest.skip("Keras's alone")
    model = rszoo.create(tiny_folder.path, framework=framework, dtype=dtype)
    values = values_of(model)
    with caplog.at_level(logging.WARNING, "rszoo"):
        folder = save(model, tmp_path / "mine")
    assert caplog.text == ""
    for name, array in stored_values(folder).items():
        np.testing.assert_array_equal(array.astype(np.float64), values[name], err_msg=name)
    account = json.loads((folder.path / "conversion.json").read_text())
    assert account["source"]["dtypes"] == ["float32" if "mixed" in dtype else dtype]


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_float64_is_rounded_and_says_so(tiny_folder, framework, tmp_path, caplog):
    model = rszoo.create(tiny_folder.path, framework=framework, dtype="float64")
    values = values_of(model)
    values["fc.bias"] = values["fc.bias"] + 1e-12
    put(model, values)
    with caplog.at_level(logging.WARNING, "rszoo"):
        folder = save(model, tmp_path / "mine")
    assert "1 tensors of float64 were rounded" in caplog.text
    np.testing.assert_array_equal(stored_values(folder)["fc.bias"], values["fc.bias"].astype(np.float32))
    assert "1 tensors of float64 rounded" in (folder.path / "conversion.json").read_text()
    values["fc.bias"] = np.full(7, 1e39)
    put(model, values)
    with pytest.raises(UsageError, match=r"(fc|head_dense).bias has values up to 1e\+39, too large for the float32"):
        save(model, tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_values_that_are_not_numbers_are_kept(tiny_folder, tmp_path, caplog):
    model = rszoo.create(tiny_folder.path, dtype="float64")
    with torch.no_grad():
        model.fc.bias[:3] = torch.tensor([float("nan"), float("inf"), -0.0])
    bias = stored_values(save(model, tmp_path / "mine"))["fc.bias"]
    assert np.isnan(bias[0])
    assert np.isposinf(bias[1])
    assert np.signbit(bias[2])
    assert caplog.text == ""


def test_wrapped_networks_are_found(tiny_folder, tmp_path):
    model = trained(tiny_folder.path)
    expected = (save(model, tmp_path / "plain").path / "model.safetensors").read_bytes()
    wrappers = {
        "compiled": torch.compile(model, backend="eager"),
        "parallel": torch.nn.DataParallel(model),
        "both": torch.nn.DataParallel(torch.compile(model, backend="eager")),
        "averaged": torch.optim.swa_utils.AveragedModel(model),
    }
    for name, wrapped in wrappers.items():
        assert (save(wrapped, tmp_path / name).path / "model.safetensors").read_bytes() == expected, name


def test_channels_last_and_shared_memory_do_not_matter(tiny_folder, tmp_path):
    model = trained(tiny_folder.path)
    expected = values_of(model)
    folder = save(copy.deepcopy(model).to(memory_format=torch.channels_last), tmp_path / "mine")
    for name, array in stored_values(folder).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    assert folder.config.title.endswith("trained further")


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_a_new_head_has_no_labels_of_the_old_one(framework, tmp_path):
    demo = rszoo.create("resnet-rs-demo", pretrained=True, framework=framework, num_classes=3, in_chans=1)
    folder = save(demo, tmp_path / "mine", title="Digits of mine")
    assert (folder.config.labels, folder.config.title, folder.config.arch.in_chans) == (None, "Digits of mine", 1)
    again = rszoo.create(folder.path, framework=framework)
    np.testing.assert_array_equal(logits_of(again, IMAGES[..., :1]), logits_of(demo, IMAGES[..., :1]))
    named = save(demo, tmp_path / "named", labels=("one", "two", "three"))
    assert read_folder(named.path).config.labels == ("one", "two", "three")


def test_a_head_that_was_reset_is_saved(tiny_folder, tmp_path):
    model = rszoo.create(tiny_folder.path)
    model.reset_classifier(4)
    folder = save(model, tmp_path / "mine")
    assert folder.config.arch.num_classes == 4
    np.testing.assert_array_equal(logits_of(rszoo.create(folder.path)), logits_of(model))


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_a_model_of_an_architecture_needs_its_preprocessing(framework, tmp_path):
    model = rszoo.create(TINY, framework=framework)
    assert (model.config, model.origin) == (TINY, None)
    with pytest.raises(UsageError, match=r"set model.preprocessing = rszoo.Preprocessing\(image_size=\.\.\.\)"):
        save(model, tmp_path / "mine")
    assert list(tmp_path.iterdir()) == []
    model.preprocessing = SETTINGS
    folder = save(model, tmp_path / "mine")
    assert (folder.preprocessing, folder.config.labels, folder.config.title) == (SETTINGS, None, TINY.label)
    np.testing.assert_array_equal(logits_of(rszoo.create(folder.path, framework=framework)), logits_of(model))


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_every_model_knows_what_it_was_made_of(tiny_folder, framework):
    adapted = rszoo.create(tiny_folder.path, framework=framework, num_classes=3)
    assert (adapted.config.num_classes, adapted.origin) == (3, tiny_folder.config)
    fresh = rszoo.create("resnet-rs-demo", framework=framework)
    assert (fresh.config, fresh.origin) == (rszoo.get_entry("resnet-rs-demo").arch, None)
    maps = rszoo.create(tiny_folder.path, framework=framework, features_only=True)
    assert (maps.config, maps.origin) == (TINY, tiny_folder.config)


class Adapted(torch.nn.Module):
    """A layer with LoRA under PEFT's names."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer
        self.lora_A = torch.nn.ModuleDict({"default": torch.nn.Linear(layer.in_features, 2, bias=False)})
        self.lora_B = torch.nn.ModuleDict({"default": torch.nn.Linear(2, layer.out_features, bias=False)})


class Merged(torch.nn.Module):
    """What PEFT puts around a network: no config of its own."""

    def __init__(self, model):
        super().__init__()
        self.base_model = torch.nn.Module()
        self.base_model.model = model
        model.fc = Adapted(model.fc)


class Packed(torch.Tensor):
    """A tensor as torchao's: its values are in another one, and few operations are known."""

    __module__ = "torchao.dtypes.affine_quantized_tensor"

    @staticmethod
    def __new__(cls, inner):
        """Return a tensor that says the shape of another."""
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=torch.float32)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        """Know nothing but how to be detached."""
        if function is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(f"{function} of a packed tensor")


class Foreign(Packed):
    """The same of a package that nobody has heard of."""

    __module__ = "tensors_of_mine"


class Sharded(Packed):
    """The same as PyTorch's DTensor: a part of a tensor."""

    __module__ = "torch.distributed.tensor"


class Frozen(torch.nn.Module):
    """torchvision's FrozenBatchNorm2d."""

    def __init__(self, norm, eps=1e-5):
        super().__init__()
        self.eps = eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).detach().clone())

    def forward(self, images):
        """Apply the stored statistics."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return images * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]


def replace_norms(model, make):
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.BatchNorm2d):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, make(module))
    return model


def altered(folder):
    """Yield networks that other tools changed, with what is said of each; never is a number of classes advised."""
    make = lambda: rszoo.create(folder)  # noqa: E731
    model = make()
    prune.l1_unstructured(model.layer1[0].conv1, "weight", 0.5)
    prune.random_structured(model.fc, "weight", 0.5, dim=0)
    remove = r'prune\.remove\(model.get_submodule\("layer1\.0\.conv1"\), "weight"\)'
    yield model, rf"2 tensors are pruned \(layer1\.0\.conv1\.weight, fc\.weight\); .*{remove}"
    model = make()
    prune.global_unstructured([(model.fc, "weight")], prune.L1Unstructured, amount=0.5)
    yield torch.nn.DataParallel(model), "1 tensors are pruned"
    model = make()
    torch.nn.utils.parametrizations.weight_norm(model.fc)
    parametrize.register_parametrization(model.conv1[0], "weight", torch.nn.Identity())
    remove = r'remove_parametrizations\(model.get_submodule\("conv1.0"\), "weight"\)'
    yield model, rf"2 tensors are parametrized \(conv1\.0\.weight, fc\.weight\); .*{remove}"
    model = make()
    torch.nn.utils.spectral_norm(model.fc)
    yield model, r"1 tensors are parametrized \(fc\.weight\).*remove_spectral_norm\(model"
    model = make()
    model.fc = Adapted(model.fc)
    yield model, r"PEFT's adapters \(fc\.base_layer\.weight,.*model\.merge_and_unload\(\)"
    yield Merged(make()), r"PEFT's adapters.*model\.merge_and_unload\(\)"
    yield torch.ao.quantization.quantize_dynamic(make(), {torch.nn.Linear}), r"quantized \(fc.*float model.*dequantize"
    model = make()
    model.fc.weight = torch.nn.Parameter(Packed(model.fc.weight), requires_grad=False)
    yield model, r"it is quantized \(fc\.weight\).*dequantize\(\)"
    model = make()
    model.fc.weight = torch.nn.Parameter(Foreign(model.fc.weight), requires_grad=False)
    yield model, r"no plain tensors but tensors_of_mine\.Foreign \(fc\.weight\)"
    model = make()
    model.fc.weight = torch.nn.Parameter(Sharded(model.fc.weight), requires_grad=False)
    yield model, r"spread over processes \(fc\.weight\); gather them with .*get_model_state_dict"
    model = make()
    model.fc.weight = torch.nn.Parameter(model.fc.weight.detach().to_sparse())
    yield model, r"sparse \(fc\.weight\); replace each by its to_dense"
    model = make()
    model.fc = torch.nn.LazyLinear(7)
    yield model, r"2 tensors are without values \(fc\.weight, fc\.bias\); load values first"
    yield make().to("meta"), r"without values \(conv1\.0\.weight,"
    model = make()
    model.layer1[0].conv1 = torch.nn.utils.fusion.fuse_conv_bn_eval(model.layer1[0].conv1, model.layer1[0].bn1)
    model.layer1[0].bn1 = torch.nn.Identity()
    yield model, r"batch normalization was fused into the convolutions; save it before that"
    model = make()
    model.layer1[0].conv1 = torch.nn.Conv2d(model.layer1[0].conv1.in_channels, 3, 1, bias=False)
    yield model, r"1 misshapen .*given other numbers of channels.*torch\.save"
    yield replace_norms(make(), lambda norm: torch.nn.GroupNorm(1, norm.num_features)), r"missing.*layers were replaced"
    yield replace_norms(make(), lambda norm: Frozen(norm, 1e-3)), r"another epsilon \(.*: 0\.001\) than .* 1e-05"


# What the tools say of themselves: deprecated, or new.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_what_other_tools_changed_is_named_with_what_undoes_it(tiny_folder, tmp_path):
    for model, message in altered(tiny_folder.path):
        with pytest.raises(UsageError, match=message) as caught:
            save(model, tmp_path / "mine")
        assert "num_classes" not in str(caught.value)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_is_undone_as_advised_is_saved(tiny_folder, tmp_path):
    model = rszoo.create(tiny_folder.path)
    prune.l1_unstructured(model.get_submodule("layer1.0.conv1"), "weight", 0.5)
    prune.remove(model.get_submodule("layer1.0.conv1"), "weight")
    torch.nn.utils.parametrizations.spectral_norm(model.fc)
    parametrize.remove_parametrizations(model.get_submodule("fc"), "weight")
    folder = save(model, tmp_path / "mine")
    assert (stored_values(folder)["layer1.0.conv1.weight"] == 0).mean() >= 0.5
    np.testing.assert_array_equal(logits_of(rszoo.create(folder.path)), logits_of(model))


def test_what_computes_the_same_is_saved(tiny_folder, tmp_path):
    """Other layers with the same tensors, one tensor in two places, a part that is compiled, classes without effect."""
    expected = stored_values(tiny_folder)
    frozen = replace_norms(rszoo.create(tiny_folder.path), Frozen)
    np.testing.assert_allclose(logits_of(frozen), logits_of(rszoo.create(tiny_folder.path)), atol=1e-4)
    compiled = rszoo.create(tiny_folder.path)
    compiled.layer1 = torch.compile(compiled.layer1, backend="eager")
    marked = rszoo.create(tiny_folder.path)
    marked.fc.weight = torch.nn.Parameter(marked.fc.weight.detach().as_subclass(type("Mine", (torch.Tensor,), {})))
    models = {
        "frozen": frozen,
        "compiled": compiled,
        "marked": marked,
        "synchronized": torch.nn.SyncBatchNorm.convert_sync_batchnorm(rszoo.create(tiny_folder.path)),
    }
    for name, model in models.items():
        stored = stored_values(save(model, tmp_path / name))
        assert {key: values.tobytes() for key, values in stored.items()} == {
            key: values.tobytes() for key, values in expected.items()
        }, name
    tied = rszoo.create(tiny_folder.path)
    tied.layer2[1].bn2.weight = tied.layer2[1].bn1.weight
    stored = stored_values(save(tied, tmp_path / "tied"))
    np.testing.assert_array_equal(stored["layer2.1.bn2.weight"], expected["layer2.1.bn1.weight"])


def cases_of_torch(folder):
    model = rszoo.create(folder)
    model.fc = torch.nn.Linear(model.num_features, 3)
    yield model, r"2 misshapen \(fc.weight \(3, 256\), not \(7, 256\), fc.bias \(3,\), not \(7,\)\); .*reset_classifier"
    model = rszoo.create(folder)
    model.fc = torch.nn.Sequential(torch.nn.Linear(model.num_features, 7))
    yield model, r"2 of \d+ missing \(fc.weight, fc.bias\); 2 unexpected \(fc.0.bias, fc.0.weight\)"
    model = rszoo.create(folder)
    model.fc.bias = torch.nn.Parameter(torch.zeros(7, dtype=torch.int32), requires_grad=False)
    yield model, r"1 not float16, bfloat16, float32, float64 \(fc.bias int32\); convert them to float32"
    yield torch.nn.Linear(3, 3), "Linear that rszoo.create did not make"
    yield torch.nn.DataParallel(torch.nn.Linear(3, 3)), "Linear that rszoo.create did not make"
    yield rszoo.create(folder, features_only=True), "features_only=True"
    yield {"fc.weight": torch.zeros(3)}, "cannot save a dict; give a PyTorch or Keras model"


def cases_of_keras(folder):
    model = rszoo.create(folder, framework="keras")
    model.get_layer("head_dense").enable_lora(2)
    yield model, r"it has LoRA in head_dense/lora_kernel_a, .*model\.save_weights writes the merged kernels"
    for mode in ("int8", "float8"):
        model = rszoo.create(folder, framework="keras")
        model.get_layer("head_dense").quantize(mode)
        yield model, r"it is quantized \(head_dense/.*save it before model\.quantize"
    model = rszoo.create(folder, framework="keras")
    model.config = rszoo.get_entry("resnet-rs-demo").arch
    yield model, "missing"
    yield keras.Sequential([keras.layers.Dense(3)]), "Sequential that rszoo.create did not make"
    yield rszoo.create(folder, framework="keras", features_only=True), "features_only=True"


@pytest.mark.parametrize("cases", [cases_of_torch, cases_of_keras])
def test_what_is_not_a_classifier_of_ours_is_refused(tiny_folder, cases, tmp_path):
    for model, message in cases(tiny_folder.path):
        with pytest.raises(UsageError, match=message):
            save(model, tmp_path / "mine")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": ["a"]}, "labels must be 7, one for each class of the model, received 1"),
        ({"labels": "abcdefg"}, "labels must be texts"),
        ({"labels": range(7)}, "labels must be texts"),
        ({"title": " "}, "title must be a text"),
        ({"title": 5}, "title must be a text"),
    ],
)
def test_impossible_titles_and_labels_are_refused(tiny_folder, settings, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        save(rszoo.create(tiny_folder.path), tmp_path / "mine", **settings)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_replaced_only_if_asked_even_that_of_the_model_itself(tiny_folder, tmp_path):
    folder = save(rszoo.create(tiny_folder.path), tmp_path / "mine")
    before = folder.weights_path.read_bytes()
    # Its weights are a map of the file that is to be replaced.
    model = rszoo.create(folder.path)
    with torch.no_grad():
        model.fc.bias += 1
    with pytest.raises(OutputError, match="exists"):
        save(model, folder.path)
    assert folder.weights_path.read_bytes() == before
    save(model, folder.path, overwrite=True)
    np.testing.assert_array_equal(logits_of(rszoo.create(folder.path)), logits_of(model))
    assert folder.weights_path.read_bytes() != before
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("")
    with pytest.raises(OutputError, match="not a result"):
        save(model, tmp_path / "photos", overwrite=True)


def test_a_failure_leaves_the_former_folder(tiny_folder, tmp_path, monkeypatch):
    model = rszoo.create(tiny_folder.path)
    folder = save(model, tmp_path / "mine")
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}

    def fail(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "sha256_of", fail)
    with pytest.raises(KeyboardInterrupt):
        save(trained(tiny_folder.path), folder.path, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("framework", ["torch", "keras"])
@pytest.mark.parametrize("what", ["swapped", "one bit"])
def test_a_wrong_file_does_not_appear(tiny_folder, framework, what, tmp_path, monkeypatch):
    write = SafetensorsWriter.write

    def write_wrongly(self, tensors):
        values = dict(tensors)
        first, second = "layer2.1.bn1.weight", "layer2.1.bn2.weight"
        if what == "swapped":
            values[first], values[second] = values[second], values[first]
        else:
            values[first] = np.nextafter(values[first], np.float32(9))
        write(self, values.items())

    monkeypatch.setattr(SafetensorsWriter, "write", write_wrongly)
    with pytest.raises(OutputError, match=r"other values for (layer2.1.bn1.weight|stage2_block1_bn1/gamma)"):
        save(trained(tiny_folder.path, framework), tmp_path / "mine")
    assert list(tmp_path.iterdir()) == []


def test_saving_imports_no_framework_of_its_own():
    code = "import sys, rszoo.models.saving; print({'torch', 'keras', 'tensorflow', 'jax'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_any_architecture_of_the_walk_is_saved(tmp_path):
    """What the Model Garden does otherwise belongs to the config, and so to the folder."""
    config = ArchConfig(
        (1, 1, 2, 1), 5, 4, 0.125, activation="silu", strided_padding="same", shortcut_pool="always", bn_epsilon=1e-3
    )
    model = rszoo.create(config)
    model.preprocessing = SETTINGS
    images = np.random.default_rng(0).standard_normal((1, 33, 64, 4)).astype(np.float32)
    folder = save(model, tmp_path / "mine")
    assert folder.config.arch == config
    np.testing.assert_array_equal(logits_of(rszoo.create(folder.path), images), logits_of(model, images))


def _silu(model):
    model.layer1[0].act1 = torch.nn.SiLU(inplace=True)


def _dilated(model):
    model.layer2[0].conv2.dilation = (2, 2)


def _hooked(model):
    model.layer1[0].register_forward_hook(lambda module, inputs, output: output * 2)


@pytest.mark.parametrize("change", [_silu, _dilated, _hooked])
def test_a_model_that_computes_something_else_is_not_the_published_one(verified, change, tmp_path):
    model = rszoo.create(verified["ema"])
    change(model)
    config = save(model, tmp_path / "mine").config
    assert (config.pair, config.weights, config.title) == (None, "trained", "resnet-rs-demo, trained further")
