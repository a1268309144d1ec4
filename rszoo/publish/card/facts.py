"""What a model card is made from, gathered from the files that are pushed and compared with each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from rszoo.disk.regular import read_regular_text
from rszoo.folder.evaluations import Evaluation, read_evaluations
from rszoo.folder.model_folder import CONFIG, EVALUATION, ModelFolder
from rszoo.folder.records import (
    GOLDEN_CHECK,
    ConversionRecord,
    VerificationRecord,
    find_doubt,
    read_conversion,
    read_verification,
)
from rszoo.net.urls import public_url
from rszoo.publish.card.markdown import plain
from rszoo.registry.entry import PretrainedEntry, Publisher
from rszoo.registry.manifest import get_entry


@dataclass(frozen=True)
class CardFacts:
    """What is pushed where.

    `folder`: the main weights; `raw`: the plain ones that go along, or None. `files`: name in the repository to size in
    bytes; the card speaks of optional files, such as Keras's weights, if they are among these. `forced`: pushed
    although the verification is missing or failed.
    """

    folder: ModelFolder
    repo_id: str
    files: Mapping[str, int]
    raw: ModelFolder | None = None
    forced: bool = False


@dataclass(frozen=True)
class Account:
    """One weights file: where it comes from, what was checked, and, in Markdown, why it cannot be called verified."""

    conversion: ConversionRecord
    verification: VerificationRecord | None
    doubt: str | None


@dataclass(frozen=True)
class Findings:
    """The facts of a card.

    `entry` is the registered pair whose published weights these are, None for trained weights and networks of the
    user's own.
    """

    facts: CardFacts
    entry: PretrainedEntry | None
    main: Account
    raw: Account | None
    evaluations: tuple[Evaluation, ...]

    @cached_property
    def loads_in_timm(self) -> bool:
        """Whether timm can make the model from `config.json`."""
        config = self.facts.folder.path / CONFIG
        return "architecture" in json.loads(read_regular_text(config))

    @property
    def publisher(self) -> Publisher | None:
        """Who published the pair's figures; None for trained weights, and for pairs of rszoo's own."""
        return None if self.entry is None else self.entry.family.publisher

    @cached_property
    def evidence(self) -> list[str]:
        """What speaks for the checkpoint being the published one of the pair; its name and its tensors do not."""
        if self.entry is None:
            return []
        published, source = self.entry.source, self.main.conversion.source
        found = []
        if published.sha256 is not None and source.get("archive_sha256") == published.sha256:
            found.append("the archive has the SHA-256 that rszoo's registry knows")
        if published.url is not None and source.get("name") == published.url:
            found.append("the archive was downloaded under the publisher's URL")
        proven = [public_url(copy.url) for copy in self.entry.copies if not copy.is_weak]
        if source.get("name") in proven:
            found.append("the file was downloaded under its publisher's URL, and has the hash that is published of it")
        if not self.main.doubt and self.main.verification and GOLDEN_CHECK in self.main.verification.names("passed"):
            found.append("the logits that the original graph gave for a photo were reproduced")
        return found

    @property
    def has_published_accuracy(self) -> bool:
        """Whether the published accuracy is that of these weights: of the published checkpoint's averages."""
        return bool(self.evidence) and self.facts.folder.config.weights == "ema"


def gather(facts: CardFacts) -> Findings:
    """Read all that a card says from the folders, whose weights were compared with their accounts before.

    Raises:
        ConfigError: an account, a verification or an evaluation is damaged, or an evaluation is of other weights.
        UnknownModelError: the folder is of a pair that this rszoo does not know.
    """
    config = facts.folder.config
    return Findings(
        facts=facts,
        entry=get_entry(config.pair) if config.pair is not None and config.weights != "trained" else None,
        main=_account(facts.folder),
        raw=None if facts.raw is None else _account(facts.raw),
        evaluations=read_evaluations(facts.folder.path) if EVALUATION in facts.files else (),
    )


def _account(folder: ModelFolder) -> Account:
    conversion, verification = read_conversion(folder.path), read_verification(folder.path)
    return Account(conversion, verification, find_doubt(conversion, verification, plain))
