"""A model folder pushed to the Hugging Face Hub: checked first, then uploaded as one commit, with a card made for it.

In goes a folder (or a live model, which is saved and verified first), out comes the commit. Transfers, retries and
logins are huggingface_hub's; ours is what must be true before, what the commit holds, and what an error means.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rszoo import __version__
from rszoo.endpoints import offline_variable
from rszoo.errors import HubError, NetworkError, UsageError, VerificationError
from rszoo.folder import (
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
    read_folder,
    strip_config,
)
from rszoo.hub import records
from rszoo.hub.address import parse_repo
from rszoo.hub.card import CardFacts, make_card
from rszoo.hub.failures import explained, status_of
from rszoo.hub.family_plot import family_plot, has_family_plot
from rszoo.hub.records import read_conversion, read_verification
from rszoo.registry import get_entry
from rszoo.weights import check_header

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi

# What a former push may have left and this one has not: it would be taken for this one's.
_OPTIONAL = (VERIFICATION, EVALUATION, RAW_WEIGHTS, RAW_CONVERSION, RAW_VERIFICATION, KERAS_WEIGHTS, PLOT)
# Somebody else's commit in between is answered by another attempt on top of it, this often.
_ATTEMPTS = 5
_PRECONDITION_FAILED = 412

log = logging.getLogger("rszoo")


@dataclass(frozen=True)
class Target:
    """Where a push goes: `revision` a branch, made if need be; `create_pr` proposes the commit instead of making it."""

    repo: str
    private: bool = False
    revision: str | None = None
    create_pr: bool = False


@dataclass(frozen=True)
class Plan:
    """What a push uploads: files by their name in the repository, SHA-256 of those whose hash is known, in hex."""

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
        return self.files[CARD].read_text(encoding="utf-8")


@dataclass(frozen=True)
class Pushed:
    """What came of a push: the commit, its page, that of the pull request if one was made; `changed`: is it a new one.

    `sha256` of `model.safetensors`, in hex.
    """

    repo: str
    commit: str
    url: str
    pr_url: str | None
    changed: bool
    sha256: str


def push_to_hub(
    model: Any,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    keras: bool = False,
    raw: str | os.PathLike[str] | None = None,
    force: bool = False,
) -> Pushed:
    """Push a model folder, or a live model, to the Hugging Face Hub as one commit.

    Args:
        model: the path of a model folder, or a model that `rszoo.create` made, in PyTorch or Keras, trained further or
            not: it is saved and verified first. Its labels are those that it came with; `rszoo.save` takes others.
        repo_id: `OWNER/NAME`; made if it is not there.
        private: a new repository is one that only its owner sees. One that exists must be private already.
        revision: push to this branch, made if it is not there, instead of the default one.
        create_pr: open a pull request instead.
        keras: also upload what `keras.saving.load_model("hf://OWNER/NAME")` needs.
        raw: a model folder with the same checkpoint's plain weights, uploaded as `model.raw.safetensors`.
        force: push although the verification is missing or failed; the card says so.

    Raises:
        VerificationError: the folder was not verified, or that failed, or it was changed since.
        HubError: the Hub refuses, or cannot be reached.
        UsageError, SourceNotFoundError, ConfigError, WeightsError: the arguments or the folder are not usable.
        MissingPackageError: a package is not installed.
    """
    target = Target(parse_repo(repo_id), private, revision, create_pr)
    if revision is not None and create_pr:
        raise UsageError(f"a pull request goes to the default branch; leave out --create-pr or --revision {revision}")
    with ExitStack() as stack:
        folder = read_folder(model) if isinstance(model, (str, os.PathLike)) else stack.enter_context(_saved(model))
        raw_folder = None if raw is None else read_folder(raw)
        return upload(stack.enter_context(planned(folder, target, raw=raw_folder, keras=keras, force=force)))


@contextmanager
def planned(
    folder: ModelFolder, target: Target, *, raw: ModelFolder | None = None, keras: bool = False, force: bool = False
) -> Iterator[Plan]:
    """Check a model folder and yield what its push uploads; nothing is sent. What is made for it is gone afterwards.

    Raises as `push_to_hub`, but for what the Hub says.
    """
    doubts = [doubt for one in (folder, raw) if one is not None and (doubt := find_doubt(one))]
    if doubts and not force:
        raise VerificationError(f"{'; '.join(doubts)}; or push it with --force, which the card will state")
    for doubt in doubts:
        log.warning("pushed with --force: %s", doubt)
    if raw is not None:
        _check_raw(folder, raw)
    with tempfile.TemporaryDirectory(prefix="rszoo-") as made:
        files = _gather(folder, raw)
        files |= _make_config(folder, Path(made), keras)
        yield _with_card(files, CardFacts(folder, target.repo, {}, raw, bool(doubts)), target, Path(made))


def upload(plan: Plan) -> Pushed:
    """Make the repository if need be, and upload a plan's files as one commit on top of what is there.

    What the Hub has already is not sent again. If somebody else commits meanwhile, it is tried again on top of that.

    Raises:
        HubError: the Hub refuses, or cannot be reached.
        NetworkError: offline mode is on.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    target = plan.target
    doing = f"push to {target.repo}"
    check_login(doing)
    api = HfApi(library_name="rszoo", library_version=__version__)
    with explained(doing, write=True):
        if not target.create_pr:
            _make_repository(api, target)
        additions = [CommitOperationAdd(name, str(path)) for name, path in sorted(plan.files.items())]
        for addition in additions:
            if sha256 := plan.sha256.get(addition.path_in_repo):
                # The hash that was checked: so the Hub refuses a file that was changed since.
                addition.upload_info.sha256 = bytes.fromhex(sha256)
        head, commit = _commit(api, plan, additions)
    return Pushed(
        repo=target.repo,
        commit=commit.oid,
        url=commit.commit_url,
        pr_url=commit.pr_url,
        changed=commit.oid != head,
        sha256=plan.sha256[WEIGHTS],
    )


def check_login(doing: str) -> None:
    """Ask the Hub who the user is, before anything else is done.

    Raises:
        HubError: it does not know.
        NetworkError: offline mode is on.
    """
    from huggingface_hub import HfApi

    if variable := offline_variable():
        raise NetworkError(f"cannot {doing}: {variable} forbids the network; unset it, or do it elsewhere")
    with explained(doing, write=True):
        HfApi(library_name="rszoo", library_version=__version__).whoami()


def _commit(api: HfApi, plan: Plan, additions: list[Any]) -> tuple[str | None, CommitInfo]:
    """Commit on top of the newest state, and return which that was and the commit."""
    from huggingface_hub import CommitOperationDelete
    from huggingface_hub.errors import HfHubHTTPError

    target = plan.target
    for attempt in range(_ATTEMPTS):
        info = api.model_info(target.repo, revision=target.revision)
        there = {sibling.rfilename for sibling in info.siblings or ()}
        stale = [CommitOperationDelete(name) for name in _OPTIONAL if name in there and name not in plan.files]
        try:
            commit = api.create_commit(
                target.repo,
                [*additions, *stale],
                commit_message=f"{plan.title}, by rszoo {__version__}",
                revision=target.revision,
                create_pr=target.create_pr,
                parent_commit=info.sha,
            )
        except HfHubHTTPError as error:
            if status_of(error) != _PRECONDITION_FAILED or attempt == _ATTEMPTS - 1:
                raise
            log.warning("%s was changed meanwhile; committing again on top of that", target.repo)
        else:
            return info.sha, commit
    raise HubError(f"{target.repo} changes all the time; push again later")


def _make_repository(api: HfApi, target: Target) -> None:
    """Make the repository and the branch, unless they are there.

    Raises:
        HubError: it is there and public, and was to be private.
    """
    api.create_repo(target.repo, private=True if target.private else None, exist_ok=True)
    if target.private and not api.model_info(target.repo).private:
        raise HubError(
            f"{target.repo} is public, and --private was given; make it private in its settings, or push to another"
        )
    if target.revision is not None:
        api.create_branch(target.repo, branch=target.revision, exist_ok=True)


@contextmanager
def _saved(model: Any) -> Iterator[ModelFolder]:
    """Save a live model to a temporary folder and verify it there."""
    from converters import parity
    from rszoo.saving import save

    with tempfile.TemporaryDirectory(prefix="rszoo-") as temporary:
        folder = save(model, Path(temporary) / "model")
        parity.save_verification(folder, list(parity.verify(folder)))
        yield folder


def find_doubt(folder: ModelFolder) -> str | None:
    """Read a folder again in full; return why its verification does not vouch for it, or None if it does.

    Raises:
        VerificationError: it is not what was once converted, whatever the verification says.
        WeightsError: the weights are not of the architecture.
        ConfigError: the account or the verification is damaged.
    """
    check_header(folder.weights_path, folder.config.arch)
    if problem := find_damage(folder.path):
        raise VerificationError(f"{folder.path} was changed after its conversion: {problem}; convert again")
    doubt = records.find_doubt(read_conversion(folder.path), read_verification(folder.path))
    return None if doubt is None else f"{folder.path}: {doubt}; run `rszoo verify {folder.path}`"


def _check_raw(folder: ModelFolder, raw: ModelFolder) -> None:
    kinds = folder.config.weights, raw.config.weights
    if kinds != ("ema", "raw") or dataclasses.replace(raw.config, weights="ema") != folder.config:
        raise UsageError(
            f"--raw takes the plain weights of the same model: {folder.path} has {kinds[0]} weights of "
            f"{folder.config.title}, {raw.path} has {kinds[1]} weights of {raw.config.title}"
        )
    origins = [read_conversion(one.path).source for one in (folder, raw)]
    if origins[0] != origins[1]:
        raise UsageError(f"{raw.path} and {folder.path} are not of one checkpoint; convert both from the same source")


def _gather(folder: ModelFolder, raw: ModelFolder | None) -> dict[str, Path]:
    """Return what of the folders is uploaded, by name in the repository."""
    files = {name: folder.path / name for name in (WEIGHTS, CONVERSION, VERIFICATION, EVALUATION)}
    if raw is not None:
        names = {RAW_WEIGHTS: WEIGHTS, RAW_CONVERSION: CONVERSION, RAW_VERIFICATION: VERIFICATION}
        files |= {stored: raw.path / name for stored, name in names.items()}
    return {name: path for name, path in files.items() if path.is_file()}


def _make_config(folder: ModelFolder, made: Path, keras: bool) -> dict[str, Path]:
    """Write `config.json`, with Keras's keys behind the others if they are wanted, and then also Keras's weights."""
    text = strip_config((folder.path / CONFIG).read_text(encoding="utf-8"))
    if not keras:
        (made / CONFIG).write_text(text, encoding="utf-8")
        return {CONFIG: made / CONFIG}
    from rszoo.hub.keras_files import write_keras_files

    keys = json.loads(text) | write_keras_files(folder, made)
    # Without blanks: Keras describes each layer at length.
    (made / CONFIG).write_text(json.dumps(keys, separators=(",", ":")) + "\n", encoding="utf-8")
    return {CONFIG: made / CONFIG, KERAS_WEIGHTS: made / KERAS_WEIGHTS}


def _with_card(files: dict[str, Path], facts: CardFacts, target: Target, made: Path) -> Plan:
    """Add picture and card, and return the plan."""
    folder, raw = facts.folder, facts.raw
    entry = None if folder.config.pair is None else get_entry(folder.config.pair)
    if entry is not None and has_family_plot(entry):
        files[PLOT] = made / PLOT
        files[PLOT].write_bytes(family_plot(entry))
    sizes = {name: path.stat().st_size for name, path in sorted(files.items())}
    files[CARD] = made / CARD
    files[CARD].write_text(make_card(dataclasses.replace(facts, files=sizes)), encoding="utf-8")
    hashes = {WEIGHTS: read_conversion(folder.path).sha256}
    if raw is not None:
        hashes[RAW_WEIGHTS] = read_conversion(raw.path).sha256
    return Plan(target, folder.config.title, files, hashes)
