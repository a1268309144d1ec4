"""Recipes against the published configs, their schema, the additive study, and the advice on scaling."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import rszoo
from rszoo.cli.recipes import recipes_app
from rszoo.errors import ConfigError, UnknownModelError, UsageError
from rszoo.recipes.ablation import ABLATION_STEPS, ablate
from rszoo.recipes.layers import RECIPES, Origin
from rszoo.recipes.load import list_recipes, load_recipe, trace_recipe
from rszoo.recipes.recipe import Recipe
from rszoo.recipes.scaling import Budget, advise

# Of resnet_rs/configs/*.yaml: RandAugment's magnitude, dropout, drop-connect.
PUBLISHED = {
    "resnet-rs-50-i160": (10, 0.25, 0),
    "resnet-rs-101-i160": (10, 0.25, 0),
    "resnet-rs-101-i192": (15, 0.25, 0),
    "resnet-rs-152-i192": (15, 0.25, 0),
    "resnet-rs-152-i224": (15, 0.25, 0),
    "resnet-rs-152-i256": (15, 0.25, 0),
    "resnet-rs-200-i256": (15, 0.25, 0.1),
    "resnet-rs-270-i256": (15, 0.25, 0.1),
    "resnet-rs-350-i256": (15, 0.25, 0.1),
    "resnet-rs-350-i320": (15, 0.4, 0.1),
    "resnet-rs-420-i320": (15, 0.4, 0.1),
}
OTHERS = ["fine-tune", "resnet-200-baseline", "resnet-rs-demo"]


def sections(recipe: Recipe) -> dict[str, object]:
    """Return all that decides the result."""
    return {key: value for key, value in recipe.to_dict().items() if isinstance(value, dict)}


def test_there_are_the_eleven_pairs_in_order_and_three_more():
    assert list_recipes() == [*PUBLISHED, *OTHERS]
    assert list(PUBLISHED) == rszoo.list_models(family="tf1")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_pairs_recipe_is_what_was_published(name):
    recipe, entry = load_recipe(name), rszoo.get_entry(name)
    magnitude, dropout, drop_connect = PUBLISHED[name]
    # The registry's architecture has the rates of its own, checked against the same table elsewhere.
    assert recipe.model == entry.arch
    assert (recipe.model.dropout_rate, recipe.model.drop_connect_rate) == (dropout, drop_connect)
    assert recipe.data.preprocessing == entry.preprocessing
    assert (recipe.data.train_images, recipe.evaluation.batch_size) == (1_281_167, 200)
    augment = recipe.augment
    assert (augment.randaugment_layers, augment.randaugment_magnitude) == (2, magnitude)
    assert (augment.randaugment_operations, augment.flip, augment.shift) == ("tf1", True, 0)
    assert (augment.crop_area, augment.crop_aspect_ratio) == ((0.08, 1), (3 / 4, 4 / 3))
    optimizer = recipe.optimizer
    assert (optimizer.momentum, optimizer.nesterov, optimizer.weight_decay) == (0.9, True, 4e-5)
    assert (optimizer.label_smoothing, optimizer.ema_decay, optimizer.learning_rate_per_256) == (0.1, 0.9999, 0.1)
    train = recipe.train
    assert (train.batch_size, train.epochs, train.precision, train.bn_momentum) == (4096, 350, "bfloat16", 0)
    assert (recipe.learning_rate, recipe.total_steps, recipe.schedule.kind) == (1.6, 109_475, "cosine")
    assert (recipe.name, recipe.status, recipe.follows.partition(":")[0]) == (name, "transcribed", "cosine")
    assert entry.config_url.rpartition("/")[2] in " ".join(recipe.sources)


def flat(values: dict[str, Any]) -> dict[str, object]:
    """Return values by their dotted keys."""
    flattened: dict[str, object] = {}
    for key, value in values.items():
        flattened |= {f"{key}.{name}": value[name] for name in value} if isinstance(value, dict) else {key: value}
    return flattened


@pytest.mark.parametrize("name", [*PUBLISHED, *OTHERS])
def test_every_value_is_the_one_that_was_checked_against_its_source(name):
    # All values of one recipe, and what differs from it in the others: written down when each file was complete.
    known = json.loads((Path(__file__).parent / "data" / "recipes.json").read_text())
    assert list(known) == list_recipes()
    assert flat(load_recipe(name).to_dict()) == known["resnet-rs-50-i160"] | known[name]


@pytest.mark.parametrize("name", [*PUBLISHED, *OTHERS])
def test_no_value_is_left_to_the_code_or_written_twice(name):
    traced = trace_recipe(name)
    assert {origin.place for origin in traced.origins.values()} <= {"base.yaml", f"{name}.yaml"}
    marks = {mark for origin in traced.origins.values() for mark in re.findall(r"\[(\w+)\]", origin.note)}
    assert set(traced.marks) == marks
    base, own = (flat(yaml.safe_load((RECIPES / f"{file}.yaml").read_text())) for file in ("base", name))
    # Said again is only what has another reason here.
    again = [key for key, value in own.items() if key in base and value == base[key]]
    assert [key for key in again if not traced.origins[key].note] == []
    assert not (name in PUBLISHED and again)


@pytest.mark.parametrize("name", [*PUBLISHED, *OTHERS])
def test_a_recipe_survives_being_written(name, tmp_path):
    recipe = load_recipe(name)
    for text in (recipe.to_yaml(), trace_recipe(name).to_yaml()):
        (tmp_path / "mine.yaml").write_text(text)
        assert load_recipe(str(tmp_path / "mine.yaml")) == recipe
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def write(folder: Path, **files: str) -> str:
    """Write recipe files; return the path of the last."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return str(folder / f"{name}.yaml")


def test_files_are_based_on_files_and_recipes(tmp_path):
    (tmp_path / "mine").mkdir()
    write(tmp_path, ours="base: resnet-rs-50-i160\ntrain: {batch_size: 1024, seed: 3}  # our eight GPUs\n")
    path = write(
        tmp_path / "mine",
        small="base: ../ours.yaml\nname: small\n"
        "model: {blocks: [1, 1, 1, 1]}\n"
        "train:\n  seed: 4  # [x] the fourth\n"
        "augment:\n  crop_area:  # most of it\n    - 0.5\n    - 1\n"
        "marks: {x: a die}\n",
    )
    traced = trace_recipe(path, ["train.epochs=10", "data={image_size: 96, train_images: 10}"])
    changes = ["name=small", "train.batch_size=1024", "train.seed=4", "train.epochs=10", "augment.crop_area=[0.5, 1]"]
    changes += ["model.blocks=[1, 1, 1, 1]", "data.image_size=96", "data.train_images=10"]
    assert traced.recipe == load_recipe("resnet-rs-50-i160", changes)
    origins = traced.origins
    assert list(origins) == list(flat(traced.recipe.to_dict()))
    assert str(origins["train.seed"]) == f"{path}:5: [x] the fourth"
    assert str(origins["augment.crop_area"]) == f"{path}:7: most of it"
    assert str(origins["train.batch_size"]) == f"{tmp_path / 'mine' / '..' / 'ours.yaml'}:2"
    assert origins["model.blocks"] == Origin(path, 3)
    assert origins["data.image_size"] == origins["train.epochs"] == Origin("override")
    assert origins["data.crop"] == Origin("default")
    line = "  nesterov: true  # [m]; [g] leaves it off"
    number = (RECIPES / "base.yaml").read_text().splitlines().index(line) + 1
    assert origins["optimizer.nesterov"] == Origin("base.yaml", number, "[m]; [g] leaves it off")
    assert traced.marks["x"] == "a die"
    assert "p" not in traced.marks
    # Line breaks in a text are escaped: a value stays one line, with its origin after it.
    odd = trace_recipe(path, ["title='a # b: \\\n\n  \u2028 c'", "data.source='*x'"])
    copy = write(tmp_path, copy=odd.to_yaml())
    assert load_recipe(copy) == odd.recipe
    assert len(odd.to_yaml().splitlines()) == len(traced.to_yaml().splitlines())


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("base: mine.yaml", r"mine.yaml is its own base, which cannot be: .*mine.yaml -> .*mine.yaml; delete"),
        ("base: a.yaml", r"mine.yaml is its own base, .*mine.yaml -> .*a.yaml -> .*b.yaml -> .*a.yaml"),
        ("base: c.yaml", r"has the base 'c.yaml', and there is no file .*c.yaml\. A base is the path of a .yaml file"),
        ("base: resnet-rs-50-i161", "no recipe has that name; nearest: resnet-rs-50-i160"),
        ("base: [a.yaml]", r"base in .*mine.yaml must be the path .* received \['a.yaml'\]"),
        ("base: broken.yaml", "broken.yaml is not YAML"),
        ("base: base", "name is missing"),
        ("base: fine-tune\nmodel: {depth: 50, blocks: [3, 4, 6, 3]}", "depth must be one of .*, without blocks"),
        ("base: a2.yaml", r"recipe .*mine.yaml: train.seed must be a whole number, received 'x' \(.*a2.yaml:2\)"),
        ("base: fine-tune\ntrain: 3", "train must be a section with keys, received 3"),
        ("base: fine-tune\nmarks: [c]", r"marks in .*mine.yaml must give .* received \['c'\]"),
        ("base: fine-tune\ntrain: &t {seed: *t}", "train.seed must be a whole number"),
    ],
)
def test_wrong_bases_say_which_file_and_what_is_allowed(text, error, tmp_path):
    path = write(
        tmp_path, a="base: b.yaml", a2="base: fine-tune\ntrain: {seed: x}", b="base: a.yaml", broken="a: [", mine=text
    )
    with pytest.raises(ConfigError, match=error):
        load_recipe(path)


def test_the_demo_is_the_registered_demo_model():
    recipe, entry = load_recipe("resnet-rs-demo"), rszoo.get_entry("resnet-rs-demo")
    assert (recipe.model, recipe.data.preprocessing) == (entry.arch, entry.preprocessing)
    assert (recipe.data.source, recipe.train.precision) == ("digits", "float32")
    assert (recipe.augment.flip, recipe.augment.randaugment_layers, recipe.augment.shift) == (False, 0, 1)


def test_any_value_can_be_overridden():
    changes = [
        "model.depth=101",
        "augment.crop_area=[0.2, 1]",
        "optimizer.ema_decay=null",
        "optimizer.weight_decay=1e-4",
    ]
    recipe = load_recipe("resnet-rs-50-i160", [*changes, "train.epochs=10", "data.source=gs://bucket/imagenet"])
    assert recipe.model.depth == 101
    assert (recipe.augment.crop_area, recipe.optimizer.ema_decay) == ((0.2, 1.0), None)
    assert (recipe.optimizer.weight_decay, recipe.data.source) == (1e-4, "gs://bucket/imagenet")
    assert recipe.total_steps == round(10 * 1_281_167 / 4096)


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("train.batchsize=8", "unknown key 'train.batchsize'; did you mean batch_size"),
        ("trian.batch_size=8", "unknown key 'trian'; did you mean train"),
        ("model.se_ration=0.5", "unknown key 'model.se_ration'; did you mean se_ratio"),
        ("batch_size=8", "does not say of which section; did you mean train.batch_size or evaluation.batch_size"),
        ("train.batch_size=many", "train.batch_size must be a whole number, received 'many'"),
        ("train.batch_size=0", "train.batch_size must be from 1"),
        ("train.seed=true", "train.seed must be a whole number"),
        ("train.precision=float16", "train.precision must be float32 or bfloat16, received 'float16'"),
        ("optimizer.nesterov=1", "optimizer.nesterov must be true or false"),
        ("optimizer.weight_decay=.nan", "optimizer.weight_decay must be a number"),
        ("augment.crop_area=[1, 0.5]", "augment.crop_area must be two rising fractions"),
        ("augment.crop_area=[0.1, 0.5, 1]", "augment.crop_area must be a list of 2 numbers"),
        ("schedule.kind=steps", "schedule.step_epochs belongs to schedule.kind steps"),
        ("schedule.warmup_epochs=350", "schedule.warmup_epochs must be below train.epochs (350)"),
        ("status=reproduced", "status must be transcribed or run or ours"),
        ("train.epochs", "an override must look like train.batch_size=1024"),
        ("train.epochs=[1", "cannot read the value"),
        ("name.first=x", "name is a value, not a section"),
        ("train=3", "train must be a section with keys"),
    ],
)
def test_impossible_values_say_what_is_allowed(override, text):
    with pytest.raises(ConfigError) as caught:
        load_recipe("resnet-rs-50-i160", [override])
    assert text in str(caught.value)


def test_missing_and_broken_files_say_what_to_do(tmp_path):
    with pytest.raises(UnknownModelError, match=r"nearest: resnet-rs-50-i160.*rszoo recipes"):
        load_recipe("resnet-rs-50-i161")
    with pytest.raises(UnknownModelError, match="no recipe 'base'"):
        load_recipe("base")
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: [")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_recipe(str(broken))
    values = load_recipe("resnet-rs-demo").to_dict()
    del values["train"]["epochs"]
    broken.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=r"train\.epochs is missing"):
        load_recipe(str(broken))


def test_the_whole_ladder_ends_at_the_published_recipe():
    top = ablate([step.name for step in ABLATION_STEPS])
    assert sections(top) == sections(load_recipe("resnet-rs-200-i256"))
    assert ABLATION_STEPS[-1].top1 == rszoo.get_entry("resnet-rs-200-i256").published.top1
    documented = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text()
    assert all(f"| {step.name} | {step.top1:.1f} |" in documented for step in ABLATION_STEPS)
    assert [step.top1 for step in ABLATION_STEPS] == [79.3, 78.8, 79.1, 80.4, 80.6, 81.0, 80.7, 82.2, 82.9, 83.4]


@pytest.mark.parametrize("step", ABLATION_STEPS, ids=lambda step: step.name)
def test_each_step_changes_only_what_it_says(step):
    base, changed = sections(ablate([])), sections(ablate([step.name]))
    differing = {
        f"{section}.{key}" for section, values in changed.items() for key in values if values[key] != base[section][key]
    }
    named = {override.partition("=")[0] for override in step.overrides}
    # Over 350 epochs the steps move with the epochs.
    moved = {"schedule.warmup_epochs", "schedule.step_epochs"} if step.name == "epochs_350" else set()
    assert differing == named | moved


def test_the_ladder_starts_before_all_of_it_and_takes_names_in_any_order():
    recipe = ablate([])
    model = recipe.model
    assert (model.depth, model.se_ratio, model.stem, model.shortcut_pool) == (200, 0, "classic", "never")
    assert (recipe.optimizer.ema_decay, recipe.train.bn_momentum, recipe.train.epochs) == (None, 0.9, 90)
    assert ablate(["ema", "cosine"]) == ablate(["cosine", "ema"]) != ablate(["cosine"])
    assert ablate(["cosine"], ["train.batch_size=1024"]).learning_rate == pytest.approx(0.4)
    assert ablate(["epochs_350"]).schedule.step_epochs == (116, 233, 311)
    with pytest.raises(UsageError, match="no step 'cosin' in the additive study; there are: cosine, "):
        ablate(["cosin"])


def test_long_schedules_get_depth_and_the_best_published_pair_that_fits():
    choices = advise(Budget(350, latency_ms=1000))
    assert choices[0].published == "resnet-rs-152-i192"
    assert all(choice.width_multiplier == 1 and choice.latency_ms <= 1000 for choice in choices)
    assert [choice.top1 for choice in choices] == sorted((choice.top1 for choice in choices), reverse=True)
    assert advise(Budget(350), 1)[0].published == "resnet-rs-420-i320"
    interpolated = next(choice for choice in choices if choice.published is None)
    # Between its neighbours in cost, and it says what it is.
    assert 80.3 < interpolated.top1 < 82.0
    assert "interpolated" in interpolated.reasons[0]
    assert advise(Budget(350, latency_ms=1)) == []


def test_short_schedules_get_width_and_small_images():
    best = advise(Budget(30, latency_ms=400, hardware="tpuv3"), 1)[0]
    assert (best.depth, best.width_multiplier, best.image_size, best.top1) == (50, 2.0, 192, None)
    assert any("width before depth" in reason for reason in best.reasons)
    # Of one cost: the wider first, then the smaller images.
    widths = [choice.width_multiplier for choice in advise(Budget(100, latency_ms=1000))]
    assert widths == [1.5, 1.5, 1.25, 1.25, 1.0]
    assert (Budget(100).strategy, Budget(187).strategy, Budget(188).strategy) == ("width", "width", "depth")
    assert any("a judgement" in reason for reason in advise(Budget(200), 1)[0].reasons)


def test_memory_limits_the_choice():
    small, large = (advise(Budget(350, memory_gib=memory), 1)[0] for memory in (8, 80))
    assert small.macs < large.macs
    assert small.images_per_device >= 32
    with pytest.raises(UsageError, match="memory_gib must be above 0"):
        Budget(350, memory_gib=0)


def test_the_commands(tmp_path):
    runner = CliRunner()
    listed = runner.invoke(recipes_app, [])
    assert listed.exit_code == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == list_recipes()
    shown = runner.invoke(recipes_app, ["show", "resnet-rs-50-i160", "train.batch_size=1024"])
    assert shown.stdout.startswith("# 437,899 steps, the first 6,255 of them warm-up; peak learning rate 0.4\n")
    copy = tmp_path / "shown.yaml"
    copy.write_text(shown.stdout)
    assert load_recipe(str(copy)) == load_recipe("resnet-rs-50-i160", ["train.batch_size=1024"])
    assert "\n  batch_size: 1024  # override\n" in shown.stdout
    assert re.search(r"\n  momentum: 0\.9  # base\.yaml:\d+: \[c\]\n", shown.stdout)
    assert "\nmarks:\n  c: tensorflow/tpu, " in shown.stdout
    steps = ["show", "resnet-200-baseline", "train.seed=7", "--ablate", "cosine, ema", "--json"]
    values = json.loads(runner.invoke(recipes_app, steps).stdout)
    assert values["recipe"] == ablate(["cosine", "ema"], ["train.seed=7"]).to_dict()
    assert values["origins"]["schedule.kind"] == {"place": "step cosine", "line": None, "note": ""}
    assert values["origins"]["train.seed"]["place"] == "override"
    assert values["marks"]["p"] == "the paper's table, quoted from memory"
    assert len(json.loads(runner.invoke(recipes_app, ["ladder", "--json"]).stdout)["steps"]) == 10
    advice = json.loads(runner.invoke(recipes_app, ["advise", "--epochs", "350", "--json"]).stdout)
    assert advice[0]["published"] == "resnet-rs-420-i320"
    assert isinstance(
        runner.invoke(recipes_app, ["advise", "--epochs", "9", "--latency-ms", "1"]).exception, UsageError
    )


def test_recipes_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_recipe("resnet-rs-demo").train.epochs = 3
