"""Computed costs: activations against what PyTorch's autograd keeps, the rest against figures worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from typer.testing import CliRunner

import rszoo
from rszoo.arch.config import ArchConfig
from rszoo.arch.macs import count_macs
from rszoo.arch.walk import Kind, iter_tensors
from rszoo.cli.recipes import recipes_app
from rszoo.errors import UsageError
from rszoo.models.torch_resnet_rs import ResNetRS
from rszoo.recipes.estimate import DEVICES, count_activations, count_fixed_bytes, estimate
from rszoo.recipes.load import load_recipe

IMAGES = 4
NETWORKS = {
    "as published": {},
    "drop-connect": {"drop_connect_rate": 0.1, "dropout_rate": 0.25},
    "no squeeze-excitation": {"se_ratio": 0},
    "before ResNet-D": {"se_ratio": 0, "stem": "classic", "shortcut_pool": "never"},
}


class Kept:
    """Bytes of the storages that autograd keeps within a `with` block, parameters and buffers aside."""

    def __init__(self, model: nn.Module) -> None:
        own = [*model.parameters(), *model.buffers()]
        self._ignored = {tensor.untyped_storage().data_ptr() for tensor in own}
        self._kept: dict[int, Tensor] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    def __enter__(self) -> Kept:
        self._hooks.__enter__()
        return self

    def __exit__(self, *reason: object) -> None:
        self._hooks.__exit__(*reason)

    def _keep(self, tensor: Tensor) -> Tensor:
        # Holding the tensor keeps its address from being used again.
        self._kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    @property
    def bytes(self) -> int:
        """Bytes so far."""
        kept = (tensor for address, tensor in self._kept.items() if address not in self._ignored)
        return sum(tensor.untyped_storage().nbytes() for tensor in kept)


def loss_of(model: ResNetRS, images: Tensor) -> Tensor:
    labels = torch.zeros(len(images), dtype=torch.long)
    return nn.functional.cross_entropy(model(images), labels, label_smoothing=0.1)


@pytest.mark.parametrize("size", [64, 75])
@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_activations_are_what_autograd_keeps(options, size):
    arch = ArchConfig((1, 2, 1, 1), num_classes=10, width_multiplier=0.125, **options)
    model = ResNetRS(arch).train()
    with Kept(model) as kept:
        loss_of(model, torch.randn(IMAGES, 3, size, size))
    # What is left out: means and deviations of the normalizations, and the masks.
    assert 1 <= kept.bytes / (4 * IMAGES * count_activations(arch, size)) < 1.005


def test_bfloat16_halves_them_and_keeps_a_copy_of_the_weights():
    arch = ArchConfig((1, 2, 1, 1), num_classes=10, width_multiplier=0.125)
    model = ResNetRS(arch).train()
    with Kept(model) as kept, torch.autocast("cpu", dtype=torch.bfloat16):
        loss_of(model, torch.randn(IMAGES, 3, 64, 64))
    weights = sum(spec.size for spec in iter_tensors(arch) if spec.kind in (Kind.CONV_KERNEL, Kind.DENSE_KERNEL))
    assert 1 <= (kept.bytes - 2 * weights) / (2 * IMAGES * count_activations(arch, 64)) < 1.01


def in_blocks(model: ResNetRS) -> Iterable[nn.Module]:
    return (block for layer in (model.layer1, model.layer2, model.layer3, model.layer4) for block in layer)


def test_checkpointing_keeps_the_blocks_inputs_and_one_block():
    arch = ArchConfig((2, 3, 2, 1), num_classes=10, width_multiplier=0.125)
    model = ResNetRS(arch).train()
    inside = []
    for block in in_blocks(model):
        forward = block.forward

        def measured(x: Tensor, block: nn.Module = block, forward=forward) -> Tensor:
            given = x.detach().requires_grad_()
            with Kept(block) as kept:
                forward(given)
            inside.append(kept.bytes - given.nbytes)
            return checkpoint(forward, x, use_reentrant=False)

        block.forward = measured
    with Kept(model) as kept:
        loss_of(model, torch.randn(IMAGES, 3, 64, 64))
    expected = 4 * IMAGES * count_activations(arch, 64, checkpointing=True)
    assert expected == pytest.approx(kept.bytes + max(inside), rel=0.01)
    assert expected < 4 * IMAGES * count_activations(arch, 64) / 1.5


def test_a_published_pair_by_hand():
    result = estimate(load_recipe("resnet-rs-50-i160"), "a100", devices=8, utilization=0.25)
    assert (result.parameters, result.forward_macs_per_image) == (35_691_912, count_macs(ArchConfig((3, 4, 6, 3)), 160))
    assert result.training_operations_per_image == 6 * result.forward_macs_per_image
    statistics = sum(spec.size for spec in iter_tensors(ArchConfig((3, 4, 6, 3))) if not spec.kind.trainable)
    assert result.fixed_bytes == 35_691_912 * (4 * 4 + 2) + statistics * 2 * 4
    assert (result.accumulate, result.micro_batch) == (1, 512)
    assert result.memory_bytes == result.fixed_bytes + 512 * result.activation_bytes_per_image
    assert result.images_per_second == pytest.approx(8 * 312e12 * 0.25 / result.training_operations_per_image)
    assert result.hours == pytest.approx(109_475 * 4096 / result.images_per_second / 3600)


def test_what_does_not_fit_accumulates_and_checkpointing_costs_a_forward_pass():
    recipe = load_recipe("resnet-rs-420-i320")
    plain = estimate(recipe, "h100")
    assert plain.accumulate > 1
    assert plain.memory_bytes < 0.85 * 80 * 2**30
    thrifty = estimate(load_recipe("resnet-rs-420-i320", ["train.gradient_checkpointing=true"]), "h100")
    assert thrifty.accumulate < plain.accumulate
    assert thrifty.training_operations_per_image * 3 == plain.training_operations_per_image * 4
    huge = load_recipe("resnet-rs-420-i320", ["data.image_size=8192"])
    assert estimate(huge, "tpu-v3").accumulate is None
    without = load_recipe("resnet-rs-420-i320", ["optimizer.ema_decay=null"])
    assert estimate(without).fixed_bytes < count_fixed_bytes(recipe.model, "bfloat16", ema=True)


def test_the_published_step_times_are_the_shares_of_the_peak_that_are_claimed():
    shares = {"v100": [], "tpu-v3": []}
    for name in rszoo.list_models(family="tf1"):
        entry = rszoo.get_entry(name)
        operations = 128 * 6 * count_macs(entry.arch, entry.image_size)
        shares["v100"].append(operations / entry.published.v100_latency_s / DEVICES["v100"].float32)
        shares["tpu-v3"].append(operations / entry.published.tpuv3_latency_ms * 1000 / DEVICES["tpu-v3"].bfloat16)
    assert [(round(min(values), 2), round(max(values), 2)) for values in shares.values()] == [
        (0.31, 0.43),
        (0.38, 0.47),
    ]
    for device, values in shares.items():
        assert min(values) < DEVICES[device].utilization < max(values)


def test_impossible_questions_say_what_is_possible():
    recipe = load_recipe("resnet-rs-50-i160")
    with pytest.raises(UsageError, match="unknown device 'h10'; did you mean h100"):
        estimate(recipe, "h10")
    with pytest.raises(UsageError, match=r"V100.* does not compute in bfloat16; add train\.precision=float32"):
        estimate(recipe, "v100")
    with pytest.raises(UsageError, match="utilization above 0"):
        estimate(recipe, utilization=1.5)


def test_the_command():
    runner = CliRunner()
    printed = runner.invoke(recipes_app, ["estimate", "--devices", "64", "--device", "tpu-v4"]).stdout
    assert len(printed.splitlines()) == 13
    assert "Computed, not measured" in printed
    documented = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text()
    for row in runner.invoke(recipes_app, ["estimate"]).stdout.splitlines()[1:-1]:
        assert f"| {' | '.join(row.split())} |" in documented
    overridden = ["estimate", "resnet-rs-50-i160", "train.batch_size=1024", "--json"]
    (result,) = json.loads(runner.invoke(recipes_app, overridden).stdout)
    assert result == estimate(load_recipe("resnet-rs-50-i160", ["train.batch_size=1024"])).to_dict()
