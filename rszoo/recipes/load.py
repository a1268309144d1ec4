"""Recipes by name or path, resolved: values of the `base` are filled in, and overrides are applied.

`load_recipe` is for training; `trace_recipe` also says where each value is from.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from rszoo.disk.paths import expand_user
from rszoo.errors import ConfigError, OverrideError, SourceNotFoundError, UnknownModelError, nearest
from rszoo.recipes.layers import OVERRIDE, RECIPES, Layers, Origin, read_layers
from rszoo.recipes.recipe import Recipe
from rszoo.recipes.schedule import warmup_steps
from rszoo.registry.manifest import get_entry, list_models
from rszoo.terminal import printable

#: What the others are based on; it is no recipe by itself.
BASE = "base"


@dataclass(frozen=True)
class TracedRecipe:
    """A recipe, and the origin of each of its values by its dotted key, such as `train.batch_size`.

    `marks`: what the letters in brackets mean that the origins' notes have.
    """

    recipe: Recipe
    origins: Mapping[str, Origin]
    marks: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe, the origins and the marks as JSON values."""
        origins = {key: dataclasses.asdict(origin) for key, origin in self.origins.items()}
        return {"recipe": self.recipe.to_dict(), "origins": origins, "marks": dict(self.marks)}

    def to_yaml(self) -> str:
        """Return the text of a file that `load_recipe` reads as this recipe, with the origins as comments."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        recipe = self.recipe
        yield (
            f"# {recipe.total_steps:,} steps, the first {warmup_steps(recipe):,g} of them warm-up; peak learning rate "
            f"{recipe.learning_rate:g}"
        )
        yield "# After each value: its file and line, or what changed it, and the comment that the file has there."
        if self.marks:
            yield from ["marks:", *(f"  {_dump(letter)}: {_dump(text)}" for letter, text in self.marks.items())]
        for key, value in recipe.to_dict().items():
            if isinstance(value, dict):
                yield f"{key}:"
                for name in value:
                    yield from self._entry("  ", name, value[name], f"{key}.{name}")
            else:
                yield from self._entry("", key, value, key)

    def _entry(self, indent: str, name: str, value: Any, dotted: str) -> Iterator[str]:
        comment = f"# {printable(str(self.origins[dotted]))}"
        if name == "sources":
            yield from [f"{indent}{name}:  {comment}", *(f"{indent}  - {_dump(url)}" for url in value)]
            return
        yield f"{indent}{name}: {_dump(value)}  {comment}"


def list_recipes() -> list[str]:
    """Return the names of the recipes that come with the package: pairs by depth and resolution, then the others."""
    return sorted((path.stem for path in RECIPES.glob("*.yaml") if path.stem != BASE), key=_order)


def list_pairs(pattern: str = "*") -> list[str]:
    """Return the registered pairs that match a shell pattern and have a recipe.

    Raises:
        UnknownModelError: none does.
    """
    known = list_recipes()
    pairs = [name for name in list_models(pattern) if name in known]
    if not pairs:
        raise UnknownModelError(f"no pair that matches {pattern!r} has a recipe; see `rszoo recipes`")
    return pairs


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return a recipe by its name, or by the path of a YAML file, with values overridden: `train.batch_size=1024`.

    A pair's other names, such as `resnet-rs-50`, are names of its recipe too.

    Raises:
        UnknownModelError: there is no such recipe. SourceNotFoundError: there is no such file.
        ConfigError: the recipe, a base or an override (OverrideError) has an unknown key or an impossible value.
    """
    return trace_recipe(name, overrides).recipe


def trace_recipe(name: str, overrides: Sequence[str] = ()) -> TracedRecipe:
    """Return a recipe as `load_recipe` does, with the origin of each value.

    Raises:
        UnknownModelError: there is no such recipe.
        ConfigError: the recipe, a base or an override has an unknown key or an impossible value.
    """
    layers = read_recipe(name)
    for override in overrides:
        layers.override(override)
    try:
        return build_recipe(name, layers)
    except ConfigError as error:
        if not overrides or isinstance(error, OverrideError):
            raise
        # Without them it is sound, or says itself what is wrong.
        build_recipe(name, read_recipe(name))
        raise OverrideError(str(error)) from error


def read_recipe(name: str) -> Layers:
    """Return a recipe's values as its files have them, not checked yet.

    Raises:
        UnknownModelError: there is no such recipe. SourceNotFoundError: there is no such file.
        ConfigError: a file is not YAML, or its base is not there.
    """
    if name.endswith((".yaml", ".yml")):
        path = expand_user(name)
        if not path.is_file():
            raise SourceNotFoundError(
                f"no recipe at {name}; give the path of a .yaml file, or a name of `rszoo recipes`"
            )
        return read_layers(path)
    path = RECIPES / f"{_full_name(name)}.yaml"
    if name == BASE or not path.is_file():
        likely = nearest(name, list_recipes()) or list_recipes()[:3]
        known = " (a model without one; --init starts from its weights)" if path.stem in list_models() else ""
        raise UnknownModelError(
            f"no recipe {name!r}{known}; nearest: {', '.join(likely)}. Run `rszoo recipes`; give your own by the path "
            "of its .yaml file"
        )
    return read_layers(path)


def _full_name(name: str) -> str:
    """Return the name of the pair that the registry has for another name of it, such as `resnet-rs-50`."""
    try:
        return get_entry(name).name
    except UnknownModelError:
        return name


def build_recipe(name: str, layers: Layers) -> TracedRecipe:
    """Check values and build the recipe; `name` is for error texts.

    Raises:
        ConfigError: a key is unknown or missing, or a value impossible.
    """
    try:
        recipe = Recipe.from_dict(layers.values)
    except ConfigError as error:
        # The key at the start of the text may come from a base of this file.
        key = re.match(r"(?:unknown key ')?([\w.]+)", str(error))
        origin = layers.origins.get(key[1]) if key else None
        where = "" if origin is None or origin.line is None else f" ({origin.place}:{origin.line})"
        kind = OverrideError if origin is not None and origin.place == OVERRIDE else ConfigError
        raise kind(f"recipe {name}: {error}{where}") from error
    origins = dict(layers.origins)
    if depth := origins.get("model.depth"):
        note = ", ".join(filter(None, [f"depth {recipe.model.depth}", depth.note]))
        origins["model.blocks"] = dataclasses.replace(depth, note=note)
    everything = {key: origins.get(key, Origin("default")) for key in _keys(recipe.to_dict())}
    used = {mark for origin in everything.values() for mark in re.findall(r"\[(\w+)\]", origin.note)}
    return TracedRecipe(recipe, everything, {mark: text for mark, text in layers.marks.items() if mark in used})


def _keys(values: Mapping[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        yield from (f"{key}.{name}" for name in value) if isinstance(value, Mapping) else (key,)


def _dump(value: Any) -> str:
    """Return a value as YAML in one line."""
    text = yaml.safe_dump(value, default_flow_style=None, allow_unicode=True, width=10**6).removesuffix("...\n")
    if len(text.splitlines()) > 1:
        # Only in double quotes can a text have its line breaks escaped.
        text = yaml.safe_dump(value, default_style='"', width=10**6)
    return text.rstrip("\n")


def _order(name: str) -> tuple[int, int, str]:
    pair = re.fullmatch(r"resnet-rs-(\d+)-i(\d+)", name)
    # After all pairs: no network has as many layers.
    return (int(pair[1]), int(pair[2]), name) if pair else (10**6, 0, name)
