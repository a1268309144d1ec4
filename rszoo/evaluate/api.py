"""`rszoo.evaluate_model`: a model and data in, counted accuracy out, and optionally files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rszoo.cache.find import ModelLike, find, find_place
from rszoo.disk.staging import check_place
from rszoo.errors import UsageError
from rszoo.evaluate.report import REPORT, write_report
from rszoo.evaluate.result import Result, check_recordable
from rszoo.evaluate.runner import count_accuracy
from rszoo.folder.evaluations import Transform, check_writable, record_evaluation
from rszoo.folder.model_folder import ModelFolder
from rszoo.inference.network import Runtime
from rszoo.pipeline.sources import DIGITS, Split
from rszoo.refs import Hub

_DEFAULT_RUNTIME = Runtime()


@dataclass(frozen=True)
class Keep:
    """Which files a result is written to.

    `output`: a new folder for result, figures by class and confusions, which `overwrite` replaces. `record`: record
    the result in the model folder, for its card; `dataset`: the data's id on the Hub, such as
    ILSVRC/imagenet-1k, or else their name.

    Raises:
        UsageError: `dataset` without `record`.
    """

    output: Path | None = None
    overwrite: bool = False
    record: bool = False
    dataset: str | None = None

    def __post_init__(self) -> None:
        if self.dataset is not None and not self.record:
            raise UsageError(
                f"--dataset {self.dataset} names the data in what --record writes; add --record, or leave it out"
            )


_NOTHING = Keep()


def evaluate_model(
    model: ModelLike,
    data: str,
    *,
    split: Split = "validation",
    preprocessing: Transform = "published",
    limit: int | None = None,
    runtime: Runtime = _DEFAULT_RUNTIME,
    keep: Keep = _NOTHING,
) -> Result:
    """Count top-1 and top-5 of a model on data, beside the published accuracy.

    Args:
        model: a registered name (the published averages), a model folder, or a model on the Hub (`hf-hub:OWNER/NAME`).
        data: "digits", a folder of TFRecords here or at `gs://`, a folder of images.
        split: "train", "validation", or "all" of a folder without splits, of which "validation" is a tenth.
        preprocessing: "published", the model's own, or "timm": timm's transform for the same input size.
        limit: use only the first images, for a quick check; of a folder those are the first classes'.
        runtime: framework, batch size, dtype and device.
        keep: files to write.

    Raises:
        UnknownModelError, SourceNotFoundError: there is no such model or data.
        UsageError: an argument is not allowed, or the data's classes are not the model's.
        ImageError: nothing could be counted, too much could not be read, or a label is none of the model's.
        ConfigError: the labels of TFRecords count from 0.
        VerificationError: the pipeline gave other images than the data have; nothing is written.
        OutputError: a folder exists, or cannot be written.
        MissingPackageError: the framework, or TensorFlow, which reads the images, is not installed.
    """
    found = check_keep(model, data, keep, runtime=runtime, limit=limit)
    result = count_accuracy(found, data, split=split, preprocessing=preprocessing, limit=limit, runtime=runtime)
    if keep.output is not None:
        write_report(result, keep.output, overwrite=keep.overwrite)
    if keep.record and isinstance(found, ModelFolder):
        record_evaluation(found.path, result.to_evaluation(keep.dataset or result.data))
    return result


def check_keep(model: ModelLike, data: str, keep: Keep, *, runtime: Runtime, limit: int | None) -> ModelLike:
    """Check that a result can be written, before hours are spent; return the model, its folder if that is written to.

    Raises:
        UsageError: a result cannot be recorded: the model is no folder, or the runtime is not the published protocol's.
        OutputError: a folder is there already, or cannot be written.
    """
    if keep.output is not None:
        check_place(keep.output, REPORT, overwrite=keep.overwrite)
    if not keep.record:
        return model
    place = find_place(model)
    found = place if isinstance(place, Hub) else find(place)
    if not isinstance(found, ModelFolder):
        raise UsageError(
            f"--record writes into a model folder, and {model} is a name; make one with `rszoo-convert --ckpt {model} "
            "--output FOLDER` or `rszoo pull`, and evaluate that"
        )
    if keep.dataset is None and data != DIGITS:
        raise UsageError(
            "--record says on the card which data were measured; add --dataset with their id on the Hub, such as "
            "--dataset ILSVRC/imagenet-1k, or else their name"
        )
    check_recordable(runtime, limit)
    check_writable(found.path)
    return found
