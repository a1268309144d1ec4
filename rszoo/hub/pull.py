"""Models from the Hugging Face Hub: takes an address, returns a folder in the Hub's cache, or ranges of a remote file.

Files go to huggingface_hub's cache, where timm and others find them too. Only the needed files are fetched, all from
one commit. A model that is named by its commit and is in the cache makes no request.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rszoo.arch.names import torch_name
from rszoo.arch.walk import iter_tensors
from rszoo.disk.regular import read_regular, read_regular_text
from rszoo.errors import HubError, IntegrityError, NetworkError, RszooError
from rszoo.folder.model_folder import (
    CONFIG,
    CONVERSION,
    EVALUATION,
    RAW_CONVERSION,
    RAW_VERIFICATION,
    RAW_WEIGHTS,
    VERIFICATION,
    WEIGHTS,
    ModelConfig,
    ModelFolder,
    WeightKind,
    parse_config,
    strip_config,
)
from rszoo.folder.timm_config import timm_lineage, timm_pair
from rszoo.hub.address import check_endpoint
from rszoo.hub.checked import check_file
from rszoo.hub.failures import explained, status_of
from rszoo.net.urls import offline_variable
from rszoo.refs import Hub
from rszoo.registry.entry import PretrainedEntry
from rszoo.registry.manifest import get_entry
from rszoo.registry.preprocessing import Preprocessing
from rszoo.version import __version__
from rszoo.weights.belonging import settle
from rszoo.weights.mapping import Weights

if TYPE_CHECKING:
    from rszoo.weights.remote_file import RemoteFile

# If nearly all of a file is needed, the whole file is fetched and cached, so that the next process need not fetch it.
_NEARLY_WHOLE = 0.9
_NOT_FOUND = 404

log = logging.getLogger("rszoo")


@dataclass(frozen=True)
class HubModel:
    """A model on the Hub whose `config.json` was read. `address` has the commit; `folder` is that commit's cache."""

    address: Hub
    folder: Path
    config: ModelConfig

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing that belongs to the weights."""
        return self.config.preprocessing

    def fetch_weights(self, sha256: str | None = None) -> ModelFolder:
        """Return the model folder in the Hub's cache, with the weights file, fetched if necessary and checked.

        Args:
            sha256: expected hash of the weights file, in hex; by default the one that the Hub gives.

        Raises:
            HubError, NetworkError: it is not in the cache and cannot be fetched.
            IntegrityError: the file does not have the expected hash.
        """
        check_file(fetch_file(self.address, self.address.file), self.address, sha256)
        folder = settle(ModelFolder(self.folder, self.config, self.address.file))
        if self.address.file != RAW_WEIGHTS:
            return folder
        with Weights(folder.weights_path) as weights:
            return replace(folder, config=replace(folder.config, digest=weights.known_digest))

    def open_weights(self, needed: Collection[str]) -> ModelFolder | RemoteFile:
        """Return the folder in the cache; or the remote file, if it is not cached and only a part is needed.

        A remote file is the one that the config speaks of.

        `needed`: tensors by state dict key. Raises as `fetch_weights`.
        """
        sizes = {torch_name(spec): spec.size for spec in iter_tensors(self.config.arch)}
        much = sum(sizes[name] for name in needed if name in sizes) > _NEARLY_WHOLE * sum(sizes.values())
        if much or offline_variable() or _cached(self.address, self.address.file):
            return self.fetch_weights()
        remote = open_remote(self.address)
        known = Weights(remote).known_digest
        if self.config.digest in (None, known):
            return remote
        remote.close()
        return self.fetch_weights()


def copy_model(model: HubModel, folder: Path, sha256: str | None = None) -> ModelFolder:
    """Copy a model of the Hub into an empty folder, in the form of a converted model: weights, account, checks.

    Return that folder.

    Raises as `HubModel.fetch_weights`, and OSError if the folder cannot be written.
    """
    raw, found = model.address.file == RAW_WEIGHTS, model.fetch_weights(sha256)
    shutil.copyfile(found.weights_path, folder / WEIGHTS)
    config = strip_config(read_regular_text(model.folder / CONFIG))
    (folder / CONFIG).write_text(found.config.to_json() if raw else config, encoding="utf-8")
    # Records of other weights are left behind.
    for name, path in ({} if found.changed else fetch_records(model)).items():
        shutil.copyfile(path, folder / name)
    return replace(found, path=folder, weights_file=WEIGHTS)


def fetch_records(model: HubModel) -> dict[str, Path]:
    """Return the records of the weights by their name in a model folder: account, checks, measured accuracies.

    timm's own repositories have none, and one that was pushed with --force may lack the checks.

    Raises:
        HubError: a record exists but cannot be fetched.
    """
    names = {CONVERSION: RAW_CONVERSION, VERIFICATION: RAW_VERIFICATION}
    if model.address.file != RAW_WEIGHTS:
        names = {name: name for name in (CONVERSION, VERIFICATION, EVALUATION)}
    found = {}
    for name, stored in names.items():
        try:
            found[name] = fetch_file(model.address, stored)
        except NetworkError as error:
            # It does not exist; or, offline, it may not exist.
            if status_of(error) != _NOT_FOUND and (offline_variable() is None or isinstance(error, HubError)):
                raise
    return found


def find_model(address: Hub) -> HubModel:
    """Read the `config.json` of a model on the Hub.

    Raises:
        HubError, NetworkError: there is no such repository, revision or file, or it cannot be fetched.
        UsageError: HF_ENDPOINT is no URL.
        ConfigError: its `config.json` is not that of a ResNet-RS.
    """
    check_endpoint()
    path = fetch_file(address, CONFIG)
    config = parse_config(read_regular(path), f"hf-hub:{address.repo}")
    if lineage := timm_lineage(address.repo):
        log.warning("%s: %s; parity with the original graph was not checked by rszoo", address.repo, lineage)
    return HubModel(replace(address, revision=path.parent.name), path.parent, as_loaded(config, address))


def as_loaded(config: ModelConfig, address: Hub) -> ModelConfig:
    """Return a repository's config for the addressed file; timm's own repositories are labeled as such."""
    if lineage := timm_lineage(address.repo):
        weights: WeightKind = "ema" if lineage.startswith("Google's") else "trained"
        config = replace(config, title=f"{address.repo} ({lineage})", weights=weights)
        if pair := timm_pair(address.repo):
            # What the published accuracy belongs to; timm's crop loses some of it.
            config = replace(config, preprocessing=get_entry(pair).preprocessing)
    # The digest is of the other file.
    return replace(config, weights="raw", digest=None) if address.file == RAW_WEIGHTS else config


def find_pinned(entry: PretrainedEntry) -> HubModel | None:
    """Return a registered model from the repository and commit pinned in the manifest; its weights are checked.

    None if there is no pin, or the weights cannot be fetched: then use the published archive.
    """
    pin = entry.converted.hub
    if pin is None:
        return None
    try:
        model = find_model(Hub(pin.repo, pin.commit))
        if model.config.pair != entry.name:
            raise IntegrityError(f"it holds {model.config.title}")
        model.fetch_weights(entry.converted.sha256)
        return model
    except RszooError as error:
        if not offline_variable():
            log.warning("%s: cannot use hf-hub:%s (%s); using the published archive", entry.name, pin.repo, error)
        return None


def open_hub_file(address: Hub) -> Path | RemoteFile:
    """Return the weights file of a repository: from the Hub's cache, or a remote file that is read by ranges.

    Raises as `find_model`.
    """
    check_endpoint()
    if offline_variable() is None:
        address = _at_commit(address)
    if path := _cached(address, address.file):
        check_file(path, address, None)
        return path
    if offline_variable():
        return fetch_file(address, address.file)
    return open_remote(address)


def fetch_file(address: Hub, file: str) -> Path:
    """Return a file of a repository in the Hub's cache, fetched if necessary.

    Raises:
        HubError, NetworkError: it does not exist, or cannot be fetched.
    """
    variable, cached = offline_variable(), _cached(address, file)
    if cached is not None and variable:
        return cached
    if variable:
        raise NetworkError(
            f"{file} of {address} is not in the Hub's cache, and {variable} forbids the network; on a machine with "
            f"network access, run `rszoo pull {address} --output FOLDER`, copy FOLDER here, and use it instead of the "
            "name"
        )
    try:
        return _download(address, file)
    except HubError as error:
        # Continue with the cache only if the Hub did not answer or had a server error.
        if cached is None or (status_of(error) or 500) < 500:
            raise
        log.warning("%s; using the files in the Hub's cache", error)
        return cached


def _download(address: Hub, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    with explained(f"load {file} of {address}"):
        path = hf_hub_download(
            address.repo, file, revision=address.revision, library_name="rszoo", library_version=__version__
        )
    return Path(path)


def _cached(address: Hub, file: str) -> Path | None:
    """Return a file in the Hub's cache, for the commit or the last known commit of the branch; None if it is absent."""
    from huggingface_hub import try_to_load_from_cache

    with explained(f"find {address}"):
        path = try_to_load_from_cache(address.repo, file, revision=address.revision)
    return Path(path) if isinstance(path, str) and os.path.isfile(path) else None


def _at_commit(address: Hub) -> Hub:
    """Ask the Hub for the commit of a revision, unless it is one. If the Hub does not answer, a cached file is used."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    if address.is_pinned:
        return address
    try:
        with explained(f"find {address}"):
            found = get_hf_file_metadata(hf_hub_url(address.repo, address.file, revision=address.revision))
    except HubError as error:
        if _cached(address, address.file) is None or (status_of(error) or 500) < 500:
            raise
        log.warning("%s; using the files in the Hub's cache", error)
        return address
    return replace(address, revision=found.commit_hash or address.revision)


def open_remote(address: Hub) -> RemoteFile:
    """Open the weights file of a repository for reading by ranges. Raises as `RemoteFile`."""
    from huggingface_hub import hf_hub_url

    from rszoo.weights.remote_file import RemoteFile

    return RemoteFile(hf_hub_url(address.repo, address.file, revision=address.revision), hub_headers())


def hub_headers() -> dict[str, str]:
    """Return the headers of requests to the Hub, with the access token if there is a login."""
    from huggingface_hub.utils import build_hf_headers

    headers: dict[str, str] = build_hf_headers(library_name="rszoo", library_version=__version__)
    return headers
