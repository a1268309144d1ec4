"""`rszoo train`, and `python -m rszoo.train` for torchrun: the command's options in, a run's folder out."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rszoo.cli.console import FrameworkChoice, Json, load_frameworks, print_json
from rszoo.errors import SplitNotFoundError, UsageError

if TYPE_CHECKING:
    from rszoo.pipeline.sources import Source
    from rszoo.recipes.recipe import Recipe
    from rszoo.train.run import Job

TRAIN_EXAMPLES = (
    "rszoo train --recipe resnet-rs-demo --output runs/demo",
    "rszoo train --recipe resnet-rs-50-i160 --data /data/imagenet --output runs/rs50 train.batch_size=1024",
    "torchrun --nproc-per-node 8 -m rszoo.train --recipe resnet-rs-50-i160 --data /data/imagenet --output runs/rs50",
    "rszoo train --init resnet-rs-50-i160 --data my-images --output runs/mine train.freeze_through=2",
)


class ResumeChoice(StrEnum):
    """Whether a run that is there is gone on with."""

    auto = "auto"
    never = "never"


def train(
    output: Annotated[Path, typer.Option(help="The run's folder; the same command again goes on with it.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Values of the recipe to change, such as train.batch_size=1024.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Name, see `rszoo recipes`, or path of a .yaml file. With --init: fine-tune.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Folder of TFRecords or images, gs://..., digits. Default: the recipe's.")
    ] = None,
    engine: Annotated[FrameworkChoice, typer.Option(help="PyTorch or Keras 3.")] = FrameworkChoice.torch,
    init: Annotated[
        str | None, typer.Option(help="Weights to start from: registered name, model folder, hf-hub:OWNER/NAME.")
    ] = None,
    resume: Annotated[ResumeChoice, typer.Option(help="Go on with a run, or refuse.")] = ResumeChoice.auto,
    max_steps: Annotated[int | None, typer.Option(min=1, help="End after so many steps; can be gone on with.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="In the place of the recipe's train.seed.")] = None,
    ablate: Annotated[
        str | None, typer.Option(help="Steps of the additive study, with commas between; see `rszoo recipes ladder`.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder on this machine for copies of TFRecords.")] = None,
    max_faults: Annotated[int, typer.Option(min=0, help="Broken images that are put up with.")] = 100,
    as_json: Json = False,
) -> None:
    """Train a model by a recipe, or fine-tune one; go on where it was stopped or killed.

    OUTPUT/model is the finished model folder. SIGTERM saves and ends with exit code 75: the same command goes on.
    """
    from rszoo.train.fine_tuning import fine_tuning_recipe, lost_start
    from rszoo.train.run import Job
    from rszoo.train.run import train as run

    # OpenMP's threads wait for each other spinning, on cores that the pipeline needs; read when PyTorch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    changes = [*(overrides or []), *([] if seed is None else [f"train.seed={seed}"])]
    # What is wrong with the recipe is said before frameworks are imported, which takes its time.
    name, source = _choose(recipe, data, init, ablate, changes)
    built = None if init is not None else _build(name, changes, ablate)
    load_frameworks(engine.value, "tensorflow")
    images, held_out = _open(source, cache)
    job = Job(
        images=images,
        held_out=held_out,
        output=output,
        engine=engine.value,
        init=init,
        resume=resume.value,
        max_steps=max_steps,
        max_faults=max_faults,
        command=sys.argv,
        note=None if init else lost_start(name),
        quiet=as_json,
    )
    run(built or fine_tuning_recipe(name, changes, init=str(init), images=images), job)
    if as_json:
        _print_outcome(job)


def _choose(
    recipe: str | None, data: str | None, init: str | None, ablate: str | None, changes: list[str]
) -> tuple[str, str]:
    """Return the name of the recipe, and the data.

    Raises:
        UsageError: one of them is not named, or too many are.
    """
    from rszoo.recipes.ablation import BASELINE
    from rszoo.recipes.load import load_recipe
    from rszoo.train.fine_tuning import RECIPE

    if ablate is not None and (init is not None or recipe not in (None, BASELINE)):
        raise UsageError(f"--ablate starts from the recipe {BASELINE}; leave out --recipe and --init")
    name = recipe or (BASELINE if ablate is not None else RECIPE if init is not None else None)
    if name is None:
        raise UsageError("--recipe is missing: `rszoo recipes` lists them; with --init NAME it may be left out")
    source = data or load_recipe(name, changes).data.source
    if source is None:
        raise UsageError(f"--data is missing: the recipe {name} names none; give a folder of TFRecords or images")
    return name, source


def _open(data: str, cache: Path | None) -> tuple[Source, Source | None]:
    from rszoo.pipeline.sources import open_source

    images = open_source(data, "train", cache=cache)
    try:
        return images, open_source(data, "validation", cache=cache)
    except SplitNotFoundError:
        return images, None


def _build(name: str, changes: list[str], ablate: str | None) -> Recipe:
    from rszoo.recipes.ablation import ablate as add_steps
    from rszoo.recipes.ablation import split_steps
    from rszoo.recipes.load import load_recipe

    if ablate is None:
        return load_recipe(name, changes)
    return add_steps(split_steps(ablate), changes)


def _print_outcome(job: Job) -> None:
    from rszoo.train.metrics import last_evaluation
    from rszoo.train.run_folder import RunFolder

    folder = RunFolder(job.output)
    step = folder.finished_step
    print_json({"model": str(folder.model), "step": step, "evaluation": last_evaluation(folder.metrics, step)})
