"""What the registry says of a published pair, as frozen dataclasses whose fields the weights manifest has.

`rszoo.registry.manifest` reads and finds them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rszoo.arch.config import ArchConfig
from rszoo.assets import asset
from rszoo.errors import ConfigError
from rszoo.registry.preprocessing import Preprocessing
from rszoo.schema.limits import check_pattern, check_percent, check_text

#: How `Source.proof` begins where it proves nothing.
WEAK = "weak"


@dataclass(frozen=True)
class Source:
    """Where the original archive is: `url`, or `file` inside this package. Hashes are None where unknown.

    `size_mib` as listed by the publisher, `size` in bytes; `members` in archive order, none if unknown; `crc32c` and
    `md5` in base64, as the storage server sends them; `sha256` in hex; `sha256_start` its first digits, where no more
    of it is known.
    """

    size_mib: float | None
    members: tuple[str, ...]
    url: str | None = None
    file: str | None = None
    size: int | None = None
    crc32c: str | None = None
    md5: str | None = None
    sha256: str | None = None
    sha256_start: str | None = None

    def __post_init__(self) -> None:
        if (self.url is None) == (self.file is None):
            raise ConfigError("a source has either a url or a file")
        check_pattern(self, "url", r"https?://[^\s/]+/\S+", "an http:// or https:// URL")
        check_pattern(self, "sha256", "[0-9a-f]{64}", "64 hex digits")
        check_pattern(self, "sha256_start", "[0-9a-f]{8,63}", "8 to 63 hex digits")
        check_pattern(self, "md5", "[A-Za-z0-9+/]{22}==", "an MD5 in base64, 24 characters")
        check_pattern(self, "crc32c", "[A-Za-z0-9+/]{6}==", "a CRC32C in base64, 8 characters")

    @property
    def proof(self) -> str | None:
        """What a file from here is known by, in words for an account, given that it was compared with the hashes."""
        if self.sha256 or self.md5:
            return f"{'SHA-256' if self.sha256 else 'MD5'} of the file, as in rszoo's manifest"
        if self.sha256_start is None:
            return None
        return f"{WEAK}: {len(self.sha256_start)} digits of the file's SHA-256, which prove nothing"

    @property
    def path(self) -> Path | None:
        """The embedded archive, or None where the source is a URL."""
        return asset(self.file) if self.file else None


@dataclass(frozen=True)
class Copy:
    """The averages of a pair as another publisher has them: where, in which converter's format, and what proves it.

    `md5` in base64 or `sha256` in hex prove the file; `sha256_start`, the first digits, does not.
    """

    format: str
    url: str
    md5: str | None = None
    sha256: str | None = None
    sha256_start: str | None = None

    def __post_init__(self) -> None:
        _ = self.source
        if self.md5 is self.sha256 is self.sha256_start is None:
            raise ConfigError("a copy needs a hash: md5, sha256 or sha256_start")

    @property
    def is_weak(self) -> bool:
        """Whether no hash proves the file, so that it is taken only on request."""
        return self.md5 is None and self.sha256 is None

    @property
    def source(self) -> Source:
        """The same as where a download comes from."""
        return Source(None, (), self.url, md5=self.md5, sha256=self.sha256, sha256_start=self.sha256_start)


@dataclass(frozen=True)
class Published:
    """Figures of others, not measured here: the publisher's top-1 and top-5 in percent and times of a training step.

    `timm_top1`: of the same weights at the same size with timm's transform, in percent, from timm's
    results-imagenet.csv; None where timm has no such result.
    """

    top1: float
    top5: float | None = None
    v100_latency_s: float | None = None
    tpuv3_latency_ms: float | None = None
    timm_top1: float | None = None

    def __post_init__(self) -> None:
        check_percent(self, "top1", "top5", "timm_top1")


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
        check_pattern(self, "repo", r"[\w.-]+/[\w.-]+", "OWNER/NAME")
        check_pattern(self, "commit", "[0-9a-f]{40}", "40 hex digits")


@dataclass(frozen=True)
class Converted:
    """Converted weights: SHA-256 of `model.safetensors`, and their place on the Hub; None until published."""

    sha256: str | None = None
    hub: HubPin | None = None

    def __post_init__(self) -> None:
        if self.hub is not None and self.sha256 is None:
            raise ConfigError("hub needs sha256 beside it: what is there could not be checked")


@dataclass(frozen=True)
class DataSet:
    """What weights were trained on: its name, and its id, configuration and split on the Hub, or None if not there."""

    name: str
    hub_id: str | None = None
    hub_config: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Publisher:
    """Who published the figures of a family, and where."""

    name: str
    place: str


@dataclass(frozen=True)
class Family:
    """What all pairs of one origin have in common; a new one is data in the manifest, and needs no code.

    Attributes:
        name: the key in the manifest.
        title: where the weights come from, in a few words.
        format: the converter's name of the checkpoints' format.
        pairs: a regular expression of the pairs' names. Its groups `depth` and `image_size` must agree with the pair's;
            `short` is the name of an architecture, which means its largest resolution.
        short: that name, where it is no part of the pair's, with `{depth}` for the group.
        aliases: other names of an architecture, in which `{short}` stands for the group.
        dataset: what they were trained on.
        preprocessing: the fields of `Preprocessing` without the image size.
        labels: a label set's name, see `load_labels`, or the class names themselves.
        background: the name of class 0 of pairs that have one class more than there are labels.
        publisher: who published the figures; None for rszoo's own.
        not_others: for the model card, which other weights these are not, as the rest of a sentence.
    """

    name: str
    title: str
    format: str
    pairs: str
    license: str
    paper: str
    code: str
    dataset: DataSet
    preprocessing: Mapping[str, Any] = field(hash=False)
    labels: str | tuple[str, ...]
    background: str | None = None
    aliases: tuple[str, ...] = ()
    short: str | None = None
    publisher: Publisher | None = None
    not_others: str | None = None
    golden_image: GoldenImage | None = None

    def __post_init__(self) -> None:
        check_text(self, "title", "format", "license")
        try:
            re.compile(self.pairs)
        except re.error as error:
            raise ConfigError(f"pairs must be a regular expression, received {self.pairs!r}: {error}") from error


@dataclass(frozen=True)
class PretrainedEntry:
    """One pair. `arch` holds the published drop rates too, since they belong to the pair, not to the depth.

    `copies`: where else its averages are, in order of trust, if `source` cannot be had.
    """

    name: str
    family: Family
    arch: ArchConfig
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    source: Source
    published: Published
    golden: Golden | None
    converted: Converted
    config_url: str | None
    copies: tuple[Copy, ...] = ()

    def at(self, copy: Copy) -> PretrainedEntry:
        """Return the pair with a copy as its only source, under a name of its own for downloads and recorded hashes."""
        return replace(self, name=f"{self.name}.{copy.format}", source=copy.source, copies=())

    @property
    def places(self) -> tuple[PretrainedEntry, ...]:
        """The pair and, in order of trust, the pair at each of its copies."""
        return self, *map(self.at, self.copies)

    def labels_of(self, classes: int) -> tuple[str, ...] | None:
        """Return the labels of so many classes: the pair's, with the background or without; None for another number."""
        background, labels = self.family.background, self.labels
        if background is not None:
            plain = labels[1:] if labels[0] == background else labels
            labels = (background, *plain) if classes == len(plain) + 1 else plain
        return labels if classes == len(labels) else None

    @property
    def image_size(self) -> int:
        """Side of the square input, in pixels."""
        return self.preprocessing.image_size

    @property
    def short_name(self) -> str | None:
        """The architecture's name, such as `resnet-rs-152`, or None where the family names none."""
        match = re.fullmatch(self.family.pairs, self.name)
        if match is None:
            return None
        groups = match.groupdict()
        short = self.family.short
        return groups.get("short") if short is None else short.replace("{depth}", groups.get("depth", ""))

    @property
    def short_names(self) -> tuple[str, ...]:
        """The architecture's name and its aliases."""
        short = self.short_name
        return () if short is None else (short, *(alias.replace("{short}", short) for alias in self.family.aliases))
