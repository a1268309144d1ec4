"""A recipe's values in layers: the files that a file names as its `base`, the file, and what a command overrides.

A path goes in; out come YAML values, not yet checked, and for each the file and line that it stands in and the comment
after it. Two keys belong to a file and not to the recipe: `base`, the path of another file from this one's folder or
the name of a recipe that comes with rszoo; and `marks`, what letters in brackets mean in comments: `# [c]`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from rszoo.disk.paths import expand_user
from rszoo.disk.regular import read_regular_text
from rszoo.errors import ConfigError, OverrideError, nearest
from rszoo.recipes.recipe import Recipe
from rszoo.schema.limits import shown

RECIPES = Path(__file__).parent
#: The place of a value that a command gave.
OVERRIDE = "override"
_COMMENT = re.compile(r"[: \t]*#[ \t]*(.*)")
# Two ways to give the same value: setting one removes the other from the layer below.
_INSTEAD: dict[tuple[str, ...], str] = {("model", "depth"): "blocks", ("model", "blocks"): "depth"}


@dataclass(frozen=True)
class Origin:
    """Where a value is from. `place`: a file, or `override`, `default`, a step of the additive study.

    `line` counts from 1, None where there is no file; `note` is the comment after the value.
    """

    place: str
    line: int | None = None
    note: str = ""

    def __str__(self) -> str:
        place = self.place if self.line is None else f"{self.place}:{self.line}"
        return f"{place}: {self.note}" if self.note else place


@dataclass
class Layers:
    """YAML values, nested as in a file; the origin of each by its dotted key; and what the files' marks mean."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    marks: dict[str, str] = field(default_factory=dict)

    def override(self, override: str, place: str = OVERRIDE) -> None:
        """Set a value as `train.batch_size=1024` says.

        Raises:
            OverrideError: it is of another form, or its key stands in a section that it does not name.
        """
        key, equals, text = override.partition("=")
        keys = tuple(key.strip().split("."))
        if not equals or not keys[-1]:
            raise OverrideError(f"an override must look like train.batch_size=1024, received {override!r}")
        if len(keys) == 1 and (likely := places_of(keys[0])):
            raise OverrideError(f"{override!r} does not say of which section; did you mean {' or '.join(likely)}?")
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise OverrideError(f"cannot read the value of {override!r}: {why_not_yaml(error)}") from error
        section = self.values
        for name in keys[:-1]:
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise OverrideError(f"{override!r}: {name} is a value, not a section")
        self.put(keys, value, Origin(place))

    def put(self, keys: tuple[str, ...], value: Any, origin: Origin) -> None:
        """Set a value, or a whole section, replacing the present one."""
        section, dotted = self.values, ".".join(keys)
        for name in keys[:-1]:
            section = section[name]
        self._drop_other(keys)
        section[keys[-1]] = value
        self.origins = {key: there for key, there in self.origins.items() if not key.startswith(f"{dotted}.")}
        self.origins |= dict.fromkeys(_dotted(dotted, value), origin)

    def add(self, layer: Layers) -> None:
        """Put another layer on top: its values replace these, but sections are merged key by key."""
        for key, value in layer.values.items():
            there = self.values.get(key)
            if not (isinstance(value, dict) and isinstance(there, dict)):
                self.values[key] = dict(value) if isinstance(value, dict) else value
                continue
            for name in value:
                self._drop_other((key, name))
            there.update(value)
        self.origins |= layer.origins
        self.marks |= layer.marks

    def _drop_other(self, keys: tuple[str, ...]) -> None:
        if other := _INSTEAD.get(keys):
            self.values[keys[0]].pop(other, None)
            self.origins.pop(f"{keys[0]}.{other}", None)


def read_layers(path: Path) -> Layers:
    """Read a recipe's file, and the files below it.

    Raises:
        ConfigError: one of them is not YAML, is not there, or is its own base.
    """
    files: list[tuple[Path, Layers]] = []
    layers, following = Layers(), path
    while True:
        layer, base = _read(following)
        files.append((following, layer))
        if base is None:
            break
        if any(base.samefile(file) for file, _ in files):
            chain = " -> ".join(str(file) for file in [*(file for file, _ in files), base])
            raise ConfigError(f"{path} is its own base, which cannot be: {chain}; delete one of the keys `base`")
        following = base
    for _, layer in reversed(files):
        layers.add(layer)
    return layers


def _read(path: Path) -> tuple[Layers, Path | None]:
    """Read one file, and find its base."""
    try:
        text = read_regular_text(path)
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        values = None if node is None else loader.construct_document(node)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not YAML: it is not UTF-8") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not YAML: {why_not_yaml(error)}") from error
    if not isinstance(node, yaml.MappingNode) or not isinstance(values, dict):
        received = "an empty file" if values is None else shown(values)
        raise ConfigError(f"{path} must hold the recipe's sections, such as `train:`, received {received}")
    base, marks = values.pop("base", None), values.pop("marks", {})
    if not isinstance(marks, dict) or not all(isinstance(item, str) for pair in marks.items() for item in pair):
        raise ConfigError(f"marks in {path} must give the meaning of letters as texts, received {marks!r}")
    place = path.name if path.parent == RECIPES else str(path)
    origins = dict(_origins(node, text, place))
    return Layers(values, origins, marks), None if base is None else _find_base(base, path)


def _find_base(base: object, path: Path) -> Path:
    if not isinstance(base, str):
        raise ConfigError(f"base in {path} must be the path of a .yaml file or the name of a recipe, received {base!r}")
    is_path = base.endswith((".yaml", ".yml"))
    found = path.parent / expand_user(base) if is_path else RECIPES / f"{base}.yaml"
    if not found.is_file():
        likely = nearest(base, [file.stem for file in RECIPES.glob("*.yaml")])
        hint = f"there is no file {found}" if is_path else f"no recipe has that name; nearest: {', '.join(likely)}"
        raise ConfigError(
            f"{path} has the base {base!r}, and {hint}. A base is the path of a .yaml file, from the folder of the "
            "file that names it, or the name of a recipe: see `rszoo recipes`"
        )
    return found


def _origins(node: yaml.MappingNode, text: str, place: str) -> Iterator[tuple[str, Origin]]:
    """Yield the dotted keys of values, in the file itself and in its sections, and where they stand."""
    for key, value, prefix in [
        *((key, value, "") for key, value in node.value),
        *((key, value, f"{name.value}.") for name, section in node.value for key, value in _pairs(section)),
    ]:
        if not isinstance(value, yaml.MappingNode):
            # A value on lines of its own, such as a list, may have its comment after the key.
            end = value.end_mark if value.start_mark.line == key.start_mark.line else key.end_mark
            comment = _COMMENT.match(text, end.index)
            yield f"{prefix}{key.value}", Origin(place, key.start_mark.line + 1, comment[1].strip() if comment else "")


def _pairs(node: yaml.Node) -> list[tuple[yaml.Node, yaml.Node]]:
    return node.value if isinstance(node, yaml.MappingNode) else []


def _dotted(key: str, value: object) -> list[str]:
    return [f"{key}.{name}" for name in value] if isinstance(value, Mapping) else [key]


def why_not_yaml(error: Exception) -> str:
    """Return what a YAML reader found wrong, in one line, with its place."""
    # As it has them: what it was doing, what it met, and where.
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    said = str(problem or getattr(error, "reason", None) or error).splitlines()[0]
    return said if mark is None else f"{said} (line {mark.line + 1}, column {mark.column + 1})"


def places_of(name: str) -> list[str]:
    """Return where a key stands that is in sections of a recipe, but not in the recipe itself."""
    hints = get_type_hints(Recipe)
    sections = [section for section, hint in hints.items() if name in getattr(hint, "__dataclass_fields__", ())]
    return [] if name in hints else [f"{section}.{name}" for section in sections]
