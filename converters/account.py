"""Every variable of a TF1 checkpoint accounted for: mapped to a tensor of the model, skipped for a reason, or an error.

In goes the index of a checkpoint, out come the architecture (read off the shapes) and the account. The walk over the
architecture's tensors is the judge: what it does not expect is an error, what it expects must be there exactly once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from converters.tensorbundle.bundle import Entry
from rszoo.arch.config import ArchConfig
from rszoo.arch.names import tf1_names
from rszoo.arch.walk import TensorSpec, iter_tensors
from rszoo.errors import ConfigError, ConversionError, summarize
from rszoo.folder.model_folder import WeightSet

EMA_SUFFIX = "/ExponentialMovingAverage"
MOMENTUM_SUFFIX = "/Momentum"
GLOBAL_STEP = "global_step"
_GARDEN_MARK = "_CHECKPOINTABLE_OBJECT_GRAPH"
_NETWORK_HINT = "is this a ResNet-RS written by tensorflow/tpu's resnet_main.py?"


@dataclass(frozen=True)
class Account:
    """What became of each variable. `mapped` pairs each tensor of the walk, in its order, with its variable."""

    arch: ArchConfig
    weights: WeightSet
    mapped: tuple[tuple[TensorSpec, str], ...]
    skipped: Mapping[str, tuple[str, ...]]


def take_account(entries: Mapping[str, Entry], weights: WeightSet) -> Account:
    """Account for every variable of a checkpoint, given which weights are wanted.

    Raises:
        ConversionError: it is another network or another lineage, or a variable is missing, unexpected, misshapen or
            not float32. All of them are collected and raised as one.
    """
    if _GARDEN_MARK in entries:
        raise ConversionError(
            "this is a TF2 checkpoint (such as the Model Garden's, whose archives have the same names as the TF1 ones "
            "but hold other weights); only the TF1 lineage is converted so far"
        )
    # Either set tells the shapes: a checkpoint for evaluation may hold the averages alone.
    arch = infer_arch({name.removesuffix(EMA_SUFFIX): entry.shape for name, entry in entries.items()})
    specs = list(iter_tensors(arch))
    names = tf1_names(specs)
    suffix = EMA_SUFFIX if weights == "ema" else ""
    mapped = tuple((spec, name + suffix) for spec, name in zip(specs, names, strict=True))
    skipped = _skippable(specs, names, weights)
    known = {variable for _, variable in mapped} | {name for group in skipped.values() for name in group}
    problems = _problems(entries, mapped, weights)
    if unexpected := sorted(set(entries) - known):
        problems.append(f"{len(unexpected)} not of this network: {summarize(unexpected)}")
    if problems:
        raise ConversionError(f"the checkpoint does not account for a {arch.label}: {'; '.join(problems)}")
    present = {reason: tuple(name for name in group if name in entries) for reason, group in skipped.items()}
    return Account(arch, weights, mapped, {reason: group for reason, group in present.items() if group})


def infer_arch(shapes: Mapping[str, tuple[int, ...]]) -> ArchConfig:
    """Read blocks, widths, classes and channels off a TF1 checkpoint's shapes.

    Blocks are counted by their 3x3 convolutions, one per block, whose width tells the stage. Drop rates leave no
    trace in a checkpoint and stay 0.

    Raises:
        ConversionError: the shapes are not a ResNet-RS's.
    """
    kernels = _conv_kernels(shapes)
    head = shapes.get("dense/kernel", ())
    # The stem's four, the projection, and the first block's five are the least there can be.
    if len(kernels) < 10 or len(head) != 2 or any(len(shape) != 4 for shape in kernels):
        raise ConversionError(f"the checkpoint has no variables conv2d/kernel ... and dense/kernel; {_NETWORK_HINT}")
    widths = Counter(shape[3] for shape in kernels[4:] if shape[:2] == (3, 3))
    if len(widths) != 4:
        raise ConversionError(f"the checkpoint's 3x3 kernels are of {len(widths)} widths, not of 4; {_NETWORK_HINT}")
    # mypy cannot count: that there are four of each was checked above, and ArchConfig checks it again.
    try:
        return _simplest_widths(
            ArchConfig(
                blocks=tuple(widths.values()),  # type: ignore[arg-type]
                num_classes=head[1],
                in_chans=kernels[0][2],
                stem_widths=tuple(shape[3] for shape in kernels[:4]),  # type: ignore[arg-type]
                stage_widths=tuple(widths),  # type: ignore[arg-type]
            )
        )
    except ConfigError as error:
        raise ConversionError(f"the checkpoint's shapes are impossible ({error}); {_NETWORK_HINT}") from error


def _simplest_widths(exact: ArchConfig) -> ArchConfig:
    """Return the same network as the published widths times a multiplier, if it is one."""
    published = replace(exact, stem_widths=ArchConfig.stem_widths, stage_widths=ArchConfig.stage_widths)
    multiplied = replace(published, width_multiplier=exact.stage_widths[0] / published.stage_widths[0])
    return multiplied if list(iter_tensors(multiplied)) == list(iter_tensors(exact)) else exact


def _conv_kernels(shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return the shapes of conv2d/kernel, conv2d_1/kernel, ... as far as they go."""
    numbered = {}
    for name, shape in shapes.items():
        if match := re.fullmatch(r"conv2d(?:_([0-9]{1,9}))?/kernel", name):
            numbered[int(match[1] or 0)] = shape
    return [numbered[number] for number in sorted(numbered)]


def _skippable(specs: list[TensorSpec], names: list[str], weights: WeightSet) -> dict[str, list[str]]:
    """Return the variables that may be there and are not wanted, by the reason for skipping them."""
    other = [name + ("" if weights == "ema" else EMA_SUFFIX) for name in names]
    reason = "plain weights; their averages were taken" if weights == "ema" else "averages; plain weights were taken"
    momenta = [name + MOMENTUM_SUFFIX for spec, name in zip(specs, names, strict=True) if spec.kind.trainable]
    return {reason: other, "momentum of the optimizer": momenta, "step counter": [GLOBAL_STEP]}


def _problems(
    entries: Mapping[str, Entry], mapped: tuple[tuple[TensorSpec, str], ...], weights: WeightSet
) -> list[str]:
    present = [(spec, name, entries[name]) for spec, name in mapped if name in entries]
    problems = []
    if len(present) < len(mapped):
        missing = [name for _, name in mapped if name not in entries]
        hint = ""
        if weights == "ema" and len(missing) == len(mapped):
            hint = " (it holds no averages at all; to take the plain weights, give --weights raw)"
        problems.append(f"{len(missing)} of {len(mapped)} missing: {summarize(missing)}{hint}")
    misshapen = [
        f"{name} {entry.shape}, not {spec.shape}" for spec, name, entry in present if entry.shape != spec.shape
    ]
    if misshapen:
        problems.append(f"{len(misshapen)} misshapen: {summarize(misshapen)}")
    mistyped = [f"{name} {entry.dtype}" for _, name, entry in present if entry.dtype != "float32"]
    if mistyped:
        problems.append(f"{len(mistyped)} not float32: {summarize(mistyped)}")
    step = entries.get(GLOBAL_STEP)
    if step and (step.shape or step.dtype not in ("int32", "int64")):
        problems.append(f"{GLOBAL_STEP} is {step.dtype} {step.shape}, not one whole number")
    return problems
