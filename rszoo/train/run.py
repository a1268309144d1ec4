"""`train`: a recipe and a job in, a trained model folder out, inside the run's folder.

Data of other classes and the folder of another run are refused before the engine starts, which takes a while. A
finished run is not changed.
"""

from __future__ import annotations

import platform
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rszoo.cache.find import find_folder
from rszoo.errors import ConfigError, OutputError
from rszoo.extras import installed_versions
from rszoo.folder.evaluations import Evaluation, record_evaluation
from rszoo.folder.model_folder import ModelFolder, sha256_of
from rszoo.models.saving import save
from rszoo.pipeline.faults import DEFAULT_LIMIT, Faults
from rszoo.pipeline.share import Position, Share
from rszoo.pipeline.sources import Source
from rszoo.recipes.recipe import Recipe
from rszoo.registry.manifest import get_entry, list_models
from rszoo.train.curves import check_plotting, plot_curves
from rszoo.train.engine import Engine, EngineName
from rszoo.train.engines import start_engine
from rszoo.train.identity import identify
from rszoo.train.loop import Data, Loop, Task
from rszoo.train.metrics import MetricRecord, last_evaluation, read_records
from rszoo.train.output import check_writable, writing
from rszoo.train.run_folder import RunFolder
from rszoo.train.start import Start
from rszoo.train.stopping import StopRequest
from rszoo.version import __version__

Resume = Literal["auto", "never"]

# Images are RGB.
_CHANNELS = 3
_PACKAGES = ("torch", "tensorflow", "keras", "jax", "numpy")


@dataclass(frozen=True)
class Job:
    """What is to be done with a recipe.

    `images`: to train on; `held_out`: to measure with, None if there are none. `output`: the run's folder. `init`:
    weights to start from. `max_steps`: end before the recipe does. `max_faults`: how many broken
    images are skipped before training fails. `command`: what the user typed. `note`: printed before the first step.
    """

    images: Source
    held_out: Source | None
    output: Path
    engine: EngineName = "torch"
    init: Start | None = None
    resume: Resume = "auto"
    max_steps: int | None = None
    max_faults: int = DEFAULT_LIMIT
    command: Sequence[str] = ()
    note: str | None = None
    quiet: bool = False


def train(recipe: Recipe, job: Job) -> Path:
    """Train by a recipe until its end or `job.max_steps`, resuming where a previous call was stopped or killed.

    Returns:
        The model folder, with the averaged weights if the recipe averages.

    Raises:
        ConfigError: the recipe does not fit the data or the devices.
        UsageError: the folder is another run's, or the run is beyond `job.max_steps`.
        OutputError: the folder is no run's, cannot be written, or another process trains in it.
        RszooError: the initial weights cannot be fetched.
        TrainingStoppedError: a signal came; the state is saved.
        TrainingError: the loss is not a number.
        ImageError, SourceNotFoundError: the data cannot be read, or too much of it is broken.
        MissingPackageError: a package is not installed.
    """
    check_plotting()
    _check_data(recipe, job.images)
    folder = RunFolder(job.output)
    folder.check_usable(may_resume=job.resume == "auto")
    weights = None if job.init is None else find_folder(job.init.found)
    identity = identify(recipe, job.images, job.init, weights)
    folder.check_same(identity)
    target = recipe.total_steps if job.max_steps is None else min(job.max_steps, recipe.total_steps)
    folder.check_step(folder.finished_step, target)
    if folder.finished_step == target:
        if not job.quiet:
            print(f"{folder.path} is finished: step {folder.finished_step}, {folder.model}")
        return folder.model
    check_writable(folder.path)
    with StopRequest() as stop:
        engine = start_engine(job.engine, recipe, init=weights, classes=job.images.class_names)
        try:
            with _alone(engine, folder):
                if engine.rank == 0:
                    folder.open(identity, _session(recipe, job, engine))
                task = Task(recipe, job.engine, _open_data(recipe, job), target, job.quiet)
                loop = Loop(engine, task, folder)
                if job.note is not None:
                    loop.note(job.note)
                try:
                    loop.begin()
                    loop.run(stop)
                finally:
                    loop.close()
                _finish(recipe, job, engine, loop, folder)
        finally:
            engine.close()
    return folder.model


@contextmanager
def _alone(engine: Engine, folder: RunFolder) -> Iterator[None]:
    """Raise an OutputError, in all processes of this command, if another command trains in the folder."""
    with folder.locked() if engine.rank == 0 else nullcontext(True) as free:
        if engine.agree(not free):
            raise OutputError(f"another process trains in {folder.path}; wait for it, or choose another --output")
        yield


def _finish(recipe: Recipe, job: Job, engine: Engine, loop: Loop, folder: RunFolder) -> None:
    """Write what a finished run has: the model, its accuracy, the curves."""
    network = engine.network("raw" if recipe.optimizer.ema_decay is None else "ema")
    if engine.rank == 0:
        records = read_records(folder.metrics)
        with writing(folder.model):
            model = save(network, folder.model, title=recipe.title, labels=_labels(recipe, job.images), overwrite=True)
        record = last_evaluation(folder.metrics, loop.step)
        faults = loop.task.data.faults
        if faults.count:
            loop.note(f"{faults.count} broken images or files were left out: {'; '.join(faults.first[:3])}")
        elif (evaluation := _evaluation(recipe, job, model, record)) is not None:
            record_evaluation(model.path, evaluation)
        plot_curves(records, recipe.title, folder.curves)
        folder.finish(loop.step)
        loop.say(f"step {loop.step}: the model is {folder.model}")
    # The first process writes while the others wait.
    engine.agree(False)


def _evaluation(recipe: Recipe, job: Job, model: ModelFolder, record: MetricRecord | None) -> Evaluation | None:
    """Return the last measurement if it can be recorded: of all images, and in float32."""
    if record is None or job.held_out is None or recipe.train.precision != "float32":
        return None
    scores = record["raw" if record["ema"] is None else "ema"]
    return Evaluation(
        dataset=job.held_out.title,
        split=job.held_out.split,
        images=record["images"],
        top1=scores["top1"],
        top5=scores["top5"],
        preprocessing="published",
        image_size=recipe.data.image_size,
        framework=job.engine,
        weights_sha256=sha256_of(model.weights_path),
        day=datetime.now(UTC).date().isoformat(),
        rszoo_version=__version__,
    )


def _labels(recipe: Recipe, images: Source) -> tuple[str, ...] | None:
    """Return the data's class names, or those of the published pair that the recipe belongs to."""
    if images.class_names is not None:
        return images.class_names
    known = get_entry(recipe.name).labels if recipe.name in list_models() else ()
    return known if len(known) == recipe.model.num_classes else None


def _open_data(recipe: Recipe, job: Job) -> Data:
    from rszoo.pipeline.evaluation import evaluation_dataset
    from rszoo.pipeline.training import training_dataset

    faults, images, held_out = Faults(job.max_faults), job.images, job.held_out

    def open_training(share: Share, batch_size: int, position: Position) -> Any:
        return training_dataset(images, recipe, share=share, batch_size=batch_size, position=position, faults=faults)

    if held_out is None:
        return Data(open_training, None, faults)
    settings = recipe.data.preprocessing

    def open_evaluation(share: Share, batch_size: int) -> Any:
        return evaluation_dataset(held_out, settings, share=share, batch_size=batch_size, faults=faults)

    return Data(open_training, open_evaluation, faults)


def _check_data(recipe: Recipe, images: Source) -> None:
    """Raise a ConfigError if the recipe is for other data."""
    if (channels := recipe.model.in_chans) != _CHANNELS:
        raise ConfigError(
            f"the recipe {recipe.name} is of a model of {channels} channels, and images are RGB; add "
            f"model.in_chans={_CHANNELS}"
        )
    classes, wanted = images.num_classes, recipe.model.num_classes
    if classes is not None and classes != wanted:
        raise ConfigError(
            f"{images.title} has {classes} classes, the recipe {recipe.name} {wanted}; add model.num_classes={classes}"
        )
    if images.num_images not in (None, recipe.data.train_images):
        raise ConfigError(
            f"{images.title} has {images.num_images:,} training images, but the recipe {recipe.name} counts its "
            f"epochs by {recipe.data.train_images:,}; add data.train_images={images.num_images}"
        )


def _session(recipe: Recipe, job: Job, engine: Engine) -> dict[str, Any]:
    """Return the command, engine, devices, data and versions of a start or resumption."""
    versions = {"python": platform.python_version(), "rszoo": __version__, **installed_versions(_PACKAGES)}
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(job.command),
        "engine": job.engine,
        "seed": recipe.train.seed,
        "processes": engine.ranks,
        "replicas": engine.replicas,
        "devices": _devices(job.engine),
        "scans": {source.split: source.scan.to_dict() for source in (job.images, job.held_out) if source is not None},
        "versions": versions,
    }


def _devices(engine: EngineName) -> list[str]:
    """Return the names of this process's devices."""
    if engine == "torch":
        import torch

        count = torch.cuda.device_count()
        return [torch.cuda.get_device_name(index) for index in range(count)] or [f"CPU {platform.machine()}"]
    import keras

    return list(keras.distribution.list_devices()) or [f"CPU {platform.machine()}"]
