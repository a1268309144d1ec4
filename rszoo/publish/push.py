"""A model folder pushed to the Hugging Face Hub: checked first, then uploaded as one commit, with a card made for it.

A live model is saved and verified first. `plan.py` decides what is uploaded; transfers, retries and logins are
huggingface_hub's.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rszoo.cache.find import ModelLike, find_local, names_model
from rszoo.errors import HubError, NetworkError, VerificationError
from rszoo.folder.model_folder import (
    CARD,
    EVALUATION,
    KERAS_WEIGHTS,
    PLOT,
    RAW_CONVERSION,
    RAW_VERIFICATION,
    RAW_WEIGHTS,
    VERIFICATION,
    WEIGHTS,
    ModelFolder,
)
from rszoo.hub.address import parse_repo
from rszoo.hub.failures import explained, status_of
from rszoo.net.urls import offline_variable
from rszoo.publish.card.card import is_generated
from rszoo.publish.plan import Plan, Target, planned
from rszoo.version import __version__

if TYPE_CHECKING:
    import keras
    import torch
    from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
    from huggingface_hub.hf_api import ModelInfo

# Files of an earlier push that this one lacks are deleted: they would be taken for this one's.
_OPTIONAL = (VERIFICATION, EVALUATION, RAW_WEIGHTS, RAW_CONVERSION, RAW_VERIFICATION, KERAS_WEIGHTS, PLOT)
# Somebody else's commit in between is answered by another attempt on top of it, this often.
_ATTEMPTS = 5
_PRECONDITION_FAILED = 412

log = logging.getLogger("rszoo")


@dataclass(frozen=True)
class Pushed:
    """The outcome of a push: the commit, its page, that of the pull request if any; `changed`: it is a new commit.

    `deleted`: files of an earlier push that this one does not have. `sha256` of `model.safetensors`, in hex.
    `files`: bytes by name.
    """

    repo: str
    commit: str
    url: str
    pr_url: str | None
    changed: bool
    deleted: tuple[str, ...]
    sha256: str
    files: dict[str, int]


@dataclass(frozen=True)
class Preview:
    """What a push would upload: bytes by file name, SHA-256 of the weights among the files in hex, the card's text."""

    repo: str
    files: dict[str, int]
    sha256: dict[str, str]
    card: str


def push_to_hub(
    model: ModelLike | torch.nn.Module | keras.Model,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    keras: bool = False,
    raw_folder: ModelLike | None = None,
    force: bool = False,
    overwrite: bool = False,
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
        raw_folder: a model folder with the same checkpoint's plain weights, uploaded as `model.raw.safetensors`.
        force: push although the verification is missing or failed; the card says so.
        overwrite: push although the repository has a card that rszoo did not write.

    Raises:
        VerificationError: the folder was not verified, or that failed, or it was changed since.
        HubError: the Hub refuses, or cannot be reached.
        UsageError, SourceNotFoundError, ConfigError, WeightsError: the arguments or the folder are not usable.
        MissingPackageError: a package is not installed.
    """
    target = Target(parse_repo(repo_id), private, revision, create_pr, overwrite)
    check_login(f"push to {target.repo}")
    with _prepared(model, target, raw_folder=raw_folder, keras=keras, force=force) as plan:
        return upload(plan)


def preview_push(
    model: ModelLike | torch.nn.Module | keras.Model,
    repo_id: str,
    *,
    revision: str | None = None,
    create_pr: bool = False,
    keras: bool = False,
    raw_folder: ModelLike | None = None,
    force: bool = False,
) -> Preview:
    """Return what `push_to_hub` would upload, checked in the same way; nothing is sent or asked.

    Arguments and errors as of `push_to_hub`.
    """
    target = Target(parse_repo(repo_id), revision=revision, create_pr=create_pr)
    with _prepared(model, target, raw_folder=raw_folder, keras=keras, force=force) as plan:
        return Preview(target.repo, plan.sizes, plan.sha256, plan.card)


@contextmanager
def _prepared(model: Any, target: Target, *, raw_folder: ModelLike | None, keras: bool, force: bool) -> Iterator[Plan]:
    """Yield what a push uploads: of a folder, or of a live model saved to one."""
    with ExitStack() as stack:
        folder = find_local(model) if names_model(model) else stack.enter_context(_saved(model, force))
        raw = None if raw_folder is None else find_local(raw_folder)
        yield stack.enter_context(planned(folder, target, raw=raw, keras=keras, force=force))


def check_login(doing: str) -> set[str]:
    """Check that the user is logged in; return the names of account and organizations.

    Raises:
        HubError: the user is not logged in.
        NetworkError: offline mode is on.
    """
    from huggingface_hub import HfApi

    if variable := offline_variable():
        raise NetworkError(f"cannot {doing}: {variable} forbids the network; unset it, or do it elsewhere")
    with explained(doing, write=True):
        user = HfApi(library_name="rszoo", library_version=__version__).whoami()
        return {user["name"], *(organization["name"] for organization in user.get("orgs", ()))}


def upload(plan: Plan) -> Pushed:
    """Make the repository if need be, and upload a plan's files as one commit on top of what is there.

    What the Hub has already is not sent again. A commit of somebody else in between is kept: it tries again on top.

    Raises:
        HubError: the Hub refuses, or cannot be reached; or there is a card that rszoo did not write.
        VerificationError: the weights were changed during the upload; nothing is committed then.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    target = plan.target
    api = HfApi(library_name="rszoo", library_version=__version__)
    with explained(f"push to {target.repo}", write=True):
        _prepare(api, target)
        additions = [CommitOperationAdd(name, str(path)) for name, path in sorted(plan.files.items())]
        head, deleted, commit = _commit(api, plan, additions)
    return Pushed(
        repo=target.repo,
        commit=commit.oid,
        url=commit.commit_url,
        pr_url=commit.pr_url,
        changed=commit.oid != head,
        deleted=deleted,
        sha256=plan.sha256[WEIGHTS],
        files=plan.sizes,
    )


def _prepare(api: HfApi, target: Target) -> None:
    """Make the repository and the branch, unless they are there, or only a pull request is to be made.

    Raises:
        HubError: the repository is there and public, and was to be private.
    """
    if not target.create_pr:
        api.create_repo(target.repo, private=True if target.private else None, exist_ok=True)
    if target.private and not api.model_info(target.repo).private:
        raise HubError(
            f"{target.repo} is public, and --private was given; make it private in its settings, or push to another"
        )
    # A pull request's `refs/pr/3` is there, or cannot be made.
    if target.revision is not None and not target.revision.startswith("refs/"):
        api.create_branch(target.repo, branch=target.revision, exist_ok=True)


def _commit(
    api: HfApi, plan: Plan, additions: list[CommitOperationAdd]
) -> tuple[str | None, tuple[str, ...], CommitInfo]:
    """Commit on top of the newest state; return which that was, what was deleted, and the commit."""
    from huggingface_hub import CommitOperationDelete
    from huggingface_hub.errors import HfHubHTTPError

    target = plan.target
    for attempt in range(_ATTEMPTS):
        info = api.model_info(target.repo, revision=target.revision)
        there = {sibling.rfilename for sibling in info.siblings or ()}
        if CARD in there and not target.overwrite and not target.create_pr:
            _check_card(info, target.repo)
        if not attempt:
            _send(api, plan, additions)
        stale = tuple(name for name in _OPTIONAL if name in there and name not in plan.files)
        try:
            commit = api.create_commit(
                target.repo,
                [*additions, *map(CommitOperationDelete, stale)],
                commit_message=f"{plan.title}, by rszoo {__version__}",
                revision=target.revision,
                create_pr=target.create_pr,
                parent_commit=info.sha,
            )
        except HfHubHTTPError as error:
            if status_of(error) != _PRECONDITION_FAILED or attempt == _ATTEMPTS - 1:
                raise
            log.warning("%s was changed by another commit; committing again on top of that", target.repo)
        else:
            return info.sha, stale, commit
    raise HubError(f"{target.repo} changes all the time; push again later")


def _check_card(info: ModelInfo, repo: str) -> None:
    """Raise HubError if rszoo did not write the card that a push would replace."""
    from huggingface_hub import hf_hub_download

    text = Path(hf_hub_download(repo, CARD, revision=info.sha)).read_text(encoding="utf-8", errors="replace")
    if not is_generated(text):
        raise HubError(
            f"{repo} has a {CARD} that rszoo did not write, and a push replaces it; push to another repository, or add "
            "--overwrite (in Python overwrite=True)"
        )


def _send(api: HfApi, plan: Plan, additions: list[CommitOperationAdd]) -> None:
    """Upload the large files that the Hub does not have, and make sure that they are what was checked.

    Raises:
        VerificationError: they are not.
    """
    from huggingface_hub import constants

    weights = [addition for addition in additions if addition.path_in_repo in plan.sha256]
    known = [(addition, plan.sha256[addition.path_in_repo]) for addition in weights]
    for addition, sha256 in known:
        # LFS wants the hash first, and the Hub holds what it gets against it. Xet computes it while it reads, and would
        # take another's word for it.
        if importlib.util.find_spec("hf_xet") is None or constants.HF_HUB_DISABLE_XET:
            addition.upload_info.sha256 = bytes.fromhex(sha256)
    target = plan.target
    api.preupload_lfs_files(
        target.repo, additions, revision=target.revision, create_pr=target.create_pr, free_memory=False
    )
    for addition, sha256 in known:
        if addition.upload_info.sha256.hex() != sha256:
            raise VerificationError(
                f"{plan.files[addition.path_in_repo]} was changed while it was uploaded; nothing was committed"
            )


@contextmanager
def _saved(model: Any, force: bool) -> Iterator[ModelFolder]:
    """Save a live model to a temporary folder and verify it there.

    Raises:
        VerificationError: a check failed, unless `force`.
    """
    from rszoo.models.saving import save
    from rszoo.verify.api import verify_model

    with tempfile.TemporaryDirectory(prefix="rszoo-") as temporary:
        folder = save(model, Path(temporary) / "model")
        failed = [f"{check.name}: {check.detail}" for check in verify_model(folder).failed]
        if failed and not force:
            raise VerificationError(
                f"the model failed its verification ({'; '.join(failed)}); or push it with force=True, which the card "
                "will state"
            )
        yield folder
