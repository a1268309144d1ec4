"""The PyTorch engine: its steps against the TF1 graph, processes against micro-batches, and exact continuation."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rszoo
from rszoo.arch.names import torch_name
from rszoo.arch.walk import iter_tensors
from rszoo.errors import ConfigError, TrainingError, UsageError, WeightsError
from rszoo.evaluate.scores import Scores
from rszoo.folder.model_folder import ModelConfig
from rszoo.pipeline.share import Position, Share
from rszoo.recipes.recipe import OptimizerSettings
from rszoo.registry.manifest import get_entry, load_labels
from rszoo.train.heads import head_order
from rszoo.train.memory import is_out_of_memory
from rszoo.train.torch.batches import Batches
from rszoo.train.torch.engine import TorchEngine
from rszoo.train.torch.freezing import freeze
from tests.tf1_training import random_weights, run_tf1_steps
from tests.torch_training import (
    BATCH,
    NOISY,
    RATES,
    SIZE,
    TINY,
    Images,
    Validation,
    images_and_labels,
    make_recipe,
    start_engine,
    take_steps,
)

MODEL_PREFIXES = ("model/", "ema/", "momentum/")


def distances(state: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return each tensor's distance as a share of its norm; momenta's, of 1 % of all momenta's at least.

    Where a gradient nearly cancels, such as that of a bias before a normalization, its own norm is no measure.
    """
    norms = {name: float(np.linalg.norm(values.astype(np.float64))) for name, values in expected.items()}
    floor = 0.01 * np.sqrt(sum(norm**2 for name, norm in norms.items() if name.startswith("momentum/")))
    return {
        name: float(np.linalg.norm(state[name].astype(np.float64) - values))
        / max(norms[name], floor if name.startswith("momentum/") else 0)
        for name, values in expected.items()
    }


def batches_of(steps: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [images_and_labels(range(step * BATCH, (step + 1) * BATCH)) for step in range(steps)]


def l2_term(state: Mapping[str, np.ndarray]) -> float:
    decayed = [f"model/{torch_name(spec)}" for spec in iter_tensors(TINY) if spec.kind.layer_type != "bn"]
    return 4e-5 / 2 * sum(float((state[name].astype(np.float64) ** 2).sum()) for name in decayed)


def test_steps_equal_the_tf1_graphs() -> None:
    """Loss, gradients (the momenta after the first step, L2 included), weights, batch statistics, and averages."""
    weights = random_weights(TINY)
    reference = run_tf1_steps(TINY, weights, batches_of(2), RATES[:2], keep=(1, 2))
    engine = start_engine(make_recipe(), weights)
    for number, loss in enumerate(reference.losses, start=1):
        l2 = l2_term(engine.state())
        assert take_steps(engine, [RATES[number - 1]])[0, 0] + l2 == pytest.approx(loss, rel=1e-6)
        state = engine.state()
        assert set(reference.states[number]) == {name for name in state if name.split("/")[0] not in ("step", "random")}
        for name, distance in distances(state, reference.states[number]).items():
            assert distance < 1e-5, (number, name, distance)
    engine.close()


def test_loss_curve_equals_the_tf1_graphs() -> None:
    weights = random_weights(TINY, calm=True)
    reference = run_tf1_steps(TINY, weights, batches_of(20), RATES, keep=())
    engine = start_engine(make_recipe(), weights)
    losses = [l2_term(engine.state()) + take_steps(engine, [rate])[0, 0] for rate in RATES]
    np.testing.assert_allclose(losses, reference.losses, rtol=1e-5)
    assert np.ptp(losses) > 0.1
    engine.close()


def test_two_processes_equal_two_micro_batches(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Also what passes between processes: scores, agreement, positions. Moving statistics are blended here."""
    recipe = make_recipe(bn_momentum=0.25)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_dict()))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["tests.torch_training", str(tmp_path / "recipe.json"), str(tmp_path / "result.npz")]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = dict(np.load(tmp_path / "result.npz"))

    # As torchrun sets it for each process: with more, sums are taken in another order.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    engine = start_engine(make_recipe(bn_momentum=0.25, accumulate=2), random_weights(TINY))
    np.testing.assert_allclose(result["figures"], take_steps(engine, RATES[-3:]), rtol=1e-6)
    state = {name: values for name, values in engine.state().items() if name.startswith(MODEL_PREFIXES)}
    # Measured: equal bit for bit.
    assert max(distances(result, state).values()) < 2e-6
    assert result["agreed"].tolist() == [True, False]
    assert result["positions"].tolist() == [[0, 0, 24], [0, 0, 24]]
    for weights, counts in zip(("raw", "ema"), result["scores"], strict=True):
        alone = engine.evaluate(Validation, weights)
        assert alone.images == 41
        np.testing.assert_array_equal(counts, alone.to_array())
    assert {name for name in result if name.startswith("random/")} == {"random/torch/0/cpu", "random/torch/1/cpu"}
    assert (result["random/torch/0/cpu"] != result["random/torch/1/cpu"]).any()
    engine.close()


def test_evaluation_counts_what_the_network_says() -> None:
    engine = start_engine(make_recipe(NOISY))
    take_steps(engine, [0.1] * 3)
    images, labels = images_and_labels(range(41))
    for weights in ("raw", "ema"):
        network = engine.network(weights)
        trains = network.training
        with torch.no_grad():
            logits = network.eval()(torch.from_numpy(images.copy()).permute(0, 3, 1, 2)).numpy()
        network.train(trains)
        expected = Scores.empty(TINY.num_classes)
        expected.add(logits, labels)
        np.testing.assert_array_equal(engine.evaluate(Validation, weights).to_array(), expected.to_array())
        assert network.training is trains is (weights == "raw")
    engine.close()


def test_statistics_are_the_means_of_the_micro_batches() -> None:
    """The first normalization's, against its definition; momentum blends them with those before."""
    weights = random_weights(TINY)
    images, _ = images_and_labels(range(BATCH))
    kernel = torch.from_numpy(weights["conv1.0.weight"])
    inputs = torch.from_numpy(images.copy()).permute(0, 3, 1, 2)
    values = torch.nn.functional.conv2d(inputs, kernel, stride=2, padding=1)
    halves = values.double().transpose(0, 1).reshape(values.shape[1], 2, -1)
    for momentum in (0.0, 0.75):
        engine = start_engine(make_recipe(accumulate=2, bn_momentum=momentum), weights)
        take_steps(engine, [0.1])
        for name, of_halves in (("running_mean", halves.mean(2)), ("running_var", halves.var(2, correction=1))):
            before = weights[f"conv1.1.{name}"].astype(np.float64)
            expected = momentum * before + (1 - momentum) * of_halves.mean(1).numpy()
            np.testing.assert_allclose(engine.state()[f"model/conv1.1.{name}"], expected, rtol=1e-5, atol=1e-7)
        engine.close()


@pytest.mark.parametrize(
    "setting",
    [
        {"gradient_checkpointing": True},
        {"channels_last": False},
        {"gradient_checkpointing": True, "accumulate": 2},
        pytest.param({"compile": True}, marks=pytest.mark.slow),
        pytest.param({"compile": True, "gradient_checkpointing": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_ways_to_compute_give_the_same(setting: dict[str, Any]) -> None:
    """Drop-connect is on: what checkpointing computes again must drop the same samples."""
    states = []
    noisy = replace(NOISY, dropout_rate=0.0 if "compile" in setting else 0.3)
    if "compile" in setting:
        # The compiler draws other random numbers.
        noisy = replace(noisy, drop_connect_rate=0.0)
    for changed in ({"accumulate": setting.get("accumulate", 1)}, setting):
        engine = start_engine(make_recipe(noisy, **changed), random_weights(noisy))
        take_steps(engine, RATES[-2:])
        states.append({name: values for name, values in engine.state().items() if name.startswith(MODEL_PREFIXES)})
        engine.close()
    assert max(distances(*states).values()) < 2e-5


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_network_compiles_as_one_graph(checkpointing: bool) -> None:
    network = rszoo.create(NOISY)
    network.set_grad_checkpointing(checkpointing)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    images = torch.rand(4, 3, SIZE, SIZE)
    compiled(images).sum().backward()
    assert network.fc.bias.grad.abs().sum() > 0
    with torch.no_grad():
        torch.testing.assert_close(compiled.eval()(images), network(images))


def test_checkpointing_updates_statistics_once() -> None:
    """With PyTorch's own momentum, with which a second update would show."""
    images = torch.rand(4, 3, SIZE, SIZE)
    states = []
    for enable in (False, True):
        torch.manual_seed(0)
        network = rszoo.create(NOISY).train()
        network.set_grad_checkpointing(enable)
        torch.manual_seed(1)
        network(images).square().sum().backward()
        states.append({**network.state_dict(), **{name: value.grad for name, value in network.named_parameters()}})
    assert states[0]["layer1.0.bn1.num_batches_tracked"] == 1
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)


def test_a_state_goes_on_bit_for_bit() -> None:
    """With dropout and drop-connect: the random numbers go on, too, and the images."""
    recipe = make_recipe(NOISY, bn_momentum=0.5, accumulate=2)
    engine = start_engine(recipe)
    take_steps(engine, RATES[:2])
    kept, positions = engine.state(), engine.positions()
    figures = take_steps(engine, RATES[2:5])
    expected = engine.state()
    engine.close()

    torch.manual_seed(99)
    resumed = TorchEngine(replace(recipe, train=replace(recipe.train, seed=5)))
    resumed.load_state(kept)
    resumed.start(Images, positions)
    np.testing.assert_array_equal(take_steps(resumed, RATES[2:5]), figures)
    actual = resumed.state()
    assert actual.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(actual[name], values, err_msg=name)
    resumed.close()


def test_a_state_of_another_engine_starts_new_random_numbers() -> None:
    engine = TorchEngine(make_recipe(NOISY))
    state = engine.state()
    ours = {name: values for name, values in state.items() if not name.startswith("random/")}
    engine.load_state({**ours, "random/keras/0/seeds": np.zeros(2, np.uint32), "step": np.array(7)})
    assert (engine.state()["random/torch/0/cpu"] != state["random/torch/0/cpu"]).any()
    assert engine.state()["step"] == 7
    with pytest.raises(WeightsError, match=r"1 of \d+ missing \(ema/fc.bias\)"):
        engine.load_state({name: values for name, values in state.items() if name != "ema/fc.bias"})
    with pytest.raises(WeightsError, match=r"1 misshapen \(model/fc.bias"):
        engine.load_state({**state, "model/fc.bias": np.zeros(3, np.float32)})
    with pytest.raises(WeightsError, match=r"1 unexpected \(model/layer5.0.conv1.weight\)"):
        engine.load_state({**state, "model/layer5.0.conv1.weight": np.zeros(3, np.float32)})


def test_averages_warm_up_as_published() -> None:
    engine = start_engine(make_recipe(NOISY, OptimizerSettings(ema_decay=0.25)))
    expected = engine.state()
    # (1 + t) / (10 + t) from t = 1 on, until it reaches the limit.
    for decay in (2 / 11, 3 / 12, 0.25):
        take_steps(engine, [0.1])
        state = engine.state()
        for name in expected:
            if name.startswith("ema/"):
                value = decay * expected[name] + (1 - decay) * state[name.replace("ema", "model", 1)]
                np.testing.assert_allclose(state[name], value, rtol=1e-5, atol=1e-7, err_msg=name)
        expected = state
    engine.close()


def test_no_averages() -> None:
    engine = start_engine(make_recipe(optimizer=OptimizerSettings(ema_decay=None, momentum=0.0)))
    take_steps(engine, [0.1])
    assert not [name for name in engine.state() if name.startswith(("ema/", "momentum/"))]
    assert engine.network("ema") is engine.network("raw")
    engine.close()


def test_what_is_frozen_stays() -> None:
    recipe = make_recipe(NOISY, freeze_through=2, bn="frozen")
    engine = start_engine(recipe, random_weights(NOISY))
    before = engine.state()
    engine.network("raw").train()
    take_steps(engine, [0.1] * 2)
    engine.evaluate(Validation, "raw")
    take_steps(engine, [0.1])
    after = engine.state()
    engine.close()
    normalization = {torch_name(spec) for spec in iter_tensors(NOISY) if spec.kind.layer_type == "bn"}
    names = [name.removeprefix("model/") for name in before if name.startswith("model/")]
    kept = {name for name in names if name in normalization or not name.startswith(("layer3", "layer4", "fc"))}
    for name in names:
        assert np.array_equal(before[f"model/{name}"], after[f"model/{name}"]) == (name in kept), name
        assert np.array_equal(before[f"ema/{name}"], after[f"ema/{name}"]) == (name in kept), name
        assert (f"momentum/{name}" in after) == (name not in kept), name


def test_frozen_layers_compute_as_in_evaluation() -> None:
    network = rszoo.create(NOISY)
    freeze(network, through=4, bn="frozen")
    images = torch.rand(2, 3, SIZE, SIZE)
    wrapped = torch.nn.DataParallel(network).train()
    with torch.no_grad():
        expected = network.eval().forward_features(images)
        wrapped.train()
        assert network.fc.training
        torch.testing.assert_close(network.forward_features(images), expected, rtol=0, atol=0)
    assert [name for name, value in network.named_parameters() if value.requires_grad] == ["fc.weight", "fc.bias"]
    freeze(network)
    assert all(value.requires_grad for value in network.parameters())
    assert all(module.training for module in network.train().modules())
    for wrong in ({"through": 5}, {"bn": "thawed"}):
        with pytest.raises(UsageError, match="must be"):
            freeze(network, **wrong)
    with pytest.raises(UsageError, match="DataParallel"):
        freeze(wrapped)


def test_layers_learn_at_their_rates() -> None:
    engine = start_engine(make_recipe(optimizer=OptimizerSettings(layer_decay=0.5)), random_weights(TINY))
    before = engine.state()
    take_steps(engine, [0.1])
    after = engine.state()
    engine.close()
    shares = {"conv1": 1 / 32, "bn1": 1 / 32, "maxpool": 1 / 32, "fc": 1.0}
    shares |= {f"layer{stage}": 2.0 ** (stage - 5) for stage in range(1, 5)}
    for name in (name for name in after if name.startswith("momentum/")):
        name = name.removeprefix("momentum/")
        # The first step: the momentum is the gradient, and Nesterov's rule takes 1.9 times that.
        step = 0.1 * shares[name.split(".")[0]] * 1.9 * after[f"momentum/{name}"]
        moved = before[f"model/{name}"] - after[f"model/{name}"]
        np.testing.assert_allclose(moved, step, rtol=1e-3, atol=1e-6, err_msg=name)


def test_bfloat16_computes_in_it_and_keeps_float32() -> None:
    states = []
    for precision in ("float32", "bfloat16"):
        engine = start_engine(make_recipe(precision=precision), random_weights(TINY))
        dtypes = []
        engine.network("raw").layer2.register_forward_hook(lambda *values, seen=dtypes: seen.append(values[2].dtype))
        figures = take_steps(engine, RATES[-1:])
        engine.evaluate(Validation, "raw")
        assert set(dtypes) == {getattr(torch, precision)}
        state = engine.state()
        assert {state[name].dtype for name in state if name.startswith(MODEL_PREFIXES)} == {np.dtype(np.float32)}
        states.append((figures, state))
        engine.close()
    (exact, state), (rounded, rounded_state) = states
    np.testing.assert_allclose(rounded[0, 0], exact[0, 0], rtol=2e-2)
    np.testing.assert_allclose(rounded_state["model/fc.weight"], state["model/fc.weight"], atol=2e-3)


def test_fine_tuning_goes_from_a_model_folder_to_another(tmp_path: Path) -> None:
    torch.manual_seed(3)
    origin = rszoo.create(replace(TINY, num_classes=4))
    origin.preprocessing = rszoo.Preprocessing(SIZE)
    rszoo.save(origin, tmp_path / "origin", title="Origin")
    with pytest.raises(ConfigError, match=r"blocks differ \(blocks is \(1, 1, 1, 1\), in the recipe \(1, 2, 1, 1\)\)"):
        TorchEngine(make_recipe(NOISY), init=tmp_path / "origin")
    engine = TorchEngine(make_recipe(replace(TINY, dropout_rate=0.5)), init=str(tmp_path / "origin"))
    state = engine.state()
    for name, values in origin.state_dict().items():
        if not name.startswith("fc") and not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(state[f"model/{name}"], values.numpy())
            np.testing.assert_array_equal(state[f"ema/{name}"], values.numpy())
    engine.start(Images, [])
    take_steps(engine, [0.1])
    rszoo.save(engine.network("ema"), tmp_path / "tuned")
    tuned = rszoo.create(tmp_path / "tuned")
    assert (tuned.origin.title, tuned.config.num_classes) == ("Origin, trained further", 7)
    assert (tuned.config.dropout_rate, tuned.preprocessing.image_size) == (0.5, SIZE)
    for name, values in tuned.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(engine.state()[f"ema/{name}"], values.numpy())
    engine.close()


@pytest.fixture(scope="module")
def lettered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose classes are a to g."""
    model = rszoo.create(TINY)
    torch.nn.init.normal_(model.fc.bias)
    model.preprocessing = rszoo.Preprocessing(SIZE)
    return rszoo.save(
        model, tmp_path_factory.mktemp("lettered") / "model", title="Lettered", labels=list("abcdefg")
    ).path


@pytest.mark.parametrize(
    ("classes", "order", "said"),
    [
        (None, range(7), ""),
        ("abcdefg", range(7), ""),
        ("gabcdef", [6, 0, 1, 2, 3, 4, 5], "put into the data's order"),
        ("abcdefh", None, "new head: the data's 7 classes"),
    ],
)
def test_the_head_follows_the_names_of_the_classes(
    lettered: Path, classes: str | None, order: list[int] | None, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = rszoo.create(lettered).state_dict()
    with caplog.at_level(logging.WARNING, "rszoo"):
        engine = TorchEngine(make_recipe(), init=lettered, classes=classes and tuple(classes))
    assert (said in caplog.text) if said else not caplog.text
    after = engine.network("raw").state_dict()
    for name, values in after.items():
        if not name.startswith("fc."):
            torch.testing.assert_close(values, before[name], rtol=0, atol=0)
        elif order is not None:
            torch.testing.assert_close(values, before[name][list(order)], rtol=0, atol=0)
    if order is None:
        assert not after["fc.bias"].any()
        assert 0.005 < after["fc.weight"].std() < 0.02
        assert not torch.equal(after["fc.weight"], before["fc.weight"])
    assert engine.network("ema").origin.labels == tuple(classes or "abcdefg")


def test_imagenet_folders_by_wordnet_id_keep_the_head() -> None:
    """Also ImageNet's own labels, of which two are the same."""
    labels = load_labels("imagenet-1k")
    lines = (Path(rszoo.__file__).parent / "assets" / "imagenet_1k_labels.txt").read_text(encoding="utf-8").splitlines()
    synsets = [line.split("\t")[0] for line in lines]
    entry = get_entry("resnet-rs-50")
    origin = ModelConfig(entry.name, entry.name, entry.arch, entry.preprocessing, labels, "averaged")
    assert head_order(origin, labels) == head_order(origin, synsets) == tuple(range(1000))
    assert head_order(origin, synsets[::-1]) == tuple(range(999, -1, -1))
    assert head_order(origin, [f"class {index}" for index in range(1000)]) is None
    assert head_order(replace(origin, labels=None), synsets[::-1]) == tuple(range(1000))


def test_used_up_memory_is_named() -> None:
    engine = start_engine(make_recipe(accumulate=2))

    def fail(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    engine.network("raw").maxpool.register_forward_hook(fail)
    advice = r"micro-batch of 8 images of 32 px .* raise train.accumulate \(it is 2\) or set train.gradient_check"
    with pytest.raises(TrainingError, match=advice) as caught:
        engine.step(0.1)
    engine.close()
    # `rszoo bench` halves the batch then.
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(TrainingError("out of memory"))


def test_initial_values_depend_on_the_seed_alone() -> None:
    states = []
    for seed in (1, 1, 2):
        torch.rand(3)
        states.append(TorchEngine(make_recipe(seed=seed)).state())
    assert all(np.array_equal(states[0][name], values) for name, values in states[1].items())
    assert not np.array_equal(states[0]["model/fc.weight"], states[2]["model/fc.weight"])
    assert not states[0]["model/layer1.0.bn3.weight"].any()


class _Failing:
    def as_numpy_iterator(self) -> Iterator[Mapping[str, np.ndarray]]:
        yield from (next(Images(Share(), 2, Position()).as_numpy_iterator()) for _ in range(2))
        raise OSError("the disk is gone")


def test_reading_fails_where_the_batch_is_wanted() -> None:
    # Threads of earlier tests may end meanwhile.
    threads = {*threading.enumerate()}
    batches = Batches(_Failing(), torch.device("cpu"))
    images, labels, host = next(batches)
    assert images.shape == (2, 3, SIZE, SIZE)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.tolist() == host["label"].tolist()
    next(batches)
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is gone"):
            next(batches)
    endless = Batches(Images(Share(), 2, Position()), torch.device("cpu"))
    endless.close()
    assert list(endless) == []
    batches.close()
    assert {*threading.enumerate()} <= threads


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="batch_size 16 cannot be divided by 1 processes times 3 accumulated"):
        TorchEngine(make_recipe(accumulate=3))
    engine = TorchEngine(make_recipe())
    with pytest.raises(UsageError, match="call start"):
        engine.step(0.1)
    with pytest.raises(UsageError, match="read by 2 processes"):
        engine.start(Images, [Position(), Position()])
