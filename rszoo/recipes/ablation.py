"""The paper's additive study as recipes: from a ResNet-200 to ResNet-RS-200, step by step.

Names of steps in, a `Recipe` out. Source: arXiv 2103.07579, Table 1; its figures are quoted from memory, and
what the table leaves open is marked in `resnet-200-baseline.yaml`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rszoo.errors import UsageError, nearest
from rszoo.recipes.layers import Origin
from rszoo.recipes.load import TracedRecipe, build_recipe, read_recipe
from rszoo.recipes.recipe import Recipe

BASELINE = "resnet-200-baseline"
#: The baseline's top-1 on ImageNet in percent, as the paper reports it.
BASELINE_TOP1 = 79.0

# The step schedule of the TF1 code over 350 epochs: 5, 30, 60 and 80 ninetieths of 350.88 whole epochs, truncated.
_LONG_STEPS = ("schedule.warmup_epochs=19", "schedule.step_epochs=[116, 233, 311]")


@dataclass(frozen=True)
class AblationStep:
    """One step: the values that it changes, and the paper's top-1 in percent with it and all steps before it."""

    name: str
    title: str
    top1: float
    overrides: tuple[str, ...]


#: In the paper's order.
ABLATION_STEPS = (
    AblationStep("cosine", "cosine schedule", 79.3, ("schedule.kind=cosine", "schedule.step_epochs=[]")),
    AblationStep("epochs_350", "350 epochs instead of 90", 78.8, ("train.epochs=350",)),
    # With averages of everything, the statistics are the last batch's: the TF1 code refuses both at once.
    AblationStep("ema", "averaged weights", 79.1, ("optimizer.ema_decay=0.9999", "train.bn_momentum=0")),
    AblationStep("label_smoothing", "label smoothing", 80.4, ("optimizer.label_smoothing=0.1",)),
    AblationStep("stochastic_depth", "stochastic depth", 80.6, ("model.drop_connect_rate=0.1",)),
    AblationStep("randaugment", "RandAugment", 81.0, ("augment.randaugment_layers=2",)),
    AblationStep("dropout", "dropout before the classifier", 80.7, ("model.dropout_rate=0.25",)),
    AblationStep("weight_decay", "weight decay 4e-5 instead of 1e-4", 82.2, ("optimizer.weight_decay=4e-5",)),
    AblationStep("squeeze_excitation", "squeeze-excitation", 82.9, ("model.se_ratio=0.25",)),
    AblationStep("resnet_d", "ResNet-D", 83.4, ("model.stem=deep", "model.shortcut_pool=strided")),
)


def ablate(steps: Sequence[str], overrides: Sequence[str] = ()) -> Recipe:
    """Return the baseline with some of `ABLATION_STEPS`, in any order, then with `overrides`.

    Raises:
        UsageError: there is no such step.
        ConfigError: an override has an unknown key or an impossible value.
    """
    return trace_ablation(steps, overrides).recipe


def trace_ablation(steps: Sequence[str], overrides: Sequence[str] = ()) -> TracedRecipe:
    """Return what `ablate` does, with the origin of each value.

    Without `cosine`, `epochs_350` stretches the step schedule with the epochs, as the published code does.

    Raises:
        UsageError: there is no such step.
        ConfigError: an override has an unknown key or an impossible value.
    """
    known = {step.name: step for step in ABLATION_STEPS}
    for name in steps:
        if name not in known:
            ordered = dict.fromkeys([*nearest(name, known), *known])
            raise UsageError(f"no step {name!r} in the additive study; there are: {', '.join(ordered)}")
    chosen = [step for step in ABLATION_STEPS if step.name in steps]
    layers = read_recipe(BASELINE)
    for step in chosen:
        for override in step.overrides:
            layers.override(override, f"step {step.name}")
    if "epochs_350" in steps and "cosine" not in steps:
        for override in _LONG_STEPS:
            layers.override(override, "step epochs_350")
    if chosen:
        names, titles = [step.name for step in chosen], [step.title for step in chosen]
        study = Origin("the additive study")
        layers.put(("name",), "-".join([BASELINE, *names]), study)
        layers.put(("title",), f"{layers.values['title']}, with {', '.join(titles)}", study)
        layers.put(("follows",), f"the additive study: {', '.join(names)}", study)
    for override in overrides:
        layers.override(override)
    return build_recipe(BASELINE, layers)
