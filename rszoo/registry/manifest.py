"""Every published model/resolution pair: `weights_manifest.json` loaded, validated, listed and looked up.

The manifest is data only. In go names (patterns, aliases, timm's names), out come frozen `PretrainedEntry`s.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rszoo.arch.config import ArchConfig
from rszoo.assets import asset
from rszoo.errors import ConfigError, UnknownModelError, nearest, summarize
from rszoo.registry.preprocessing import Preprocessing

_SCHEMA_VERSION = 1
_PACKAGE = Path(__file__).parents[1]
_MANIFEST_NAME = "weights_manifest.json"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Source:
    """Where the original archive is: `url`, or `file` inside this package. Hashes are None where nobody knows them.

    `size_mib` as listed by the publisher, `size` in bytes; `members` in archive order; `crc32c` and `md5` in base64, as
    the storage server sends them; `sha256` in hex.
    """

    size_mib: float
    members: tuple[str, ...]
    url: str | None = None
    file: str | None = None
    size: int | None = None
    crc32c: str | None = None
    md5: str | None = None
    sha256: str | None = None

    @property
    def path(self) -> Path | None:
        """The embedded archive, or None where the source is a URL."""
        return asset(self.file) if self.file else None


@dataclass(frozen=True)
class Published:
    """Figures of others, not measured here: the publisher's top-1 in percent and times of one training step.

    `timm_top1`: of the same weights at the same size with timm's transform, in percent, from timm's
    results-imagenet.csv; None where timm has no such result.
    """

    top1: float
    v100_latency_s: float | None = None
    tpuv3_latency_ms: float | None = None
    timm_top1: float | None = None


@dataclass(frozen=True)
class Golden:
    """Logits of the original graph for the family's golden image: (class, logit) of the top 5, L2 norm of all."""

    top5: tuple[tuple[int, float], ...]
    logits_l2: float


@dataclass(frozen=True)
class GoldenImage:
    """The photo that the golden outputs belong to; `image_size` is the input size they were computed at."""

    name: str
    url: str
    size: int
    sha256: str
    image_size: int


@dataclass(frozen=True)
class HubPin:
    """A repository on the Hugging Face Hub and the commit of it, 40 hex digits, that holds a model."""

    repo: str
    commit: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repo) or not re.fullmatch("[0-9a-f]{40}", self.commit):
            raise ConfigError(f"hub needs repo OWNER/NAME and a commit of 40 hex digits, received {self}")


@dataclass(frozen=True)
class Converted:
    """Converted weights: SHA-256 of `model.safetensors`, and their place on the Hub; None until somebody publishes."""

    sha256: str | None = None
    hub: HubPin | None = None

    def __post_init__(self) -> None:
        if self.hub is not None and self.sha256 is None:
            raise ConfigError("hub needs sha256 beside it: what is there could not be checked")


@dataclass(frozen=True)
class PretrainedEntry:
    """One pair. `arch` holds the published drop rates too, since they belong to the pair, not to the depth."""

    name: str
    family: str
    title: str
    arch: ArchConfig
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    source: Source
    published: Published
    golden: Golden | None
    golden_image: GoldenImage | None
    converted: Converted
    license: str
    paper: str
    code: str
    dataset: str
    config_url: str | None

    @property
    def image_size(self) -> int:
        """Side of the square input, in pixels."""
        return self.preprocessing.image_size


def list_models(pattern: str = "*") -> list[str]:
    """Return the names that match a shell pattern, in order of depth and resolution.

    Raises:
        UnknownModelError: nothing matches.
    """
    names = [name for name in _entries() if fnmatch.fnmatchcase(name, pattern.lower())]
    if not names:
        likely = nearest(pattern, _entries()) or list(_entries())[:3]
        raise UnknownModelError(f"no model matches {pattern!r}; there are: {', '.join(likely)}. Run `rszoo list`.")
    return names


def names_of(pattern: str) -> list[str]:
    """Return the registered names that a user means by a shell pattern, or by one name or alias.

    Raises:
        UnknownModelError: there is none.
    """
    return list_models(pattern) if set(pattern) & set("*?[") else [get_entry(pattern).name]


def get_entry(name: str) -> PretrainedEntry:
    """Return the entry of a name: a pair, an architecture (its largest resolution), or timm's name for one.

    Raises:
        UnknownModelError: the registry has no such name.
    """
    entries = _entries()
    wanted = _normalize(name)
    if wanted in entries:
        return entries[wanted]
    sizes = [entry for pair, entry in entries.items() if re.fullmatch(rf"{re.escape(wanted)}-i\d+", pair)]
    if sizes:
        return max(sizes, key=lambda entry: entry.image_size)
    raise UnknownModelError(_unknown(name, wanted, list(entries)))


@functools.cache
def load_labels(label_set: str) -> tuple[str, ...]:
    """Return the class names of a label set, index by index. `imagenet-1k` is the only one with a file."""
    path = asset(f"{label_set.replace('-', '_')}_labels.txt")
    if not path.is_file():
        raise ConfigError(f"unknown label set {label_set!r}; there is: imagenet-1k")
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(line.split("\t", 1)[1] for line in lines)


def parse_manifest(manifest: Mapping[str, Any]) -> dict[str, PretrainedEntry]:
    """Validate a manifest and return its entries by name.

    Raises:
        ConfigError: a field is unknown, missing or impossible; the text names the model.
    """
    if manifest.get("schema_version") != _SCHEMA_VERSION:
        raise ConfigError(
            f"weights manifest has schema_version {manifest.get('schema_version')!r}, not {_SCHEMA_VERSION}"
        )
    entries: dict[str, PretrainedEntry] = {}
    for record in manifest["models"]:
        name = record.get("name")
        try:
            entry = _parse_entry(record, manifest["families"][record["family"]])
        except (ConfigError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise ConfigError(f"weights manifest, model {name!r}: {error}") from error
        if name in entries:
            raise ConfigError(f"weights manifest lists {name!r} twice")
        entries[name] = entry
    return entries


@functools.cache
def _entries() -> dict[str, PretrainedEntry]:
    # In the wheel the manifest lies inside the package, in a checkout beside it.
    path = next(path for path in (_PACKAGE / _MANIFEST_NAME, _PACKAGE.parent / _MANIFEST_NAME) if path.is_file())
    return parse_manifest(json.loads(path.read_text(encoding="utf-8")))


def _parse_entry(record: Mapping[str, Any], family: Mapping[str, Any]) -> PretrainedEntry:
    known = {"name", "family", "arch", "image_size", "source", "config_url", "published", "golden", "converted"}
    if unknown := set(record) - known:
        raise ConfigError(f"unknown fields {sorted(unknown)}; allowed: {sorted(known)}")
    arch = ArchConfig.from_dict(record["arch"])
    name = record["name"]
    if not re.fullmatch(r"resnet-rs-(\d+-i\d+|[a-z]+)", name):
        raise ConfigError("a name must look like resnet-rs-50-i160 or resnet-rs-demo")
    if name[-1].isdigit() and name != f"resnet-rs-{arch.depth}-i{record['image_size']}":
        raise ConfigError(f"the name disagrees with depth {arch.depth} and image_size {record['image_size']}")
    labels = family["labels"]
    labels = load_labels(labels) if isinstance(labels, str) else tuple(labels)
    if len(labels) != arch.num_classes:
        raise ConfigError(f"{len(labels)} labels for {arch.num_classes} classes")
    source = _build(Source, record["source"])
    if (source.url is None) == (source.file is None):
        raise ConfigError("a source has either a url or a file")
    golden = _build(Golden, record["golden"])
    return PretrainedEntry(
        name=name,
        family=record["family"],
        title=family["title"],
        arch=arch,
        preprocessing=_build(Preprocessing, {"image_size": record["image_size"], **family["preprocessing"]}),
        labels=labels,
        source=source,
        published=_build(Published, record["published"]),
        golden=golden,
        golden_image=_build(GoldenImage, family["golden_image"]),
        converted=_build_converted(record["converted"]),
        license=family["license"],
        paper=family["paper"],
        code=family["code"],
        dataset=family["dataset"],
        config_url=record["config_url"],
    )


def _build_converted(values: Mapping[str, Any]) -> Converted:
    converted: Converted = _build(Converted, {**values, "hub": None})
    return dataclasses.replace(converted, hub=_build(HubPin, values.get("hub")))


def _build(cls: type[_T], values: Mapping[str, Any] | None) -> Any:
    """Build a dataclass from JSON, refusing unknown keys; lists become tuples, null stays None."""
    # There is no type for "a dataclass" that mypy knows and `type[_T]` fits.
    if values is None:
        return None
    allowed = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    if unknown := set(values) - set(allowed):
        raise ConfigError(f"unknown fields {sorted(unknown)} in {cls.__name__}; allowed: {allowed}")
    return cls(**{key: _freeze(value) for key, value in values.items()})


def _freeze(value: Any) -> Any:
    return tuple(_freeze(item) for item in value) if isinstance(value, list) else value


def _normalize(name: str) -> str:
    """`resnetrs152`, `resnetrs152.tf_in1k`, `resnet_rs_152` and `ResNet-RS-152` all mean `resnet-rs-152`."""
    lowered = name.strip().lower().removesuffix(".tf_in1k").replace("_", "-")
    return re.sub(r"^resnet-?rs-?(?=\w)", "resnet-rs-", lowered)


def _unknown(name: str, wanted: str, entries: list[str]) -> str:
    same_depth = [pair for pair in entries if pair.startswith(wanted.rpartition("-i")[0] + "-i")]
    if same_depth:
        hint = f"Available for {wanted.rpartition('-i')[0]}: {summarize(same_depth, 9)}."
    else:
        hint = f"Nearest: {', '.join(nearest(wanted, entries) or entries[:3])}."
    if name.endswith((".tar.gz", ".tgz", ".tar", ".safetensors")):
        return f"{name} is a file, not a model; convert an archive with `rszoo-convert --ckpt {name}`, or give a folder"
    return f"unknown model {name!r}. {hint} Run `rszoo list` to see all; a model folder is given by its path."
