"""Learning rates and decays against the published formulas, at steps where they could go wrong."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rszoo.recipes.load import load_recipe
from rszoo.recipes.schedule import ema_decay, learning_rate, warmup_steps

# How the step schedule of the published TF1 code is asked for; docs/recipes.md gives the same line.
TF1_STEPS = ("schedule.kind=steps", "schedule.warmup_epochs=19", "schedule.step_epochs=[116,233,311]")


def test_the_papers_schedule_at_batch_4096():
    recipe = load_recipe("resnet-rs-152-i256")
    assert (recipe.total_steps, warmup_steps(recipe), recipe.learning_rate) == (109_475, 1_560, 1.6)
    # The cosine counts from step 0: 1.6 * (1 + cos(pi * 1560 / 109475)) / 2, not 1.6, ends the warm-up.
    assert learning_rate(recipe, 1_560) == pytest.approx(1.59919849452, abs=1e-11)
    assert learning_rate(recipe, 0) == 0
    assert learning_rate(recipe, 1) == pytest.approx(1.59919849452 / 1560, rel=1e-11)
    assert learning_rate(recipe, 780) == pytest.approx(1.59919849452 / 2, rel=1e-11)
    for step in (1_561, 30_000, 54_737, 90_000, 109_474):
        assert learning_rate(recipe, step) == pytest.approx(0.8 * (1 + math.cos(math.pi * step / 109_475)), rel=1e-9)
    assert learning_rate(recipe, 109_475) == learning_rate(recipe, 200_000) == 0


def test_it_is_the_model_gardens_with_the_model_gardens_number_of_steps():
    # imagenet_resnetrs200_i256.yaml: 109,200 steps, 312 an epoch; its classes compute from the same three numbers.
    recipe = load_recipe("resnet-rs-200-i256", ["data.train_images=1277952"])
    assert (recipe.total_steps, warmup_steps(recipe)) == (109_200, 1_560)
    assert learning_rate(recipe, 54_600) == pytest.approx(0.8)


def published_tf1_rate(step: int, *, batch: int, train_steps: int) -> float:
    """The step schedule as `resnet_main.py` computes it."""
    peak, images = 0.1 * batch / 256, 1_281_167
    epochs = train_steps / (images // batch)
    starts = [math.floor(ninetieths / 90 * epochs) for ninetieths in (5, 30, 60, 80)]
    epoch = step / (images / batch)
    rate = peak * epoch / starts[0]
    for start, factor in zip(starts, (1, 0.1, 0.01, 0.001), strict=True):
        rate = rate if epoch < start else peak * factor
    return rate


def test_the_published_codes_steps_can_be_had_by_overrides():
    assert " ".join(TF1_STEPS) in (Path(__file__).parent.parent / "docs" / "recipes.md").read_text()
    recipe = load_recipe("resnet-rs-350-i320", TF1_STEPS)
    turns = [math.ceil(epoch * 1_281_167 / 4096) for epoch in (19, 116, 233, 311)]
    for step in (0, 1, 3_000, *(turn + side for turn in turns for side in (-1, 0, 1)), 109_474):
        expected = published_tf1_rate(step, batch=4096, train_steps=109_475)
        assert learning_rate(recipe, step) == pytest.approx(expected, rel=1e-12), step


def test_the_baselines_steps_are_those_of_the_code_before():
    # At batch 1024 its 112,590 steps are 90 whole epochs: a tenth at 30, 60 and 80 of them.
    recipe = load_recipe("resnet-200-baseline", ["train.batch_size=1024"])
    for step in (0, 6_255, 6_256, 6_257, 37_534, 37_535, 75_068, 75_069, 100_090, 100_092, 112_589):
        expected = published_tf1_rate(step, batch=1024, train_steps=112_590)
        assert learning_rate(recipe, step) == pytest.approx(expected, rel=1e-12), step


@pytest.mark.parametrize(
    ("batch", "peak", "steps", "warmup"), [(256, 0.1, 1_751_596, 25_020), (1024, 0.4, 437_899, 6_255)]
)
def test_the_rate_scales_with_the_batch_and_the_epochs_stay(batch, peak, steps, warmup):
    recipe = load_recipe("resnet-rs-50-i160", [f"train.batch_size={batch}"])
    assert (recipe.learning_rate, recipe.total_steps, warmup_steps(recipe)) == (pytest.approx(peak), steps, warmup)
    fixed = load_recipe("resnet-rs-50-i160", [f"train.batch_size={batch}", "optimizer.learning_rate=0.3"])
    assert fixed.learning_rate == 0.3


def test_a_constant_rate_no_warm_up_and_epochs_shorter_than_a_batch():
    constant = load_recipe("fine-tune", ["schedule.kind=constant", "schedule.warmup_epochs=0"])
    assert {learning_rate(constant, step) for step in (0, 1, 400, 9_999)} == {0.01}
    tiny = load_recipe("fine-tune", ["data.train_images=32", "train.epochs=20", "schedule.warmup_epochs=4"])
    assert (tiny.total_steps, warmup_steps(tiny)) == (10, 2)
    assert learning_rate(tiny, 1) == pytest.approx(learning_rate(tiny, 2) / 2)


def test_young_averages_forget_their_beginning():
    assert ema_decay(0.9999, 1) == 2 / 11
    assert ema_decay(0.9999, 90) == 0.91
    # (1 + t) / (10 + t) reaches 0.9999 at t = 89,990.
    assert ema_decay(0.9999, 89_989) < 0.9999 == ema_decay(0.9999, 89_991)
    assert ema_decay(0.5, 1_000) == 0.5
