"""The learning rate and the averages' decay at a step, from a recipe alone.

Facts: the step schedule is that of tensorflow/tpu `models/official/resnet/resnet_main.py`, the cosine that of
tensorflow/models `official/modeling/optimization/lr_schedule.py` with the settings of `imagenet_resnetrs*.yaml`. The
paper (arXiv 2103.07579) names a cosine and gives no formula, so the Model Garden's, by the same authors, is used.
"""

from __future__ import annotations

import math

from rszoo.recipes.recipe import Recipe


def learning_rate(recipe: Recipe, step: int) -> float:
    """Return the learning rate of a step; the first is step 0, and its rate is 0 if there is a warm-up.

    With the peak P = `recipe.learning_rate`, T = `recipe.total_steps` and W = `warmup_steps(recipe)`:

    - `cosine`: c(step) = P / 2 * (1 + cos(pi * step / T)); before W, step / W * c(W). The cosine is counted from step
      0, not from the end of the warm-up, so P itself is never reached: 1.5992 at step 1,560 of 109,475 for P = 1.6.
    - `steps`: P times `step_factor` for each of `step_epochs` that step / `recipe.steps_per_epoch` has reached; before
      W, step / W * P.
    - `constant`: P; before W, step / W * P.

    After the last step the rate is that of the schedule's end.
    """
    warmup = warmup_steps(recipe)
    if step < warmup:
        end = _cosine(recipe, warmup) if recipe.schedule.kind == "cosine" else recipe.learning_rate
        return end * step / warmup
    if recipe.schedule.kind == "cosine":
        return _cosine(recipe, step)
    passed = sum(step >= epoch * recipe.steps_per_epoch for epoch in recipe.schedule.step_epochs)
    return recipe.learning_rate * recipe.schedule.step_factor**passed


def warmup_steps(recipe: Recipe) -> float:
    """Return the steps of the warm-up, which the two published programs count in different epochs.

    The Model Garden's epoch is of whole batches, 312 at batch 4096: 1,560 steps for 5 epochs. The TF1 code's is of
    images, 312.78 batches, and its warm-up need not end on a step. `steps` follows the latter, the others the former.
    """
    epochs, per_epoch = recipe.schedule.warmup_epochs, recipe.steps_per_epoch
    if recipe.schedule.kind == "steps":
        return epochs * per_epoch
    return min(recipe.total_steps, round(epochs * (math.floor(per_epoch) or per_epoch)))


def ema_decay(decay: float, step: int) -> float:
    """Return the decay of the averages in the update that follows a step, `step` being counted after it, from 1.

    min(decay, (1 + step) / (10 + step)), TensorFlow's rule for `ExponentialMovingAverage` with `num_updates`: young
    averages forget their beginning.
    """
    return min(decay, (1 + step) / (10 + step))


def _cosine(recipe: Recipe, step: float) -> float:
    return recipe.learning_rate * (1 + math.cos(math.pi * min(1, step / recipe.total_steps))) / 2
