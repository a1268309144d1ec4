"""The files of a commit, made from a model folder and checked before anything is sent."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rszoo.disk.regular import read_regular_text
from rszoo.errors import UsageError, VerificationError
from rszoo.folder import records
from rszoo.folder.model_folder import (
    CARD,
    CONFIG,
    CONVERSION,
    EVALUATION,
    KERAS_WEIGHTS,
    PLOT,
    RAW_CONVERSION,
    RAW_VERIFICATION,
    RAW_WEIGHTS,
    VERIFICATION,
    WEIGHTS,
    ModelFolder,
    find_damage,
    parse_config,
    strip_config,
)
from rszoo.folder.records import read_conversion, read_verification
from rszoo.publish.card.card import CardFacts, make_card
from rszoo.publish.card.facts import gather
from rszoo.publish.card.family_plot import family_plot, has_family_plot
from rszoo.refs import Folder
from rszoo.registry.manifest import get_entry
from rszoo.weights.mapping import check_header

log = logging.getLogger("rszoo")

_INSTALL_OTHERS = 'pip install "rszoo[torch,keras,tensorflow]"'


@dataclass(frozen=True)
class Target:
    """Where a push goes: `revision` a branch, made if need be; `create_pr` proposes the commit instead of making it.

    `private`: a new repository is private, and an existing one must be. `overwrite`: replace a card that rszoo did not
    write.

    Raises:
        UsageError: the options contradict each other.
    """

    repo: str
    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.revision is not None and not self.revision.strip():
            raise UsageError("--revision is empty; give the name of a branch, or leave it out")
        if self.revision is not None and self.create_pr:
            raise UsageError(
                f"a pull request goes to the default branch; leave out --create-pr or --revision {self.revision}"
            )


@dataclass(frozen=True)
class Plan:
    """What a push uploads: files by their name in the repository, SHA-256 of the weights among them, in hex."""

    target: Target
    title: str
    files: dict[str, Path]
    sha256: dict[str, str] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {name: path.stat().st_size for name, path in self.files.items()}

    @property
    def card(self) -> str:
        """The text of the card."""
        return read_regular_text(self.files[CARD])


@contextmanager
def planned(
    folder: ModelFolder, target: Target, *, raw: ModelFolder | None = None, keras: bool = False, force: bool = False
) -> Iterator[Plan]:
    """Check a model folder and yield what its push uploads; nothing is sent. What is made for it is gone afterwards.

    `raw`, `keras`, `force`: as of `push_to_hub`.

    Raises:
        VerificationError: the folder was not verified, or that failed, or it was changed since.
        UsageError, ConfigError, WeightsError, UnknownModelError: the folder is not usable.
        MissingPackageError: a package is not installed.
    """
    doubts = [doubt for one in (folder, raw) if one is not None and (doubt := find_doubt(one))]
    if doubts and not force:
        raise VerificationError(f"{'; '.join(doubts)}; or push it with --force, which the card will state")
    for doubt in doubts:
        log.warning("pushed with --force: %s", doubt)
    if raw is not None:
        _check_raw(folder, raw)
    with tempfile.TemporaryDirectory(prefix="rszoo-") as made:
        files = {**_gather(folder, raw, Path(made)), **_make_config(folder, Path(made), keras)}
        yield _with_card(files, CardFacts(folder, target.repo, {}, raw, bool(doubts)), target, Path(made))


def find_doubt(folder: ModelFolder) -> str | None:
    """Read a folder again in full; return why its verification does not vouch for it, or None if it does.

    Raises:
        VerificationError: it is not what its account says, or not the pair that it says, whatever was verified.
        WeightsError: the weights are not of the architecture.
        ConfigError: the account or the verification is damaged.
        UnknownModelError: it says that it is a pair that this rszoo does not know.
    """
    check_header(folder.weights_path, folder.config.arch)
    if problem := find_damage(folder.path):
        raise VerificationError(f"{folder.path} is not what its account says: {problem}; {folder.remedy}")
    _check_pair(folder)
    verification = read_verification(folder.path)
    doubt = records.find_doubt(read_conversion(folder.path), verification)
    if doubt is None:
        return None
    # Run where it was run, it would only say the same again.
    first = f"`{_INSTALL_OTHERS}` and then " if records.compared_with_nothing(verification) else ""
    return f"{folder.path}: {doubt}; run {first}`rszoo verify {Folder(str(folder.path))}`"


def _check_pair(folder: ModelFolder) -> None:
    config = folder.config
    if config.pair is None:
        return
    entry = get_entry(config.pair)
    # With the background or without.
    labels = entry.labels_of(config.arch.num_classes)
    known = dataclasses.replace(entry.arch, num_classes=config.arch.num_classes), entry.preprocessing, labels
    if config.weights == "trained" or (config.arch, config.preprocessing, config.labels) != known:
        raise VerificationError(
            f"{folder.path} says that it is {config.pair}, but its network, preprocessing, labels or kind of weights "
            "are not that pair's; convert or save it again"
        )


def _check_raw(folder: ModelFolder, raw: ModelFolder) -> None:
    kinds = folder.config.weights, raw.config.weights
    said = dataclasses.replace(raw.config, weights="ema", digest=folder.config.digest)
    if kinds != ("ema", "raw") or said != folder.config:
        raise UsageError(
            f"--raw-folder takes the plain weights of the same model: {folder.path} has {kinds[0]} weights of "
            f"{folder.config.title}, {raw.path} has {kinds[1]} weights of {raw.config.title}"
        )
    origins = [read_conversion(one.path).source for one in (folder, raw)]
    if origins[0] != origins[1]:
        raise UsageError(f"{raw.path} and {folder.path} are not of one checkpoint; convert both from the same source")


def _gather(folder: ModelFolder, raw: ModelFolder | None, made: Path) -> dict[str, Path]:
    """Return what of the folders is uploaded, by name in the repository: weights as they lie, copies of the rest.

    The weights' hash was checked and is checked again while they are sent; what is copied cannot change any more.
    """
    sources = {name: folder.path / name for name in (WEIGHTS, CONVERSION, VERIFICATION, EVALUATION)}
    if raw is not None:
        names = {RAW_WEIGHTS: WEIGHTS, RAW_CONVERSION: CONVERSION, RAW_VERIFICATION: VERIFICATION}
        sources |= {stored: raw.path / name for stored, name in names.items()}
    files = {}
    for name, path in sources.items():
        if name in (WEIGHTS, RAW_WEIGHTS):
            files[name] = path
        elif path.is_file():
            files[name] = Path(shutil.copyfile(path, made / name))
    return files


def _make_config(folder: ModelFolder, made: Path, keras: bool) -> dict[str, Path]:
    """Write `config.json`, with Keras's keys after the others if they are wanted, and then also Keras's weights."""
    path = folder.path / CONFIG
    text = strip_config(read_regular_text(path))
    if parse_config(text, str(path)) != folder.config:
        raise VerificationError(f"{path} was changed while it was read; verify and push again")
    if not keras:
        (made / CONFIG).write_text(text, encoding="utf-8")
        return {CONFIG: made / CONFIG}
    from rszoo.publish.keras_files import write_keras_files

    keys = json.loads(text) | write_keras_files(folder, made)
    # Without blanks: Keras describes each layer at length.
    (made / CONFIG).write_text(json.dumps(keys, separators=(",", ":")) + "\n", encoding="utf-8")
    return {CONFIG: made / CONFIG, KERAS_WEIGHTS: made / KERAS_WEIGHTS}


def _with_card(files: dict[str, Path], facts: CardFacts, target: Target, made: Path) -> Plan:
    """Add picture and card, and return the plan."""
    findings = gather(facts)
    if findings.evidence and findings.entry is not None and has_family_plot(findings.entry):
        files[PLOT] = made / PLOT
        files[PLOT].write_bytes(family_plot(findings.entry))
    sizes = {name: path.stat().st_size for name, path in sorted(files.items())}
    files[CARD] = made / CARD
    files[CARD].write_text(make_card(dataclasses.replace(facts, files=sizes)), encoding="utf-8")
    hashes = {WEIGHTS: findings.main.conversion.sha256}
    if findings.raw is not None:
        hashes[RAW_WEIGHTS] = findings.raw.conversion.sha256
    return Plan(target, facts.folder.config.title, files, hashes)
