"""`rszoo recipes ...`: recipes, their values, costs, and advice. Each command imports what it needs when it runs."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from rszoo.cli.console import Json, examples, new_app, print_json, split_steps
from rszoo.terminal import table

if TYPE_CHECKING:
    from rszoo.recipes.estimate import Estimate
    from rszoo.recipes.recipe import Recipe
    from rszoo.recipes.scaling import Choice

recipes_app = new_app("How models are trained: recipes, the additive study, costs, and advice on scaling.")

Overrides = Annotated[
    list[str] | None, typer.Argument(help="Values of the recipe to change, such as train.batch_size=1024.")
]


class HardwareChoice(StrEnum):
    """Whose published step times a latency is compared with."""

    v100 = "v100"
    tpuv3 = "tpuv3"


@recipes_app.callback(
    invoke_without_command=True,
    no_args_is_help=False,
    epilog=examples("rszoo recipes", "rszoo recipes show resnet-rs-420-i320", "rszoo recipes estimate"),
)
def recipes(context: typer.Context, as_json: Json = False) -> None:
    """List the recipes, or show one, the steps of the additive study, costs, or advice on scaling."""
    from rszoo.recipes.load import list_recipes, load_recipe

    if context.invoked_subcommand is not None:
        return
    loaded = [load_recipe(name) for name in list_recipes()]
    if as_json:
        print_json([recipe.to_dict() for recipe in loaded])
        return
    heading = ("recipe", "status", "depth", "size", "batch", "epochs", "peak rate", "RandAugment", "dropout")
    print(table([(*heading, "drop-connect"), *map(_row, loaded)]))


def _row(recipe: Recipe) -> tuple[str, ...]:
    model, augment, train = recipe.model, recipe.augment, recipe.train
    layers, magnitude = augment.randaugment_layers, augment.randaugment_magnitude
    numbers = (recipe.data.image_size, train.batch_size, train.epochs, recipe.learning_rate)
    return (
        *(recipe.name, recipe.status, str(model.depth or "-".join(map(str, model.blocks)))),
        *(f"{number:g}" for number in numbers),
        f"{layers} of magnitude {magnitude:g}" if layers else "none",
        *(f"{rate:g}" if rate else "none" for rate in (model.dropout_rate, model.drop_connect_rate)),
    )


@recipes_app.command(
    epilog=examples(
        "rszoo recipes show resnet-rs-420-i320",
        "rszoo recipes show resnet-rs-50-i160 train.batch_size=1024 --json",
        "rszoo recipes show resnet-200-baseline --ablate cosine,epochs_350",
    )
)
def show(
    name: Annotated[str, typer.Argument(help="Name of a recipe, or the path of a .yaml file.")],
    overrides: Overrides = None,
    ablate: Annotated[
        str | None, typer.Option(help="Steps of the additive study, separated by commas; see `rszoo recipes ladder`.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print a whole recipe as YAML, with the source of each value as a comment; the text is a recipe file itself."""
    from rszoo.errors import UsageError
    from rszoo.recipes.ablation import BASELINE, trace_ablation
    from rszoo.recipes.load import trace_recipe

    if ablate is not None and name != BASELINE:
        raise UsageError(f"the additive study starts from {BASELINE}: rszoo recipes show {BASELINE} --ablate {ablate}")
    changes = overrides or []
    traced = trace_recipe(name, changes) if ablate is None else trace_ablation(split_steps(ablate), changes)
    if as_json:
        print_json(traced.to_dict())
    else:
        print(traced.to_yaml(), end="")


@recipes_app.command(epilog=examples("rszoo recipes ladder", "rszoo recipes ladder --json"))
def ladder(as_json: Json = False) -> None:
    """List the steps of the paper's additive study, from a ResNet-200 to ResNet-RS-200: names for --ablate."""
    from rszoo.recipes.ablation import ABLATION_STEPS, BASELINE, BASELINE_TOP1

    if as_json:
        steps = [{"name": step.name, "top1": step.top1, "overrides": list(step.overrides)} for step in ABLATION_STEPS]
        print_json({"baseline": BASELINE, "baseline_top1": BASELINE_TOP1, "steps": steps})
        return
    rows = [("step", "top-1 % with all before", "changes"), (BASELINE, f"{BASELINE_TOP1:.1f}", "")]
    print(table([*rows, *((step.name, f"{step.top1:.1f}", " ".join(step.overrides)) for step in ABLATION_STEPS)]))
    print("Top-1 as the paper reports it, quoted from memory; nothing of this was run here.")


@recipes_app.command(
    epilog=examples(
        "rszoo recipes estimate",
        "rszoo recipes estimate resnet-rs-152-i256 --device a100 --devices 16",
        "rszoo recipes estimate resnet-rs-50-i160 train.batch_size=1024 train.gradient_checkpointing=true --json",
    )
)
def estimate(
    name: Annotated[str | None, typer.Argument(help="Recipe, or .yaml file; all published pairs if left out.")] = None,
    overrides: Overrides = None,
    device: Annotated[str, typer.Option(help="v100, a100, h100, h200, tpu-v3, tpu-v4, tpu-v5e or tpu-v5p.")] = "h100",
    devices: Annotated[int, typer.Option(help="Number of devices.")] = 8,
    utilization: Annotated[
        float | None,
        typer.Option(help="Share of the peak rate that training reaches. Default: an assumption for the device."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compute operations, memory and time of training. Computed, not measured."""
    from rszoo.recipes.estimate import estimate as compute
    from rszoo.recipes.load import list_pairs, load_recipe

    names = list_pairs("*-i*") if name is None else [name]
    recipes = [load_recipe(name, overrides or []) for name in names]
    estimates = [compute(recipe, device, devices=devices, utilization=utilization) for recipe in recipes]
    if as_json:
        print_json([result.to_dict() for result in estimates])
        return
    _print_estimates(estimates)


def _print_estimates(estimates: list[Estimate]) -> None:
    from rszoo.recipes.estimate import DEVICES, GIB

    heading = ("recipe", "M parameters", "forward GMACs", "training GFLOPs", "kept MiB", "fixed GiB", "accumulate")
    rows = [(*heading, "micro-batch", "GiB a device", "images/s", "hours")]
    for result in estimates:
        rows.append(
            (
                result.recipe,
                f"{result.parameters / 1e6:.1f}",
                f"{result.forward_macs_per_image / 1e9:.2f}",
                f"{result.training_operations_per_image / 1e9:.1f}",
                f"{result.activation_bytes_per_image / 2**20:.0f}",
                f"{result.fixed_bytes / GIB:.2f}",
                str(result.accumulate or "does not fit"),
                str(result.micro_batch),
                f"{result.memory_bytes / GIB:.1f}",
                f"{result.images_per_second:,.0f}",
                f"{result.hours:,.0f}",
            )
        )
    print(table(rows))
    first = estimates[0]
    print(
        f"Computed, not measured: {first.devices} x {DEVICES[first.device].title}, {first.precision}, at an assumed "
        f"{first.utilization:.0%} of the peak rate. GFLOPs and kept activations are of one image."
    )


@recipes_app.command(
    epilog=examples(
        "rszoo recipes advise --epochs 350 --latency-ms 1000",
        "rszoo recipes advise --epochs 30 --memory-gib 16 --latency-ms 170 --hardware tpuv3",
    )
)
def advise(
    epochs: Annotated[float, typer.Option(help="Epochs of the training.")],
    memory_gib: Annotated[float | None, typer.Option(help="Memory of a device, in GiB.")] = None,
    latency_ms: Annotated[float | None, typer.Option(help="Time of a training step of 128 images.")] = None,
    hardware: Annotated[HardwareChoice, typer.Option(help="Whose published step times to use.")] = HardwareChoice.v100,
    count: Annotated[int, typer.Option(help="Number of recommendations.")] = 5,
    as_json: Json = False,
) -> None:
    """Recommend depth, width and resolution for a budget, by the paper's rules and published figures."""
    from rszoo.errors import UsageError
    from rszoo.recipes.scaling import Budget
    from rszoo.recipes.scaling import advise as rank

    choices = rank(Budget(epochs, memory_gib, latency_ms, hardware.value), count)
    if not choices:
        raise UsageError("no network fits; allow more --latency-ms or --memory-gib")
    if as_json:
        print_json([choice.to_dict() for choice in choices])
        return
    print(table([("depth", "width", "size", "GMACs", "top-1 %", "step ms", "why"), *map(_choice_row, choices)]))


def _choice_row(choice: Choice) -> tuple[str, ...]:
    return (
        *(str(choice.depth), f"{choice.width_multiplier:g}", str(choice.image_size), f"{choice.macs / 1e9:.2f}"),
        *("?" if choice.top1 is None else f"{choice.top1:.1f}", f"{choice.latency_ms:.0f}", "; ".join(choice.reasons)),
    )
