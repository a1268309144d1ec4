"""`rszoo eval`: the command's options in, `rszoo.evaluate.evaluate`'s result as text or JSON out, and into files."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rszoo.cli.console import FrameworkChoice, Json, load_frameworks, print_json
from rszoo.errors import UsageError

if TYPE_CHECKING:
    from rszoo.evaluate.result import Result
    from rszoo.folder.model_folder import ModelFolder
    from rszoo.inference.network import Runtime


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
        SplitChoice, typer.Option(help="Which part; of a folder without splits validation is a tenth.")
    ] = SplitChoice.validation,
    framework: Annotated[FrameworkChoice, typer.Option(help="What runs the model.")] = FrameworkChoice.torch,
    preprocessing: Annotated[
        TransformChoice, typer.Option(help="The published one, or timm's for the same size, to see the difference.")
    ] = TransformChoice.published,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time; changes the speed alone.")] = 64,
    dtype: Annotated[str, typer.Option(help="Of weights and computation, as rszoo.create takes it.")] = "float32",
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:1. Default: a GPU if there is one.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many images, to try it out.")] = None,
    output: Annotated[Path | None, typer.Option(help="New folder for result, figures by class, confusions.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a former result in --output.")] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Write the result into the model folder, whose card will have it.")
    ] = False,
    dataset: Annotated[
        str | None, typer.Option(help="With --record: the data set's id on the Hub, such as ILSVRC/imagenet-1k.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Count the accuracy of a model, beside the published one.

    Images that cannot be read are named and counted; then, or with --limit, nothing is recorded.
    """
    from rszoo.evaluate.report import check_output, summary, write_report
    from rszoo.evaluate.runner import evaluate as run
    from rszoo.inference.network import Runtime

    runtime = Runtime(framework.value, batch_size, dtype, device)
    if output is not None:
        check_output(output, overwrite=overwrite)
    folder = _check_record(model, data, dataset, runtime, limit) if record else None
    if folder is None and dataset is not None:
        raise UsageError(f"--dataset {dataset} names the data in what --record writes; add --record, or leave it out")
    load_frameworks(framework.value, "tensorflow")
    result = run(
        folder or model, data, split=split.value, preprocessing=preprocessing.value, limit=limit, runtime=runtime
    )
    print_json(result.to_dict()) if as_json else print(summary(result))
    if output is not None:
        write_report(result, output, overwrite=overwrite)
    if folder is not None:
        _record(result, folder, dataset)


def _check_record(model: str, data: str, dataset: str | None, runtime: Runtime, limit: int | None) -> ModelFolder:
    """Check all that --record asks for, before hours are spent on what it would not write; return where it writes."""
    from rszoo.cache.find import find, find_place
    from rszoo.evaluate.result import check_recordable
    from rszoo.folder.evaluations import check_writable
    from rszoo.folder.model_folder import ModelFolder
    from rszoo.pipeline.sources import DIGITS
    from rszoo.refs import Hub

    place = find_place(model)
    found = place if isinstance(place, Hub) else find(place)
    if not isinstance(found, ModelFolder):
        raise UsageError(
            f"--record writes into a model folder, and {model} is a name; make one with `rszoo-convert --ckpt {model} "
            "--output FOLDER` or `rszoo pull`, and evaluate that"
        )
    if dataset is None and data != DIGITS:
        raise UsageError(
            "--record says on the card which data were measured; add --dataset with their id on the Hub, such as "
            "--dataset ILSVRC/imagenet-1k, or else their name"
        )
    check_recordable(runtime, limit)
    check_writable(found.path)
    return found


def _record(result: Result, folder: ModelFolder, dataset: str | None) -> None:
    from rszoo.folder.evaluations import record_evaluation
    from rszoo.folder.model_folder import EVALUATION

    results = record_evaluation(folder.path, result.to_evaluation(dataset or result.data))
    print(f"recorded in {folder.path / EVALUATION}, which has {len(results)} now", file=sys.stderr)
