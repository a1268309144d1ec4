"""Numbers against the original: TF1 graphs that TensorFlow restores, the original code's own outputs, tf_keras."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import rszoo
from converters.convert import Identity, convert
from converters.formats.tf1 import tf1_names
from rszoo.arch.config import BLOCKS_OF_DEPTH, ArchConfig
from rszoo.arch.names import to_torch_layout, torch_name
from rszoo.arch.walk import Kind, TensorSpec, iter_tensors
from rszoo.folder.model_folder import ModelFolder, read_folder
from rszoo.models import keras_resnet_rs, torch_resnet_rs
from rszoo.models.adapt import keras_weights
from rszoo.verify import stages as parity
from rszoo.verify import tf1_graph
from tests.tf1 import TINY, write_checkpoint

IMAGES = [np.random.default_rng(size).standard_normal((2, size, size, 3)).astype(np.float32) for size in (64, 75)]
RUNS: dict[str, Callable[..., list[parity.Stages]]] = {"torch": parity.torch_stages, "keras": parity.keras_stages}


def assert_same_stages(folder: ModelFolder, prefix: Path, *, ema: bool) -> float:
    """Hold both frameworks against the TF1 session at every stage; return the largest error."""
    expected = tf1_graph.build_inference(folder.config.arch).run_stages(prefix, IMAGES, ema=ema)
    worst = 0.0
    for framework, run in RUNS.items():
        errors = parity.stage_errors(run(folder, IMAGES, "float32"), expected)
        assert len(errors) == 14
        assert max(errors.values()) <= 2e-6, (framework, errors)
        worst = max(worst, *errors.values())
    return worst


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_small_network_equals_tf1_session(tiny_checkpoint, tmp_path, weights):
    convert(str(tiny_checkpoint.archive), tmp_path / "m", weights=weights, identity=Identity(image_size=64))
    assert_same_stages(read_folder(tmp_path / "m"), tiny_checkpoint.prefix, ema=weights == "ema")


def test_the_blocks_of_depth_50_equal_the_tf1_session_at_an_eighth_of_the_width(tmp_path):
    checkpoint = write_checkpoint(replace(rszoo.get_entry("resnet-rs-50").arch, width_multiplier=0.125), tmp_path)
    convert(str(checkpoint.archive), tmp_path / "m", identity=Identity(image_size=64))
    assert_same_stages(read_folder(tmp_path / "m"), checkpoint.prefix, ema=True)


@pytest.mark.slow
@pytest.mark.parametrize("depth", BLOCKS_OF_DEPTH)
def test_every_depth_equals_tf1_session(depth, tmp_path, record_property):
    checkpoint = write_checkpoint(rszoo.get_entry(f"resnet-rs-{depth}").arch, tmp_path)
    convert(str(checkpoint.archive), tmp_path / "m", identity=Identity(model=f"resnet-rs-{depth}"))
    error = assert_same_stages(read_folder(tmp_path / "m"), checkpoint.prefix, ema=True)
    record_property("relative_l2", error)
    print(f"depth {depth}: largest relative L2 error of any stage {error:.2e}")


# What the paper's additive study starts from, and each of its two last steps alone.
BEFORE = {"stem": "classic", "shortcut_pool": "never", "se_ratio": 0.0}


@pytest.mark.parametrize(
    "fields", [BEFORE, *(pytest.param({key: value}, marks=pytest.mark.slow) for key, value in BEFORE.items())], ids=str
)
def test_networks_of_the_papers_study_equal_the_tf1_session(fields, tmp_path):
    arch = replace(TINY, **fields)
    checkpoint = write_checkpoint(arch, tmp_path)
    expected = tf1_graph.build_inference(arch).run_stages(checkpoint.prefix, IMAGES, ema=False)
    specs = list(iter_tensors(arch))
    tensors = {
        torch_name(spec): np.ascontiguousarray(to_torch_layout(spec.kind, checkpoint.values[name]))
        for spec, name in zip(specs, tf1_names(specs), strict=True)
    }
    for run in (run_torch, run_keras):
        errors = parity.stage_errors([run(arch, tensors, images) for images in IMAGES], expected)
        assert max(errors.values()) <= 2e-6, errors


def test_torch_equals_keras_in_float64(tiny_folder):
    errors = parity.stage_errors(*(run(tiny_folder, IMAGES, "float64") for run in RUNS.values()))
    assert max(errors.values()) <= 1e-12, errors


# On JAX, tests/test_keras_engine.py holds whole training steps against the TF1 graph in any run.
@pytest.mark.parametrize("backend", [pytest.param("jax", marks=pytest.mark.slow), "torch"])
def test_other_keras_backends_equal_torch(tiny_folder, backend):
    # The backend is chosen when Keras is imported, so each needs a process of its own.
    code = (
        "import sys; from rszoo.verify.checks import check_frameworks;"
        "from rszoo.folder.model_folder import read_folder;"
        "check = check_frameworks(read_folder(sys.argv[1])); print(check.detail);"
        "print(max(check.figures.values()))"
    )
    environment = {**os.environ, "KERAS_BACKEND": backend}
    run = subprocess.run(
        [sys.executable, "-c", code, str(tiny_folder.path)], env=environment, capture_output=True, text=True, check=True
    )
    detail, error = run.stdout.splitlines()[-2:]
    assert f"Keras on {backend}" in detail
    assert float(error) <= 2e-6


@pytest.mark.parametrize(("size", "weights"), list(itertools.product(("64", "75"), ("ema", "raw"))))
def test_equals_outputs_of_the_original_code(shared, tmp_path, size, weights):
    """The shared fixture: checkpoint and outputs of tensorflow/tpu's own graph."""
    convert(str(shared / "tf1-1211-c10.tar.gz"), tmp_path / "m", weights=weights, identity=Identity(image_size=64))
    folder = read_folder(tmp_path / "m")
    reference = np.load(shared / "tf1_reference_outputs.npz")
    for framework, run in RUNS.items():
        (stages,) = run(folder, [reference[f"{size}/input_nhwc"]], "float32")
        for number in (1, 2, 3, 4):
            expected = reference[f"{size}/{weights}/block_group{number}"]
            assert parity.relative_l2(subsampled(stages[f"stage{number}"], 8), expected) <= 2e-6, (framework, number)
        assert parity.relative_l2(stages["pooled"], reference[f"{size}/{weights}/final_avg_pool"][:, 0, 0]) <= 2e-6
        assert parity.relative_l2(stages["logits"], reference[f"{size}/{weights}/final_dense"]) <= 2e-6
        other = "raw" if weights == "ema" else "ema"
        assert parity.relative_l2(stages["logits"], reference[f"{size}/{other}/final_dense"]) > 1e-2


def test_equals_tf_keras_applications():
    """Keras 2's ResNetRS50, an independent port, with the same random weights."""
    applications = pytest.importorskip("tf_keras", reason="tf_keras is not installed").applications
    theirs = applications.ResNetRS50(
        weights=None, classifier_activation=None, include_preprocessing=False, input_shape=(160, 160, 3)
    )
    arch = ArchConfig.from_dict({"depth": 50})
    rng = np.random.default_rng(0)
    tensors, by_layer = {}, {}
    for spec in iter_tensors(arch):
        values = random_values(spec, rng)
        by_layer.setdefault(tf_keras_name(spec.layer), []).append(values)
        tensors[torch_name(spec)] = np.ascontiguousarray(to_torch_layout(spec.kind, values))
    for layer in theirs.layers:
        if layer.weights:
            layer.set_weights(by_layer.pop(layer.name))
    assert not by_layer
    images = np.random.default_rng(1).standard_normal((2, 160, 160, 3)).astype(np.float32)
    expected = theirs(images, training=False).numpy()
    assert parity.relative_l2(run_torch(arch, tensors, images)["logits"], expected) <= 2e-6


# --- the tests above must be able to fail ---------------------------------------------------------------------------


def swapped(folder: ModelFolder, tensors: dict[str, np.ndarray]) -> tuple[ArchConfig, dict[str, np.ndarray]]:
    first, second = "layer2.1.bn1.weight", "layer2.1.bn2.weight"
    return folder.config.arch, {**tensors, first: tensors[second], second: tensors[first]}


FAULTS: dict[str, Callable[[ModelFolder, dict[str, np.ndarray]], tuple[ArchConfig, dict[str, np.ndarray]]]] = {
    "two tensors of one shape swapped": swapped,
    "wrong epsilon": lambda folder, tensors: (replace(folder.config.arch, bn_epsilon=1e-3), tensors),
    "asymmetric padding": lambda folder, tensors: (replace(folder.config.arch, strided_padding="same"), tensors),
    "pool in every shortcut": lambda folder, tensors: (replace(folder.config.arch, shortcut_pool="always"), tensors),
    "other activation": lambda folder, tensors: (replace(folder.config.arch, activation="silu"), tensors),
    "kernel mirrored": lambda folder, tensors: (
        folder.config.arch,
        {**tensors, "conv1.3.weight": np.ascontiguousarray(tensors["conv1.3.weight"].transpose(0, 1, 3, 2))},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("run", ["torch", "keras"])
def test_a_fault_is_far_above_the_bound(tiny_folder, tiny_logits, fault, run):
    arch, tensors = FAULTS[fault](tiny_folder, dict(rszoo.load_weights(tiny_folder.path)))
    stages = {"torch": run_torch, "keras": run_keras}[run](arch, tensors, IMAGES[0])
    assert parity.relative_l2(stages["logits"], tiny_logits["ema"]) > 100 * 2e-6


def test_raw_weights_are_far_from_the_averages(tiny_folder, tiny_logits):
    (stages,) = parity.torch_stages(tiny_folder, IMAGES[:1], "float32")
    assert parity.relative_l2(stages["logits"], tiny_logits["ema"]) <= 2e-6
    assert parity.relative_l2(stages["logits"], tiny_logits["raw"]) > 0.1


@pytest.fixture(scope="module")
def tiny_logits(tiny_checkpoint) -> dict[str, np.ndarray]:
    """The small network's logits of the first images in the TF1 graph, for both sets."""
    graph = tf1_graph.build_inference(TINY)
    prefix = tiny_checkpoint.prefix
    return {name: graph.run_stages(prefix, IMAGES[:1], ema=name == "ema")[0]["logits"] for name in ("ema", "raw")}


def test_tf1_names_are_those_that_tensorflow_gives(tiny_checkpoint):
    specs = list(iter_tensors(TINY))
    names = tf1_names(specs)
    plain = {name for name in tiny_checkpoint.values if not name.endswith(("ExponentialMovingAverage", "Momentum"))}
    assert set(names) == plain - {"global_step"}
    assert [tiny_checkpoint.values[name].shape for name in names] == [spec.shape for spec in specs]


# --- helpers --------------------------------------------------------------------------------------------------------


def subsampled(stage: np.ndarray, channels: int) -> np.ndarray:
    return stage[:, :: max(1, stage.shape[1] // 8), :: max(1, stage.shape[2] // 8), ::channels]


def run_torch(arch: ArchConfig, tensors: dict[str, np.ndarray], images: np.ndarray) -> dict[str, np.ndarray]:
    model = torch_resnet_rs.empty_model(arch)
    torch_resnet_rs.assign_weights(model, {name: torch.from_numpy(values.copy()) for name, values in tensors.items()})
    with torch.no_grad():
        stages = model.eval().forward_stages(torch.from_numpy(images).permute(0, 3, 1, 2))
    return {name: (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).numpy() for name, x in stages.items()}


def run_keras(arch: ArchConfig, tensors: dict[str, np.ndarray], images: np.ndarray) -> dict[str, np.ndarray]:
    model = keras_resnet_rs.build_model(arch, keras_weights(tensors, arch))
    return {name: np.asarray(x) for name, x in keras_resnet_rs.stage_model(model)(images, training=False).items()}


def random_values(spec: TensorSpec, rng: np.random.Generator) -> np.ndarray:
    if spec.kind in (Kind.GAMMA, Kind.MOVING_VARIANCE):
        return rng.uniform(0.5, 1.5, spec.shape).astype(np.float32)
    scale = 1 / np.sqrt(np.prod(spec.shape[:-1])) if len(spec.shape) > 1 else 0.1
    return (scale * rng.standard_normal(spec.shape)).astype(np.float32)


def tf_keras_name(layer: str) -> str:
    """The layer's name in tf_keras.applications.ResNetRS50, irregular as it is there."""
    if layer == "head.dense":
        return "predictions"
    kind = "conv" if "conv" in layer else "batch_norm"
    if layer.startswith("stem."):
        return f"stem_1_stem_{kind}_{layer[-1]}"
    stage, block, name = layer.split(".")
    prefix = f"BlockGroup{int(stage[-1]) + 1}__block_{block.removeprefix('block')}_"
    special = {
        "proj_conv": "_projection_conv",
        "proj_bn": "_projection_batch_norm",
        "se_reduce": "_se_se_reduce",
        "se_expand": "_se_se_expand",
        "bn1": "batch_norm_1",
    }
    return prefix + special.get(name, f"_{kind}_{name[-1]}")
