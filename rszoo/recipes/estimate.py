"""What a recipe costs, computed and not measured: operations, memory of a device, time on named accelerators.

A `Recipe` in, an `Estimate` out, counted from the architecture. What is kept for the backward
pass is counted as PyTorch's autograd keeps it (tests/test_estimate.py compares the count with its saved tensors); XLA
may keep less. Peak rates and memory of accelerators are the makers' data sheets', dense and without sparsity.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from rszoo.arch.config import ArchConfig, Block
from rszoo.arch.macs import count_macs
from rszoo.arch.walk import count_parameters, iter_tensors
from rszoo.errors import UsageError, nearest
from rszoo.recipes.recipe import Precision, Recipe

GIB = 2**30

# A multiply-accumulate is two operations; the backward pass takes two of these for each of the forward pass.
_OPERATIONS = 2
_PASSES = 3
_BYTES = {"float32": 4, "bfloat16": 2}
# Of a device's memory; the rest is for what is not counted: gradients under way, workspaces, gaps.
_USABLE = 0.85


@dataclass(frozen=True)
class Device:
    """An accelerator: memory in GiB, and its peak rates in operations per second; None where it has no such units.

    `utilization`: the assumed share of the peak rate that training reaches.
    """

    title: str
    memory_gib: float
    bfloat16: float | None
    float32: float | None
    utilization: float


#: By the name that `rszoo recipes estimate --device` takes. Utilization of the V100 and of TPU v3: the published step
#: times of the eleven pairs by the same count (31 to 43 %, and 38 to 47 %). Of the others: guesses, lower as their
#: arithmetic grew faster than their memory, which normalizations wait for, and lower for GPUs without a compiler.
DEVICES = {
    "v100": Device("NVIDIA V100, 32 GB", 32, None, 15.7e12, 0.36),
    "a100": Device("NVIDIA A100, 80 GB", 80, 312e12, 19.5e12, 0.2),
    "h100": Device("NVIDIA H100 SXM, 80 GB", 80, 989e12, 67e12, 0.1),
    "h200": Device("NVIDIA H200 SXM, 141 GB", 140, 989e12, 67e12, 0.14),
    "tpu-v3": Device("TPU v3, one core of two", 16, 61.5e12, None, 0.42),
    "tpu-v4": Device("TPU v4, one chip", 32, 275e12, None, 0.25),
    "tpu-v5e": Device("TPU v5e, one chip", 16, 197e12, None, 0.25),
    "tpu-v5p": Device("TPU v5p, one chip", 95, 459e12, None, 0.3),
}


@dataclass(frozen=True)
class Estimate:
    """Computed, not measured. Bytes are of one device; `micro_batch` is the images that it processes at once.

    `accumulate`: the recipe's, or where that does not fit, the smallest that does; None if not even one image fits.
    `hours` are of training alone, without evaluation and input, at `utilization` of the devices' peak rate.
    """

    recipe: str
    precision: Precision
    device: str
    devices: int
    utilization: float
    parameters: int
    forward_macs_per_image: int
    training_operations_per_image: int
    activation_bytes_per_image: int
    fixed_bytes: int
    accumulate: int | None
    micro_batch: int
    memory_bytes: int
    images_per_second: float
    hours: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)


def estimate(recipe: Recipe, device: str = "h100", *, devices: int = 8, utilization: float | None = None) -> Estimate:
    """Return what training by a recipe costs on `devices` of `DEVICES[device]`; `utilization` None is the device's own.

    Raises:
        UsageError: there is no such device, it does not compute in the recipe's precision, or a number is impossible.
    """
    chosen, settings = _device(device), recipe.train
    share = chosen.utilization if utilization is None else utilization
    if devices < 1 or not 0 < share <= 1:
        raise UsageError(f"devices must be at least 1 and utilization above 0, to 1; received {devices} and {share}")
    arch, image_size, checkpointing = recipe.model, recipe.data.image_size, settings.gradient_checkpointing
    macs = count_macs(arch, image_size)
    operations = macs * _OPERATIONS * (_PASSES + checkpointing)
    per_image = activation_bytes(arch, image_size, settings.precision, checkpointing=checkpointing)
    fixed = count_fixed_bytes(arch, settings.precision, ema=recipe.optimizer.ema_decay is not None)
    room = largest_batch(chosen.memory_gib, fixed, per_image)
    accumulate = fitting_accumulation(recipe, devices, room)
    micro_batch = math.ceil(settings.batch_size / (devices * (accumulate or settings.accumulate)))
    rate = devices * _peak(chosen, settings.precision) * share / operations
    return Estimate(
        recipe=recipe.name,
        precision=settings.precision,
        device=device,
        devices=devices,
        utilization=share,
        parameters=count_parameters(arch),
        forward_macs_per_image=macs,
        training_operations_per_image=operations,
        activation_bytes_per_image=per_image,
        fixed_bytes=fixed,
        accumulate=accumulate,
        micro_batch=micro_batch,
        memory_bytes=fixed + micro_batch * per_image,
        images_per_second=rate,
        hours=recipe.total_steps * settings.batch_size / rate / 3600,
    )


def count_activations(arch: ArchConfig, image_size: int, *, checkpointing: bool = False) -> int:
    """Return the values that the backward pass needs of the forward pass, for one image.

    With `checkpointing`, each block keeps its input alone and computes the rest again: the inputs of all blocks, and
    everything of the largest one, count.
    """
    size = image_size
    total = arch.in_chans * size**2
    for conv in arch.iter_stem():
        size = _halved(size, conv.stride)
        # The convolution's output, and what normalization and activation make of it in place.
        total += 2 * conv.out_channels * size**2
    if arch.stem == "classic":
        # Its padded input; of the output the values, and as 8 bytes each their places.
        channels, pooled = arch.scaled(arch.stem_widths[-1]), _halved(size, 2)
        total += channels * (size**2 + 3 * pooled**2)
        size = pooled
    inputs, inside = [], []
    for block in arch.iter_blocks():
        inputs.append(block.in_channels * size**2)
        inside.append(_block_activations(block, size))
        size = _halved(size, block.stride)
    # The pooled features before and after the dropout, its mask, and the probabilities.
    total += 3 * arch.num_features + arch.num_classes
    # The first block's input is the stem's output.
    return total + (sum(inputs[1:]) + max(inside) if checkpointing else sum(inside))


def activation_bytes(arch: ArchConfig, image_size: int, precision: Precision, *, checkpointing: bool = False) -> int:
    """Return the bytes of `count_activations`."""
    return count_activations(arch, image_size, checkpointing=checkpointing) * _BYTES[precision]


def count_fixed_bytes(arch: ArchConfig, precision: Precision, *, ema: bool) -> int:
    """Return the bytes of a device that do not depend on the number of images.

    float32 weights, gradients, momentum and averages, the statistics and theirs; with bfloat16 the weights once more.
    """
    trainable = count_parameters(arch)
    statistics = sum(spec.size for spec in iter_tensors(arch)) - trainable
    copy = _BYTES["bfloat16"] * trainable if precision == "bfloat16" else 0
    return _BYTES["float32"] * (trainable * (3 + ema) + statistics * (1 + ema)) + copy


def largest_batch(memory_gib: float, fixed_bytes: int, bytes_per_image: int) -> int:
    """Return how many images at once fit into a device's memory, of which 85 % are used."""
    return max(0, int((memory_gib * GIB * _USABLE - fixed_bytes) // bytes_per_image))


def fitting_accumulation(recipe: Recipe, devices: int, room: int) -> int | None:
    """Return the recipe's `train.accumulate`, or that times the smallest power of 2 whose micro-batches fit `room`."""
    accumulate = recipe.train.accumulate
    while math.ceil(recipe.train.batch_size / (devices * accumulate)) > room:
        accumulate *= 2
        if accumulate > recipe.train.batch_size:
            return None
    return accumulate


def _device(name: str) -> Device:
    if name not in DEVICES:
        raise UsageError(f"unknown device {name!r}; did you mean {', '.join(nearest(name, DEVICES) or DEVICES)}?")
    return DEVICES[name]


def _peak(device: Device, precision: Precision) -> float:
    peak = device.bfloat16 if precision == "bfloat16" else device.float32
    if peak is None:
        other = "float32" if precision == "bfloat16" else "bfloat16"
        raise UsageError(f"{device.title} does not compute in {precision}; add train.precision={other}")
    return peak


def _block_activations(block: Block, size: int) -> int:
    before, after = size**2, _halved(size, block.stride) ** 2
    total = 2 * block.width * (before + after)
    # conv3's output, and the block's, which activation and sum leave in one place.
    total += 2 * block.out_channels * after
    if block.se_channels:
        # What the gate multiplies, and inside it averages, the reduced ones and the gate.
        total += block.out_channels * after + 2 * block.out_channels + block.se_channels
    if block.has_projection:
        total += block.out_channels * after
    if block.pools_shortcut:
        total += block.in_channels * after
    return total


def _halved(size: int, stride: int) -> int:
    return -(-size // stride)
