"""The architecture, its walk and its names, against the facts of the published checkpoints."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from converters.formats.tf1 import tf1_names
from rszoo.arch.config import BLOCKS_OF_DEPTH, ArchConfig
from rszoo.arch.names import keras_name, keras_names, to_tf_layout, to_torch_layout, torch_name, torch_shape
from rszoo.arch.walk import Kind, iter_tensors
from rszoo.errors import ConfigError
from rszoo.models import keras_resnet_rs, torch_resnet_rs
from tests.tf1 import TINY

# depth: trainable values, values of BN statistics, tensors; counted in the published archives.
PUBLISHED = {
    50: (35_691_912, 53_376, 346),
    101: (63_618_696, 105_600, 669),
    152: (86_621_576, 151_680, 992),
    200: (93_209_992, 176_256, 1296),
    270: (129_861_448, 243_072, 1752),
    350: (163_956_168, 312_192, 2246),
    420: (191_891_656, 370_560, 2683),
}


# What the paper's additive study starts from.
BASELINE = {"se_ratio": 0.0, "stem": "classic", "shortcut_pool": "never"}


def test_the_papers_baseline_is_resnet_200():
    arch = ArchConfig.from_dict({"depth": 200, **BASELINE})
    specs = list(iter_tensors(arch))
    # As counted by others for the plain ResNet-200 (timm's resnet200), whose keys these are.
    assert sum(spec.size for spec in specs if spec.kind.trainable) == 64_673_832
    names = {torch_name(spec) for spec in specs}
    assert {"conv1.weight", "bn1.weight", "layer1.0.downsample.1.weight"} <= names
    assert not [name for name in names if ".se." in name or name.startswith("maxpool")]
    assert keras_names(names)["conv1.weight"] == ("stem_conv/kernel", Kind.CONV_KERNEL)


@pytest.mark.parametrize("depth", BLOCKS_OF_DEPTH)
def test_counts_are_the_published_ones(depth):
    specs = list(iter_tensors(ArchConfig.from_dict({"depth": depth})))
    trainable = sum(spec.size for spec in specs if spec.kind.trainable)
    statistics = sum(spec.size for spec in specs if not spec.kind.trainable)
    assert (trainable, statistics, len(specs)) == PUBLISHED[depth]


@pytest.mark.parametrize(("depth", "convs", "norms"), [(50, 88, 56), (420, 703, 425)])
def test_tf1_counters_end_where_the_published_ones_do(depth, convs, norms):
    layers = {name.rpartition("/")[0] for name in tf1_names(iter_tensors(ArchConfig.from_dict({"depth": depth})))}
    assert f"conv2d_{convs - 1}" in layers
    assert f"batch_normalization_{norms - 1}" in layers
    assert len(layers) == convs + norms + 1


def test_tf1_names_follow_creation_order():
    specs = list(iter_tensors(ArchConfig.from_dict({"depth": 50})))
    by_layer = {spec.layer: name.rpartition("/")[0] for spec, name in zip(specs, tf1_names(specs), strict=True)}
    assert by_layer["stem.conv1"] == "conv2d"
    assert by_layer["stage1.block0.proj_conv"] == "conv2d_4"
    assert by_layer["stage1.block0.conv1"] == "conv2d_5"
    assert by_layer["stage1.block0.se_expand"] == "conv2d_9"
    assert by_layer["stage1.block1.conv1"] == "conv2d_10"
    assert by_layer["stage1.block0.proj_bn"] == "batch_normalization_4"
    assert by_layer["head.dense"] == "dense"


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        ArchConfig((2, 1, 1, 3), num_classes=5, in_chans=6, se_ratio=0.1),
        ArchConfig((1, 1, 2, 1), num_classes=5, width_multiplier=0.125, **BASELINE),
    ],
)
def test_walk_names_exactly_the_tensors_of_both_models(config):
    specs = list(iter_tensors(config))
    ours = {name: tuple(values.shape) for name, values in torch_resnet_rs.empty_model(config).state_dict().items()}
    counters = {name for name in ours if name.endswith("num_batches_tracked")}
    assert {torch_name(spec): torch_shape(spec) for spec in specs} == {
        k: v for k, v in ours.items() if k not in counters
    }
    keras_model = keras_resnet_rs.build_model(config)
    variables = Counter((w.path.split("/")[-2], w.name, tuple(w.shape)) for w in keras_model.weights)
    # Dropout keeps a seed, which is no tensor of the network.
    variables = Counter({key: count for key, count in variables.items() if "seed" not in key[1]})
    assert variables == Counter((*keras_name(spec), spec.shape) for spec in specs)


def test_torch_keys_are_timms():
    names = {torch_name(spec) for spec in iter_tensors(ArchConfig.from_dict({"depth": 50}))}
    assert {
        "conv1.0.weight",
        "conv1.1.running_var",
        "conv1.6.weight",
        "bn1.weight",
        "maxpool.0.weight",
        "maxpool.1.running_mean",
        "layer1.0.downsample.1.weight",
        "layer4.0.downsample.2.bias",
        "layer2.3.se.fc2.bias",
        "fc.weight",
    } <= names


@pytest.mark.parametrize("kind", Kind)
def test_layouts_are_inverse_and_put_output_first_in_torch(kind):
    shape = {"kernel": (3, 2, 5, 7) if kind is Kind.CONV_KERNEL else (5, 7)}.get(kind.variable, (5,))
    values = np.arange(np.prod(shape)).reshape(shape)
    there = to_torch_layout(kind, values)
    np.testing.assert_array_equal(to_tf_layout(kind, there), values)
    if kind is Kind.CONV_KERNEL:
        assert there[6, 4, 2, 1] == values[2, 1, 4, 6]
    if kind is Kind.DENSE_KERNEL:
        assert there[6, 4] == values[4, 6]


def test_drop_connect_grows_per_stage():
    blocks = list(ArchConfig.from_dict({"depth": 200, "drop_connect_rate": 0.1}).iter_blocks())
    rates = {(block.stage, round(block.drop_connect_rate, 12)) for block in blocks}
    assert rates == {(1, 0.04), (2, 0.06), (3, 0.08), (4, 0.1)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"blocks": [1, 2, 3]}, "blocks must be a list of 4 whole numbers"),
        ({"blocks": [1, 2, 0, 1]}, r"blocks\[2\] must be a whole number of at least 1 and at most 1000, received 0"),
        ({"depth": 51}, "depth must be one of .50, 101"),
        ({"depth": 50, "num_class": 3}, "did you mean num_classes"),
        ({"depth": 50, "num_classes": -1}, "at least 0"),
        ({"depth": 50, "in_chans": True}, "whole number"),
        ({"depth": 50, "dropout_rate": 1.0}, "below 1, received 1.0"),
        ({"depth": 50, "bn_epsilon": float("nan")}, "bn_epsilon"),
        ({"depth": 50, "activation": "gelu"}, "relu or silu"),
        ({}, "needs 'blocks'"),
    ],
)
def test_impossible_architectures_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        ArchConfig.from_dict(fields)


def test_config_survives_json():
    config = ArchConfig((1, 2, 3, 4), width_multiplier=0.5, activation="silu", drop_connect_rate=0.2)
    assert ArchConfig.from_dict(config.to_dict()) == config
    assert hash(config) == hash(ArchConfig.from_dict(config.to_dict()))


def test_empty_model_takes_no_memory():
    model = torch_resnet_rs.empty_model(ArchConfig.from_dict({"depth": 420}))
    assert {parameter.device for parameter in model.parameters()} == {torch.device("meta")}
