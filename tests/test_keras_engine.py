"""The Keras engine against the TF1 graph, against itself on other devices, and against the PyTorch engine."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import rszoo
from rszoo.errors import ConfigError, TrainingError, UsageError, WeightsError
from rszoo.pipeline.share import Position
from rszoo.train.keras.engine import KerasEngine
from rszoo.train.keras.tf_config import process_place
from tests import keras_worker
from tests.keras_worker import (
    BATCH,
    IMAGES,
    Job,
    loss_curve,
    make_images,
    make_recipe,
    open_evaluation,
    open_training,
    rates,
    started,
    take_steps,
)
from tests.tf1_training import random_weights, run_tf1_steps

DROPPING = {"dropout_rate": 0.3, "drop_connect_rate": 0.3}
State = Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple]:
    """Workers on two virtual devices, at work while the other tests run."""
    folder = tmp_path_factory.mktemp("workers")
    jax = Job(str(folder / "jax.npz"), 1, curve=True)
    mirrored = Job(str(folder / "mirrored.npz"), 3, cpus=2, model=DROPPING)
    two = {"KERAS_BACKEND": "jax", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    # Compiling takes most of the time.
    two["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    return {
        "jax": (keras_worker.start_worker(jax, two), jax),
        "mirrored": (keras_worker.start_worker(mirrored, {"KERAS_BACKEND": "tensorflow"}), mirrored),
    }


# Tracing a step takes seconds. What an engine has done before does not matter: `started` gives it a whole state.
@pytest.fixture(scope="module")
def engine() -> KerasEngine:
    """An engine of the plain recipe, to be started."""
    return KerasEngine(make_recipe())


@pytest.fixture(scope="module")
def dropping() -> KerasEngine:
    """An engine with dropout and drop-connect, to be started."""
    return KerasEngine(make_recipe(DROPPING))


@pytest.fixture(scope="module")
def tf1() -> tuple[State, np.ndarray]:
    """What the TF1 graph makes of the batches of a single reader: the state after one step, and the loss curve."""
    arch = make_recipe().model
    images, labels = make_images()
    order = np.arange(20 * BATCH).reshape(20, BATCH) % IMAGES
    batches = [(images[some], labels[some]) for some in order]
    step = run_tf1_steps(arch, random_weights(arch), batches[:1], rates(1), keep=(1,))
    return step.states[1], run_tf1_steps(arch, random_weights(arch, calm=True), batches, rates(20), keep=()).losses


@pytest.mark.usefixtures("workers")
def test_steps_equal_the_tf1_graphs(tf1: tuple[State, np.ndarray], engine: KerasEngine) -> None:
    """Gradients (the momenta after the first step, L2 included), weights, batch statistics, averages, and losses."""
    state = take_steps(started(engine), 1)
    assert set(tf1[0]) == {name for name in engine.state() if name != "step"}
    assert_close(state, tf1[0])
    np.testing.assert_allclose(loss_curve(engine), tf1[1], rtol=1e-5)
    assert np.ptp(tf1[1]) > 0.1


def test_jax_on_two_devices_equals_the_tf1_graph_on_the_whole_batch(
    tf1: tuple[State, np.ndarray], workers: dict
) -> None:
    taken = keras_worker.result(*workers["jax"])
    # XLA sums in an order that depends on the processor: 1.05e-5 was measured on one, below 1e-5 on another.
    assert_close(taken, tf1[0], 2e-5)
    np.testing.assert_allclose(taken["curve"], tf1[1], rtol=1e-5)
    assert taken["counts"][[0, 2, 3]].tolist() == [IMAGES, 1, 2]
    assert taken["positions"].tolist() == [[0, 0, BATCH]]


def test_two_replicas_equal_one_that_accumulates(workers: dict) -> None:
    mirrored = keras_worker.result(*workers["mirrored"])
    engine = started(KerasEngine(make_recipe(DROPPING, {"accumulate": 2})))
    alone = take_steps(engine, 3)
    assert mirrored["counts"].tolist() == [IMAGES, engine.evaluate(open_evaluation, "ema").right, 1, 2]
    assert different(mirrored, alone) == set()


@pytest.mark.slow
def test_an_accumulated_step_is_the_mean_of_its_micro_batches() -> None:
    micro, count = 8, IMAGES // 8
    settings = {"weight_decay": 0.0, "momentum": 0.5}
    one = started(KerasEngine(make_recipe(train={"batch_size": micro, "bn_momentum": 0.5}, optimizer=settings)))
    total: dict[str, np.ndarray] = {}
    start = one.state()
    for _ in range(count):
        one.load_state(start)
        one.step(0.0)
        for name, value in one.state().items():
            total[name] = total.get(name, 0) + value / count
    whole = {"batch_size": IMAGES, "accumulate": count, "bn_momentum": 0.5}
    accumulated = take_steps(started(KerasEngine(make_recipe(train=whole, optimizer=settings))), 1)
    names = [name for name in total if name.startswith("momentum/") or ("model/" in name and "running" in name)]
    assert_close(accumulated, {name: total[name] for name in names})
    # Half of the old statistics, half of the new.
    assert np.linalg.norm(start["model/bn1.running_var"] - total["model/bn1.running_var"]) > 1e-2


def test_resuming_is_exact(tmp_path: Path, dropping: KerasEngine) -> None:
    whole = started(dropping)
    for rate in (0.0, 0.1):
        whole.step(rate)
    state, positions = whole.state(), whole.positions()
    assert positions == [Position(0, 0, 2 * BATCH)]
    assert int(state["step"]) == 2
    figures = whole.read([whole.step(rate) for rate in (0.2, 0.05)])

    # An engine from given weights: how it began must not matter.
    rszoo.save(whole.network("raw"), tmp_path / "model")
    resumed = KerasEngine(make_recipe(DROPPING), init=tmp_path / "model")
    resumed.load_state(state)
    resumed.start(open_training, positions)
    assert resumed.positions() == positions
    assert np.array_equal(figures, resumed.read([resumed.step(rate) for rate in (0.2, 0.05)]))
    assert different(whole.state(), resumed.state()) == set()
    del state["momentum/fc.weight"]
    with pytest.raises(WeightsError, match=r"1 of \d+ missing \(momentum/fc.weight\)"):
        resumed.load_state(state)
    with pytest.raises(WeightsError, match=r"1 misshapen \(model/fc.bias"):
        resumed.load_state({**whole.state(), "model/fc.bias": np.zeros(3, np.float32)})


@pytest.mark.slow
def test_dropout_draws_anew_in_each_step() -> None:
    recipe = make_recipe({"dropout_rate": 0.5}, {"batch_size": IMAGES})
    engine = started(KerasEngine(recipe))
    # The same images and weights every time, so that the draws alone differ.
    assert len(set(engine.read([engine.step(0.0) for _ in range(3)])[:, 0])) == 3


def test_frozen_layers_and_layer_rates() -> None:
    changes = {}
    for decay in (0.5, 1.0):
        optimizer = {"layer_decay": decay, "weight_decay": 0.0, "momentum": 0.0}
        recipe = make_recipe({"drop_connect_rate": 0.9}, {"freeze_through": 2, "bn": "frozen"}, optimizer)
        engine = KerasEngine(recipe)
        weights = random_weights(recipe.model)
        take_steps(started(engine, weights), 1)
        state = engine.state()
        changes[decay] = {name: state[f"model/{name}"] - weights[name] for name in weights}
    moved = {name for name, change in changes[1.0].items() if change.any()}
    free = {name for name in weights if keras_worker.decays(name) and name.startswith(("layer3", "layer4", "fc"))}
    assert moved == free
    assert not different(state, {f"ema/{name}": weights[name] for name in set(weights) - moved})
    for name, factor in (("fc.weight", 1.0), ("layer4.0.conv2.weight", 0.5), ("layer3.0.conv2.weight", 0.25)):
        np.testing.assert_allclose(changes[0.5][name], factor * changes[1.0][name], atol=1e-7)


@pytest.mark.slow
def test_frozen_stages_compute_as_in_evaluation() -> None:
    drops = {"drop_connect_rate": 0.9}
    figures = [
        take_steps(started(KerasEngine(make_recipe(model, {"freeze_through": 4}))), 1)["figures"]
        for model in (drops, {"drop_connect_rate": 0.0})
    ]
    assert np.array_equal(*figures)


def test_recomputing_changes_nothing(dropping: KerasEngine) -> None:
    recomputing = KerasEngine(make_recipe(DROPPING, {"gradient_checkpointing": True}))
    plain, recomputed = (take_steps(started(engine), 2) for engine in (dropping, recomputing))
    assert_close(recomputed, {name: value for name, value in plain.items() if "/" in name})
    assert plain["figures"] == pytest.approx(recomputed["figures"])


def test_bfloat16(tf1: tuple[State, np.ndarray]) -> None:
    taken = take_steps(started(KerasEngine(make_recipe(train={"precision": "bfloat16"}))), 1)
    assert_close(taken, {name: value for name, value in tf1[0].items() if "model/" in name}, 0.05)
    exact = tf1[0]["momentum/fc.weight"]
    assert 1e-4 < np.linalg.norm(taken["momentum/fc.weight"] - exact) / np.linalg.norm(exact) < 0.1


def test_evaluation_counts_each_image_once(engine: KerasEngine) -> None:
    take_steps(started(engine), 10)
    images, labels = make_images()
    for weights in ("raw", "ema"):
        scores = engine.evaluate(open_evaluation, weights)
        logits = np.asarray(engine.network(weights)(images))
        assert scores.right == (logits.argmax(axis=1) == labels).sum()
        assert scores.confusion.sum(axis=1).tolist() == np.bincount(labels, minlength=7).tolist()
    assert not np.array_equal(logits, np.asarray(engine.network("raw")(images)))


def test_a_run_changes_from_pytorch_to_keras_and_back(engine: KerasEngine) -> None:
    from rszoo.train.torch.engine import TorchEngine

    torch_engine = started(TorchEngine(make_recipe()))
    torch_engine.step(0.01)
    engine.load_state(torch_engine.state())
    engine.start(open_training, torch_engine.positions())
    torch_figures, figures = torch_engine.read([torch_engine.step(0.02)]), engine.read([engine.step(0.02)])
    np.testing.assert_allclose(figures, torch_figures, rtol=1e-5)
    state = engine.state()
    assert_close(state, {name: value for name, value in torch_engine.state().items() if name in state})
    torch_engine.load_state(state)
    torch_engine.close()


def test_begins_with_initial_values_of_the_seed() -> None:
    states = [KerasEngine(make_recipe(train={"seed": seed})).state() for seed in (1, 1, 2)]
    assert different(states[0], states[1]) == set()
    assert "model/layer2.0.conv2.weight" in different(states[0], states[2])
    assert not states[0]["model/layer1.0.bn3.weight"].any()


def test_what_cannot_be_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="16 cannot be divided by 1 devices times 3"):
        KerasEngine(make_recipe(train={"accumulate": 3}))
    engine = KerasEngine(make_recipe())
    with pytest.raises(UsageError, match="call start"):
        engine.step(0.1)
    with pytest.raises(UsageError, match="read by 2 readers, and 1 cannot resume that"):
        engine.start(open_training, [Position(0, 0, 4), Position(0, 0, 8)])
    rszoo.save(engine.network("ema"), tmp_path / "model")
    with pytest.raises(ConfigError, match="blocks differ"):
        KerasEngine(make_recipe({"blocks": (1, 1, 1, 2)}), init=tmp_path / "model")
    tuned = KerasEngine(make_recipe({"num_classes": 3}), init=tmp_path / "model")
    assert {name.removeprefix("model/") for name in different(engine.state(), tuned.state()) if "model/" in name} == {
        "fc.weight",
        "fc.bias",
    }
    from tensorflow import errors

    def fail(*_: object) -> None:
        raise errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    engine.start(open_training, [])
    monkeypatch.setattr(engine._devices, "step", fail)
    with pytest.raises(TrainingError, match=r"micro-batch of 16 images of 32 px did not fit.*raise train.accumulate"):
        engine.step(0.1)
    monkeypatch.setenv("TF_CONFIG", "worker 1")
    with pytest.raises(UsageError, match="TF_CONFIG is 'worker 1'; it must look like"):
        KerasEngine(make_recipe())
    monkeypatch.setattr("keras.backend.backend", lambda: "torch")
    with pytest.raises(UsageError, match=r"Keras runs on torch.*set KERAS_BACKEND to tensorflow or jax"):
        KerasEngine(make_recipe())


def test_the_head_follows_the_names_of_the_classes(tmp_path: Path) -> None:
    model = rszoo.create(make_recipe().model, framework="keras")
    model.preprocessing = rszoo.Preprocessing(32)
    kernel, _ = model.layers[-1].get_weights()
    bias = np.arange(7, dtype=np.float32)
    model.layers[-1].set_weights([kernel, bias])
    rszoo.save(model, tmp_path / "model", labels=list("abcdefg"))
    ordered = KerasEngine(make_recipe(), init=tmp_path / "model", classes=list("gabcdef")).state()
    assert ordered["model/fc.bias"].tolist() == ordered["ema/fc.bias"].tolist() == [6, 0, 1, 2, 3, 4, 5]
    assert np.array_equal(ordered["model/fc.weight"], np.roll(kernel.T, 1, axis=0))
    new = KerasEngine(make_recipe(), init=tmp_path / "model", classes=list("abcdefh")).state()
    assert {name for name in different(ordered, new) if "model/" in name} == {"model/fc.weight", "model/fc.bias"}
    assert not new["model/fc.bias"].any()
    assert 0.005 < new["model/fc.weight"].std() < 0.02


def test_the_chief_is_the_first_process() -> None:
    def place(kind: str, index: int, **cluster: list[str]) -> tuple[int, int]:
        return process_place(json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}}))

    both = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}
    assert [place("chief", 0, **both), place("worker", 0, **both), place("worker", 1, **both)] == [
        (0, 3),
        (1, 3),
        (2, 3),
    ]
    assert place("worker", 1, worker=["a:1", "b:1"]) == (1, 2)
    assert process_place(None) == place("worker", 0, worker=["a:1"]) == (0, 1)
    with pytest.raises(UsageError, match="makes this process evaluator 0, which does not train"):
        place("evaluator", 0, **both)
    with pytest.raises(UsageError, match="worker 2, but names 2"):
        place("worker", 2, **both)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_two_processes(backend: str, tmp_path: Path) -> None:
    """They agree bit for bit; on JAX they equal the TF1 graph on the whole batch, on TensorFlow its mean over both."""
    ports = [free_port() for _ in range(2)]
    jobs = [Job(str(tmp_path / f"{rank}.npz"), 1) for rank in range(2)]
    running = [
        keras_worker.start_worker(job, process_environment(backend, rank, ports)) for rank, job in enumerate(jobs)
    ]
    taken = [keras_worker.result(worker, job) for worker, job in zip(running, jobs, strict=True)]
    assert different(*taken) == set()
    assert taken[0]["counts"][[0, 2, 3]].tolist() == [IMAGES, 1, 2]
    assert taken[0]["positions"].tolist() == [[0, 0, BATCH // 2]] * 2
    images, labels = make_images()
    order = [np.arange(BATCH // 2) * 2 + rank for rank in range(2)]
    # On JAX the normalization sees the batches of both processes as one.
    batches = [np.concatenate(order)] if backend == "jax" else order
    arch = make_recipe().model
    steps = [
        run_tf1_steps(arch, random_weights(arch), [(images[some], labels[some])], rates(1), keep=(1,)).states[1]
        for some in batches
    ]
    names = [name for name in steps[0] if name.startswith("momentum/") or "running" in name]
    # XLA adds in another order over processes: 1.1e-5 was seen.
    assert_close(taken[0], {name: np.mean([state[name] for state in steps], axis=0) for name in names}, 3e-5)


def assert_close(actual: State, expected: State, bound: float = 1e-5) -> None:
    """Compare tensor by tensor, by norms; momenta's by 1 % of all momenta's at least.

    Where a gradient nearly cancels, such as that of a bias before a normalization, its own norm is no measure.
    """
    norms = {name: float(np.linalg.norm(value)) for name, value in expected.items()}
    floor = 0.01 * np.sqrt(sum(norm**2 for name, norm in norms.items() if name.startswith("momentum/")))
    distances = {
        name: np.linalg.norm(actual[name] - value) / max(norms[name], floor if name.startswith("momentum/") else 0)
        for name, value in expected.items()
    }
    assert {name: distance for name, distance in distances.items() if not distance < bound} == {}


def different(first: State, second: State) -> set[str]:
    """Return which tensors of the second differ in the first, be it by a bit."""
    return {name for name, value in second.items() if not np.array_equal(first[name], value)}


def process_environment(backend: str, rank: int, ports: list[int]) -> dict[str, str]:
    hosts = [f"127.0.0.1:{port}" for port in ports]
    config = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": rank}}
    if backend == "tensorflow":
        return {"KERAS_BACKEND": backend, "TF_CONFIG": json.dumps(config)}
    return {
        "KERAS_BACKEND": backend,
        "JAX_PLATFORMS": "cpu",
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": ",".join(hosts),
        "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
        "KERAS_DISTRIBUTION_PROCESS_ID": str(rank),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
