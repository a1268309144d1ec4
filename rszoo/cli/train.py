"""`rszoo train`, and `python -m rszoo.train` for torchrun: the command's options in, a run's folder out."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rszoo.cli.console import ChosenFramework, Json, choose_framework, load_frameworks, print_json, split_steps
from rszoo.errors import UsageError, nearest

#: What is no option of the command comes with the recipe's values, so that an error can say how those are given.
TRAIN_SETTINGS = {"ignore_unknown_options": True}
TRAIN_EXAMPLES = (
    "rszoo train --recipe resnet-rs-demo --output runs/demo",
    "rszoo train --recipe resnet-rs-50-i160 --data /data/imagenet --output runs/rs50 train.batch_size=1024",
    "torchrun --nproc-per-node 8 -m rszoo.train --recipe resnet-rs-50-i160 --data /data/imagenet --output runs/rs50",
    "rszoo train --init resnet-rs-50-i160 --data my-images --output runs/mine train.freeze_through=2",
)


class ResumeChoice(StrEnum):
    """Whether an existing run is resumed."""

    auto = "auto"
    never = "never"


def check_overrides(words: Sequence[str], options: Sequence[str]) -> None:
    """Refuse options that there are not, and say how a recipe's value is given.

    `words`: the positional arguments, among which unknown options are. `options`: those that there are.

    Raises:
        UsageError: one is an option.
    """
    from rszoo.recipes.layers import places_of

    for index, word in enumerate(words):
        if not word.startswith("-"):
            continue
        name, equals, value = word.partition("=")
        value = value if equals else next(iter(words[index + 1 : index + 2]), "VALUE")
        key = name.lstrip("-").replace("-", "_")
        if places := [key] if key in places_of(key.rpartition(".")[2]) else places_of(key):
            ways = " or ".join(f"{place}={value}" for place in places)
            raise UsageError(f"there is no option {name}; a value of the recipe is given as {ways}")
        likely = nearest(name.lstrip("-"), [option.lstrip("-") for option in options])
        raise UsageError(
            f"there is no option {name}{f'; nearest: --{likely[0]}' if likely else ''}. A value of the recipe is "
            "given as train.batch_size=1024; see --help"
        )


def train(
    context: typer.Context,
    output: Annotated[Path, typer.Option(help="The run's folder; the same command resumes the run.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Values of the recipe to change, such as train.batch_size=1024.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Name, see `rszoo recipes`, or path of a .yaml file. With --init: fine-tune.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Folder of TFRecords or images, gs://..., digits. Default: the recipe's.")
    ] = None,
    framework: ChosenFramework = None,
    init: Annotated[
        str | None, typer.Option(help="Weights to start from: registered name, model folder, hf-hub:OWNER/NAME.")
    ] = None,
    resume: Annotated[ResumeChoice, typer.Option(help="Resume an existing run, or refuse.")] = ResumeChoice.auto,
    max_steps: Annotated[int | None, typer.Option(min=1, help="End after this many steps; can be resumed.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the recipe's train.seed.")] = None,
    ablate: Annotated[
        str | None, typer.Option(help="Steps of the additive study, separated by commas; see `rszoo recipes ladder`.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Local folder for copies of TFRecords.")] = None,
    max_faults: Annotated[int, typer.Option(min=0, help="Broken images to skip before training fails.")] = 100,
    as_json: Json = False,
) -> None:
    """Train a model by a recipe, or fine-tune one; resume where it was stopped or killed.

    OUTPUT/model is the finished model folder. SIGTERM saves and ends with exit code 75: the same command resumes.
    """
    from rszoo.train.api import TrainingOptions, plan_training, train_model

    # OpenMP's waiting threads spin on cores that the pipeline needs; PyTorch reads this when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    check_overrides(overrides or [], [option for parameter in context.command.params for option in parameter.opts])
    changes = [*(overrides or []), *([] if seed is None else [f"train.seed={seed}"])]
    # Errors of the recipe come before frameworks are imported, which takes seconds.
    plan = plan_training(recipe, changes, data=data, init=init, ablate=None if ablate is None else split_steps(ablate))
    chosen = choose_framework(framework)
    load_frameworks(chosen, "tensorflow")
    options = TrainingOptions(
        framework=chosen,
        resume=resume.value,
        max_steps=max_steps,
        max_faults=max_faults,
        cache=cache,
        command=sys.argv,
        quiet=as_json,
    )
    trained = train_model(plan, output, options)
    if as_json:
        print_json(trained.to_dict())
