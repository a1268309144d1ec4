"""`rszoo eval`: the command's options in, `rszoo.evaluate_model`'s result as text or JSON out, and into files."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rszoo.cli.console import ChosenFramework, Json, choose_framework, load_frameworks, print_json
from rszoo.terminal import show


class SplitChoice(StrEnum):
    """Which part of the data is taken."""

    train = "train"
    validation = "validation"
    all = "all"


class TransformChoice(StrEnum):
    """What images go through."""

    published = "published"
    timm = "timm"


def evaluate(
    model: Annotated[str, typer.Argument(help="Registered name, model folder, or hf-hub:OWNER/NAME.")],
    data: Annotated[str, typer.Option(help="Folder of images or of TFRecords, gs://..., or digits.")],
    split: Annotated[
        SplitChoice, typer.Option(help="Which part; without splits in the folder, validation is a tenth.")
    ] = SplitChoice.validation,
    framework: ChosenFramework = None,
    preprocessing: Annotated[
        TransformChoice, typer.Option(help="The published one, or timm's for the same size, to see the difference.")
    ] = TransformChoice.published,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time; affects only the speed.")] = 64,
    dtype: Annotated[str, typer.Option(help="Of weights and computation, such as float32 or bfloat16.")] = "float32",
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:1. Default: a GPU if there is one.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first images, for a quick check.")] = None,
    output: Annotated[Path | None, typer.Option(help="New folder for result, figures by class, confusions.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result in --output.")] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Record the result in the model folder, for its card.")
    ] = False,
    dataset: Annotated[
        str | None, typer.Option(help="With --record: the data set's id on the Hub, such as ILSVRC/imagenet-1k.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Count the accuracy of a model, beside the published one.

    Images that cannot be read are named and counted; then, or with --limit, nothing is recorded.
    """
    from rszoo.cache.find import find
    from rszoo.evaluate.api import Keep, check_keep, evaluate_model
    from rszoo.evaluate.report import summary
    from rszoo.folder.evaluations import read_evaluations
    from rszoo.folder.model_folder import EVALUATION, ModelFolder
    from rszoo.inference.network import Runtime

    runtime = Runtime(choose_framework(framework), batch_size, dtype, device)
    keep = Keep(output, overwrite, record, dataset)
    # A wrong name is told before frameworks are imported, which takes seconds.
    found = find(check_keep(model, data, keep, runtime=runtime, limit=limit))
    load_frameworks(runtime.framework, "tensorflow")
    result = evaluate_model(
        found,
        data,
        split=split.value,
        preprocessing=preprocessing.value,
        limit=limit,
        runtime=runtime,
        keep=keep,
    )
    print_json(result.to_dict()) if as_json else show(summary(result))
    if record and isinstance(found, ModelFolder):
        count = len(read_evaluations(found.path))
        show(f"recorded in {found.path / EVALUATION}, which has {count} now", file=sys.stderr)
