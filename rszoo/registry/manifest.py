"""Every published model/resolution pair: `weights_manifest.json` loaded, validated, listed and looked up.

Names, patterns, aliases and timm's names are resolved to frozen `PretrainedEntry`s. The environment variable
`RSZOO_MANIFEST` names another manifest, for weights of the user's own.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rszoo.arch.config import ArchConfig
from rszoo.assets import asset
from rszoo.disk.paths import expand_user
from rszoo.disk.regular import read_regular
from rszoo.errors import ConfigError, SourceNotFoundError, UnknownModelError, nearest, summarize
from rszoo.registry.entry import Converted, Copy, Family, Golden, PretrainedEntry, Published, Source
from rszoo.registry.preprocessing import Preprocessing
from rszoo.schema.fields import build, check_format, parse_json

_SCHEMA_VERSION = 2
_PACKAGE = Path(__file__).parents[1]
_MANIFEST_NAME = "weights_manifest.json"
_VARIABLE = "RSZOO_MANIFEST"


def list_models(pattern: str = "*", *, family: str | None = None) -> list[str]:
    """Return the names that match a shell pattern, by family, depth and resolution.

    `family`: only those of one, such as "tf1" or "garden".

    Raises:
        UnknownModelError: nothing matches, or there is no such family.
    """
    families = dict.fromkeys(entry.family.name for entry in _entries().values())
    if family is not None and family.lower() not in families:
        raise UnknownModelError(f"there is no family {family!r}; choose {' or '.join(families)}")
    wanted = None if family is None else family.lower()
    there = [name for name, entry in _entries().items() if wanted in (None, entry.family.name)]
    names = [name for name in there if fnmatch.fnmatchcase(name, pattern.lower())]
    if not names:
        likely = nearest(pattern, there) or there[:3]
        of = "" if wanted is None else f" of the family {wanted}"
        raise UnknownModelError(f"no model{of} matches {pattern!r}; there are: {', '.join(likely)}. Run `rszoo list`.")
    return names


def names_of(pattern: str) -> list[str]:
    """Return the registered names that a user means by a shell pattern, or by one name or alias.

    Raises:
        UnknownModelError: there is none.
    """
    return list_models(pattern) if set(pattern) & set("*?[") else [get_entry(pattern).name]


def expand_patterns(patterns: str | Sequence[str]) -> list[str]:
    """Return the registered names that a user means by one or several names, aliases or shell patterns, each once.

    Raises:
        UnknownModelError: there is none.
    """
    given = [patterns] if isinstance(patterns, str) else patterns
    return list(dict.fromkeys(name for pattern in given for name in names_of(pattern)))


def get_entry(name: str) -> PretrainedEntry:
    """Return the entry of a name: a pair, an architecture (its largest resolution), or timm's name for one.

    Raises:
        UnknownModelError: the registry has no such name.
    """
    entries, wanted = list(_entries().values()), _spelling(name)
    for entry in entries:
        if _spelling(entry.name) == wanted:
            return entry
    sizes = [entry for entry in entries if wanted in map(_spelling, entry.short_names)]
    if sizes:
        return max(sizes, key=lambda entry: entry.image_size)
    raise UnknownModelError(_unknown(name, entries))


@functools.cache
def load_labels(label_set: str) -> tuple[str, ...]:
    """Return the class names of a label set, index by index. `imagenet-1k` is the only one with a file."""
    path = asset(f"{label_set.replace('-', '_')}_labels.txt")
    if not path.is_file():
        raise ConfigError(f"unknown label set {label_set!r}; there is: imagenet-1k")
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(line.split("\t", 1)[1] for line in lines)


def manifest_path() -> Path:
    """Return the path of the manifest in use: what the environment variable `RSZOO_MANIFEST` names, or rszoo's own."""
    if named := os.environ.get(_VARIABLE):
        return expand_user(named)
    # In the wheel the manifest lies inside the package, in a checkout beside it.
    return next(path for path in (_PACKAGE / _MANIFEST_NAME, _PACKAGE.parent / _MANIFEST_NAME) if path.is_file())


def parse_manifest(values: object) -> dict[str, PretrainedEntry]:
    """Check the values of a manifest and return its entries by name.

    Raises:
        ConfigError: a field is unknown, missing or impossible; the text names the family or the model.
        NewerFormatError: it is of a newer rszoo.
    """
    try:
        manifest = build(_Manifest, check_format(values, _SCHEMA_VERSION, "the weights manifest", key="schema_version"))
        families = {
            name: build(Family, {"name": name, **facts}, f"families.{name}")
            for name, facts in manifest.families.items()
        }
    except ConfigError as error:
        raise ConfigError(f"weights manifest: {error}; compare it with the one that rszoo ships") from error
    entries: dict[str, PretrainedEntry] = {}
    for model in manifest.models:
        name = model.get("name")
        try:
            entry = _parse_model(build(_Model, model), families)
        except ConfigError as error:
            raise ConfigError(f"weights manifest, model {name!r}: {error}") from error
        if entry.name in entries:
            raise ConfigError(f"weights manifest lists {name!r} twice")
        entries[entry.name] = entry
    return entries


@dataclass(frozen=True)
class _Manifest:
    families: Mapping[str, Mapping[str, Any]]
    models: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class _Model:
    """A pair as the manifest has it."""

    name: str
    family: str
    arch: ArchConfig
    image_size: int
    source: Source
    published: Published
    converted: Converted
    config_url: str | None
    golden: Golden | None
    copies: tuple[Copy, ...] = ()


def _entries() -> dict[str, PretrainedEntry]:
    path = manifest_path()
    try:
        # A file that was changed or replaced is read again.
        return _read_manifest(path, (found := path.stat()).st_mtime_ns, found.st_ino)
    except OSError as error:
        raise SourceNotFoundError(
            f"cannot read {path}, which {_VARIABLE} names: {error.strerror}; unset it for rszoo's own"
        ) from error


@functools.lru_cache(maxsize=4)
def _read_manifest(path: Path, *_: int) -> dict[str, PretrainedEntry]:
    return parse_manifest(parse_json(read_regular(path)))


def _parse_model(model: _Model, families: Mapping[str, Family]) -> PretrainedEntry:
    if model.family not in families:
        raise ConfigError(f"family must be {' or '.join(families)}, received {model.family!r}")
    family, depth, size = families[model.family], model.arch.depth, model.image_size
    match = re.fullmatch(family.pairs, model.name)
    if match is None:
        raise ConfigError(f"a name of the family {family.name} must match {family.pairs}")
    said, known = match.groupdict(), {"depth": str(depth), "image_size": str(size)}
    if any(said.get(key, value) != value for key, value in known.items()):
        raise ConfigError(f"the name disagrees with depth {depth} and image_size {size}")
    return PretrainedEntry(
        name=model.name,
        family=family,
        arch=model.arch,
        preprocessing=build(Preprocessing, {"image_size": size, **family.preprocessing}),
        labels=_labels(family, model.arch.num_classes),
        source=model.source,
        published=model.published,
        golden=model.golden,
        converted=model.converted,
        config_url=model.config_url,
        copies=model.copies,
    )


def _labels(family: Family, classes: int) -> tuple[str, ...]:
    names = load_labels(family.labels) if isinstance(family.labels, str) else family.labels
    if family.background is not None and classes == len(names) + 1:
        names = (family.background, *names)
    if len(names) != classes:
        raise ConfigError(f"{len(names)} labels for {classes} classes")
    return names


def _spelling(name: str) -> str:
    """Return what all spellings of a name have in common: `resnetrs152`, `resnet_rs_152` and `ResNet-RS-152`."""
    return re.sub(r"(?<!\d)-|-(?!\d)", "", name.strip().lower().replace("_", "-"))


def _unknown(name: str, entries: list[PretrainedEntry]) -> str:
    if name.endswith((".tar.gz", ".tgz", ".tar", ".safetensors")):
        return f"{name} is a file, not a model; convert an archive with `rszoo-convert --ckpt {name}`, or give a folder"
    wanted, names = _spelling(name), [entry.name for entry in entries]
    shorts = {entry.short_name: _spelling(entry.short_name) for entry in entries if entry.short_name is not None}
    # Not the 50 of 501.
    begun = [short for short, spelled in shorts.items() if re.match(rf"{re.escape(spelled)}(?!\d)", wanted)]
    # Of another family the name of an architecture has a suffix, which stands behind the size.
    tagged = [short for short in shorts if "." in short and short.rpartition(".")[2] in wanted]
    begun += [short for short in tagged if short.rpartition(".")[0] in begun]
    if begun:
        sizes = [entry.name for entry in entries if entry.short_name == begun[-1]]
        hint = f"Available for {begun[-1]}: {summarize(sizes, 9)}."
    else:
        hint = f"Nearest: {', '.join(nearest(name.strip().lower().replace('_', '-'), names) or names[:3])}."
    return f"unknown model {name!r}. {hint} Run `rszoo list` to see all; a model folder is given by its path."
