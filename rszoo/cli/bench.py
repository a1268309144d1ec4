"""`rszoo bench`: the time of a training step here, next to the published times."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from rszoo.cli.console import ChosenFramework, Json, choose_framework, print_json
from rszoo.terminal import show, table

if TYPE_CHECKING:
    from rszoo.bench.timing import StepTime

BENCH_EXAMPLES = (
    "rszoo bench resnet-rs-50-i160",
    "rszoo bench --protocol paper --precision bfloat16 --compile --json",
    "rszoo bench resnet-rs-152-i256 --framework keras --batch-size 32",
)


class ProtocolChoice(StrEnum):
    """How a step is measured."""

    paper = "paper"


class PrecisionChoice(StrEnum):
    """Precision of a step: float32 for the published V100 times, bfloat16 for those of TPUv3."""

    float32 = "float32"
    bfloat16 = "bfloat16"


def bench(
    model: Annotated[str, typer.Argument(help="Registered name, or a pattern of several.")] = "resnet-rs-*-i*",
    protocol: Annotated[
        ProtocolChoice, typer.Option(help="paper: a training step of batch 128, halved until it fits into memory.")
    ] = ProtocolChoice.paper,
    framework: ChosenFramework = None,
    precision: Annotated[PrecisionChoice, typer.Option(help="float32 or bfloat16.")] = PrecisionChoice.float32,
    batch_size: Annotated[int, typer.Option(min=1, help="The batch size that is tried first.")] = 128,
    steps: Annotated[int, typer.Option(min=1, help="Steps that are timed, after 5 to warm up.")] = 20,
    compiled: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    as_json: Json = False,
) -> None:
    """Measure the time of a training step on random images: forward, backward, optimizer and averages."""
    from rszoo.bench.timing import Timing, benchmark_model
    from rszoo.recipes.load import list_pairs
    from rszoo.registry.manifest import get_entry

    names = list_pairs(model) if "*" in model else [get_entry(model).name]
    timing = Timing(steps=steps, batch_size=batch_size)
    chosen = choose_framework(framework)
    results = [
        benchmark_model(name, framework=chosen, precision=precision.value, compiled=compiled, timing=timing)
        for name in names
    ]
    if as_json:
        print_json(
            [{"protocol": protocol.value, **result.to_dict(), "published": result.published} for result in results]
        )
        return
    heading = ("model", "batch", "step", "images/s", "published V100 float32", "published TPUv3 bfloat16")
    show(table([heading, *map(_row, results)]))
    first = results[0]
    versions = ", ".join(f"{name} {version}" for name, version in first.versions.items())
    show(f"Measured on {first.device}: {first.engine}, {first.precision}, median of {first.steps} steps. {versions}.")
    show("Published times are the authors', by the same protocol; they do not say which batch size fit.")


def _row(result: StepTime) -> tuple[str, ...]:
    published = result.published
    v100, tpuv3 = published["v100_float32_s"], published["tpuv3_bfloat16_ms"]
    return (
        *(result.recipe, str(result.batch_size), f"{result.seconds:.3f} s", f"{result.images_per_second:.1f}"),
        *("none" if v100 is None else f"{v100:g} s", "none" if tpuv3 is None else f"{tpuv3:g} ms"),
    )
