"""`rszoo.plan_training` and `rszoo.train_model`: names of recipe, data and weights in, a trained model folder out.

A plan needs no framework, so its errors come before one is imported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rszoo.cache.find import ModelLike
from rszoo.errors import SplitNotFoundError, UsageError
from rszoo.folder.model_folder import ModelFolder, read_folder
from rszoo.models.factory import Framework
from rszoo.pipeline.faults import DEFAULT_LIMIT
from rszoo.pipeline.scan import Scan
from rszoo.pipeline.sources import Source, open_source
from rszoo.recipes.ablation import BASELINE
from rszoo.recipes.ablation import ablate as add_steps
from rszoo.recipes.load import load_recipe
from rszoo.recipes.recipe import Recipe
from rszoo.train.fine_tuning import RECIPE, fine_tuning_recipe, lost_start
from rszoo.train.metrics import last_evaluation
from rszoo.train.run import Job, Resume, train
from rszoo.train.run_folder import RunFolder
from rszoo.train.start import Start, find_start


@dataclass(frozen=True)
class TrainingPlan:
    """What is to be trained: recipe, name of the data, weights to start from. `name`, `overrides`: of the recipe."""

    recipe: Recipe
    data: str
    start: Start | None
    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class TrainingOptions:
    """How it is trained. `cache`: local folder for copies of TFRecords; other fields as in `Job`."""

    framework: Framework = "torch"
    resume: Resume = "auto"
    max_steps: int | None = None
    max_faults: int = DEFAULT_LIMIT
    cache: Path | None = None
    command: Sequence[str] = ()
    quiet: bool = False


@dataclass(frozen=True)
class Trained:
    """The result of a training: the finished model, its step, and the last evaluation.

    `scans`: what of the data was taken and what was left, by split.
    """

    model: ModelFolder
    step: int
    evaluation: Mapping[str, Any] | None
    scans: Mapping[str, Scan] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        scans = {split: scan.to_dict() for split, scan in self.scans.items()}
        return {"model": str(self.model.path), "step": self.step, "evaluation": self.evaluation, "scans": scans}


_DEFAULT_OPTIONS = TrainingOptions()


def plan_training(
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    *,
    data: str | None = None,
    init: ModelLike | None = None,
    ablate: Sequence[str] | None = None,
) -> TrainingPlan:
    """Resolve recipe, data and initial weights, and check all that needs no framework.

    Args:
        recipe: name of a recipe, or path of a .yaml file; for `init` the one of fine-tuning if left out.
        overrides: values of the recipe to change, such as "train.batch_size=1024".
        data: folder of TFRecords or images, `gs://...`, "digits"; the recipe's if left out.
        init: weights to start from, as `rszoo.create` takes them.
        ablate: steps of the additive study, which starts from a recipe of its own.

    Raises:
        UsageError: recipe or data are missing, or arguments exclude each other.
        UnknownModelError, ConfigError: there is no such recipe, or it is impossible.
        RszooError: there are no such weights, as `rszoo.create` says.
    """
    if ablate is not None and (init is not None or recipe not in (None, BASELINE)):
        raise UsageError(f"--ablate starts from the recipe {BASELINE}; leave out --recipe and --init")
    name = recipe or (BASELINE if ablate is not None else RECIPE if init is not None else None)
    if name is None:
        raise UsageError("--recipe is missing: `rszoo recipes` lists them; with --init NAME it may be left out")
    # Only to find the data: a fine-tuning recipe also needs their classes and number of images.
    chosen = load_recipe(name, overrides) if ablate is None else add_steps(ablate, overrides)
    source = data or chosen.data.source
    if source is None:
        raise UsageError(f"--data is missing: the recipe {name} names none; give a folder of TFRecords or images")
    if chosen.data.source != source:
        # Else the run's recipe would name data that the run has not seen.
        chosen = replace(chosen, data=replace(chosen.data, source=None))
    return TrainingPlan(chosen, source, None if init is None else find_start(init), name, tuple(overrides))


def train_model(
    plan: TrainingPlan, output: str | os.PathLike[str], options: TrainingOptions = _DEFAULT_OPTIONS
) -> Trained:
    """Train a model, or resume where a previous call was stopped or killed.

    Args:
        plan: of `plan_training`.
        output: the run's folder; `output/model` is the finished model folder.
        options: framework, limits, and whether an existing run is resumed.

    Raises as `rszoo.train.run.train`.
    """
    images, held_out = _open(plan.data, options.cache)
    recipe = plan.recipe
    if plan.start is not None:
        recipe = fine_tuning_recipe(plan.name, plan.overrides, start=plan.start, images=images)
    job = Job(
        images=images,
        held_out=held_out,
        output=Path(output),
        engine=options.framework,
        init=plan.start,
        resume=options.resume,
        max_steps=options.max_steps,
        max_faults=options.max_faults,
        command=options.command,
        note=lost_start(plan.name) if plan.start is None else None,
        quiet=options.quiet,
    )
    model = read_folder(train(recipe, job))
    folder = RunFolder(job.output)
    step = folder.finished_step
    scans: dict[str, Scan] = {source.split: source.scan for source in (images, held_out) if source is not None}
    return Trained(model, step, last_evaluation(folder.metrics, step), scans)


def _open(data: str, cache: Path | None) -> tuple[Source, Source | None]:
    images = open_source(data, "train", cache=cache)
    try:
        return images, open_source(data, "validation", cache=cache)
    except SplitNotFoundError:
        return images, None
