"""Which depth, width and resolution for a budget: the paper's two rules of scaling, as a function.

Epochs and limits of memory and latency in, ranked choices with reasons out. The rules are those of arXiv
2103.07579: scale depth where overfitting can occur (it tried 350 epochs), width otherwise (10 and 100), and the
resolution slowly. Figures are the eleven published pairs', or interpolated between them by counted operations, and then
marked. Nothing was measured here.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, Literal, get_args

from rszoo.arch.config import BLOCKS_OF_DEPTH, ArchConfig
from rszoo.arch.macs import count_macs
from rszoo.errors import UsageError
from rszoo.recipes.estimate import activation_bytes, count_fixed_bytes, largest_batch
from rszoo.registry.manifest import get_entry, list_models

Hardware = Literal["v100", "tpuv3"]
Strategy = Literal["depth", "width"]

#: The schedules that the paper tried: up to the first, width scales better; from the second on, depth.
SHORT_EPOCHS, LONG_EPOCHS = 100, 350
#: Images that a device should have at once: batch normalization computes its statistics over them.
SMALLEST_BATCH = 32

# Sizes beside the published ones, of the same depth.
_SIZE_STEP = 32
_WIDE = tuple(product((50, 101), (1.0, 1.25, 1.5, 2.0), (128, 160, 192, 224)))


@dataclass(frozen=True)
class Budget:
    """What training may cost: `memory_gib` of a device in bfloat16, `latency_ms` of a training step of 128 images.

    The latency is that of the published tables: on a V100 in float32, or on a TPU v3 in bfloat16.
    """

    epochs: float
    memory_gib: float | None = None
    latency_ms: float | None = None
    hardware: Hardware = "v100"

    def __post_init__(self) -> None:
        for name in ("epochs", "memory_gib", "latency_ms"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{name} must be above 0, received {value:g}")
        if self.hardware not in get_args(Hardware):
            raise UsageError(f"hardware must be one of {', '.join(get_args(Hardware))}, received {self.hardware!r}")

    @property
    def strategy(self) -> Strategy:
        """What to scale: as over the nearest of the paper's schedules, nearest in the ratio of epochs."""
        return "depth" if self.epochs >= math.sqrt(SHORT_EPOCHS * LONG_EPOCHS) else "width"


@dataclass(frozen=True)
class Choice:
    """One network. `published` names the pair that it is; where it is None, top-1 and latency are interpolated.

    `top1`: in percent after 350 epochs; None for wider networks, of which none is published. `latency_ms`: of 128
    images. `images_per_device`: what fits into the budget's memory, None without one. `reasons`: in words.
    """

    depth: int
    width_multiplier: float
    image_size: int
    published: str | None
    macs: int
    top1: float | None
    latency_ms: float
    images_per_device: int | None
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)


def advise(budget: Budget, count: int = 5) -> list[Choice]:
    """Return up to `count` networks that the budget allows, the best first; an empty list if none does."""
    candidates = _WIDE if budget.strategy == "width" else _deep()
    choices = [_choose(budget, *candidate) for candidate in candidates]
    return sorted(filter(None, choices), key=_rank)[:count]


def _rank(choice: Choice) -> tuple[float, ...]:
    if choice.top1 is not None:
        return (-choice.top1, choice.published is None, choice.macs)
    # Costs within a fifth count as equal: then wide before small, and small before deep.
    return (-round(math.log(choice.macs, 1.2)), -choice.width_multiplier, choice.image_size, choice.depth)


def _choose(budget: Budget, depth: int, width: float, image_size: int) -> Choice | None:
    """Return a candidate with its figures, or None if the budget does not allow it."""
    arch = ArchConfig(BLOCKS_OF_DEPTH[depth], width_multiplier=width)
    macs = count_macs(arch, image_size)
    name = f"resnet-rs-{depth}-i{image_size}"
    published = name if width == 1 and name in list_models() else None
    latency = _latency_ms(macs, published, budget.hardware)
    if budget.latency_ms is not None and latency > budget.latency_ms:
        return None
    images = None
    if budget.memory_gib is not None:
        fixed = count_fixed_bytes(arch, "bfloat16", ema=True)
        images = largest_batch(budget.memory_gib, fixed, activation_bytes(arch, image_size, "bfloat16"))
        if images < SMALLEST_BATCH:
            return None
    top1 = _top1(macs, published) if budget.strategy == "depth" else None
    reasons = _reasons(budget, published, top1, images)
    return Choice(depth, width, image_size, published, macs, top1, latency, images, reasons)


def _reasons(budget: Budget, published: str | None, top1: float | None, images: int | None) -> tuple[str, ...]:
    known = f"published: {top1:g} % top-1 after {LONG_EPOCHS} epochs" if top1 is not None else "a published network"
    between = "not published: " + ("latency" if top1 is None else "top-1 and latency") + " interpolated by operations"
    reasons = [known if published else between]
    if budget.strategy == "depth":
        reasons.append(f"depth before width: over {budget.epochs:g} epochs overfitting can occur")
    else:
        reasons.append(f"width before depth: {budget.epochs:g} epochs are too few to overfit; no top-1 is published")
    if SHORT_EPOCHS < budget.epochs < LONG_EPOCHS:
        reasons.append(f"a judgement: the paper tried {SHORT_EPOCHS} epochs and {LONG_EPOCHS}, nothing between")
    reasons.append("the resolution follows slowly, as in the published pairs")
    if images is not None:
        reasons.append(f"about {images} images fit into {budget.memory_gib:g} GiB in bfloat16")
    return tuple(reasons)


def _deep() -> list[tuple[int, float, int]]:
    """Return the published pairs and, for each, the sizes beside it; none beyond the largest published one."""
    sizes = {(get_entry(name).arch.depth or 0, get_entry(name).image_size) for name in _pairs()}
    largest = max(size for _, size in sizes)
    beside = {(depth, size + step) for depth, size in sizes for step in (-_SIZE_STEP, 0, _SIZE_STEP)}
    return [(depth, 1.0, size) for depth, size in sorted(beside) if size <= largest]


def _top1(macs: int, published: str | None) -> float:
    """Return the published top-1, or that on the line through the two pairs beside it, over the logarithm of cost."""
    if published:
        return get_entry(published).published.top1
    points = sorted((_pair_macs(name), get_entry(name).published.top1) for name in _pairs())
    # Below the smallest pair and above the largest, the first and the last line are extended.
    (cost, top1), (next_cost, next_top1) = next(
        (pair for pair in pairwise(points) if macs <= pair[1][0]), (points[-2], points[-1])
    )
    return round(top1 + (next_top1 - top1) * math.log(macs / cost) / math.log(next_cost / cost), 1)


def _latency_ms(macs: int, published: str | None, hardware: Hardware) -> float:
    """Return the published step time, or that on the straight line through all pairs, both scales logarithmic."""
    if published:
        return _published_ms(published, hardware)
    costs = [math.log(_pair_macs(name)) for name in _pairs()]
    times = [math.log(_published_ms(name, hardware)) for name in _pairs()]
    slope, intercept = statistics.linear_regression(costs, times)
    return round(math.exp(intercept + slope * math.log(macs)), 1)


def _published_ms(name: str, hardware: Hardware) -> float:
    figures = get_entry(name).published
    return figures.tpuv3_latency_ms or 0 if hardware == "tpuv3" else 1000 * (figures.v100_latency_s or 0)


def _pairs() -> list[str]:
    """Return the pairs whose times are published, the paper's."""
    return [name for name in list_models("*-i*") if get_entry(name).published.v100_latency_s is not None]


@functools.cache
def _pair_macs(name: str) -> int:
    return count_macs(get_entry(name).arch, get_entry(name).image_size)
