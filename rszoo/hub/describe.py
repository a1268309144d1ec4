"""A description of a model on the Hub without its weights: facts, files and tensors, from headers only."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from typing import Any

from rszoo.disk.regular import read_regular
from rszoo.errors import ConfigError, WeightsError
from rszoo.folder.model_folder import CONFIG, RAW_VERIFICATION, RAW_WEIGHTS, VERIFICATION, ModelConfig, parse_config
from rszoo.folder.records import read_verification
from rszoo.hub.address import check_endpoint
from rszoo.hub.failures import explained
from rszoo.hub.pull import as_loaded, fetch_file, hub_headers, open_remote
from rszoo.net.http import new_session, read_start
from rszoo.net.urls import check_online
from rszoo.refs import Hub
from rszoo.version import __version__
from rszoo.weights.belonging import settle_config
from rszoo.weights.mapping import Weights, check_header

# rszoo's keys come first in `config.json`, and this size holds them with a thousand labels; the Keras keys after them
# may be megabytes.
_HEAD_BYTES = 128 << 10


def describe_hub_model(address: Hub) -> dict[str, Any]:
    """Return a repository's description of a model as JSON values; only the header of the weights is fetched.

    Raises:
        HubError, NetworkError: there is no such model, or it cannot be fetched.
        ConfigError, WeightsError: it is damaged, or not a ResNet-RS.
    """
    check_endpoint()
    from huggingface_hub import HfApi

    check_online(str(address))
    with explained(f"look at {address}"):
        api = HfApi(library_name="rszoo", library_version=__version__)
        info = api.model_info(address.repo, revision=address.revision, files_metadata=True)
        siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
        files = {name: sibling.size for name, sibling in siblings.items()}
        found = siblings.get(address.file)
        sha256 = found.lfs.sha256 if found is not None and found.lfs else None
    address = replace(address, revision=info.sha)
    config = as_loaded(_read_config(address), address)
    record = RAW_VERIFICATION if address.file == RAW_WEIGHTS else VERIFICATION
    with Weights(open_remote(address)) as weights:
        # Values are not read for a description: without checksums, nothing vouches for the weights.
        config = settle_config(config, weights, weights.known_digest)
        return {
            "repo": address.repo,
            "commit": info.sha,
            "private": bool(info.private),
            "file": address.file,
            "sha256": sha256,
            "title": config.title,
            "pair": config.pair,
            "weights": config.weights,
            "arch": config.arch.to_dict(),
            "preprocessing": dataclasses.asdict(config.preprocessing),
            "tensors": weights.count,
            "bytes": weights.nbytes,
            "metadata": weights.metadata,
            "problem": _find_problem(weights, config),
            "checks": _read_checks(address, record, sha256) if record in files else None,
            "files": files,
        }


def _find_problem(weights: Weights, config: ModelConfig) -> str | None:
    """Return how the tensors differ from those of the network that the config says; None if they do not."""
    try:
        check_header(weights, config.arch)
    except WeightsError as error:
        return str(error)
    return None


def _read_config(address: Hub) -> ModelConfig:
    from huggingface_hub import hf_hub_url

    session = new_session()
    session.headers.update(hub_headers())
    text = read_start(session, hf_hub_url(address.repo, CONFIG, revision=address.revision), _HEAD_BYTES).decode(
        "utf-8", "ignore"
    )
    label = f"hf-hub:{address.repo}"
    try:
        # The value of the first key, if that is rszoo's.
        head, _, rest = text.partition('"rszoo":')
        if not head.strip(" \n{"):
            facts, _ = json.JSONDecoder().raw_decode(rest.lstrip())
            return parse_config(json.dumps({"rszoo": facts}), label)
    except (ValueError, RecursionError):
        # parse_config raises the error that describes the problem.
        pass
    return parse_config(read_regular(fetch_file(address, CONFIG)), label)


def _read_checks(address: Hub, file: str, sha256: str | None) -> dict[str, str]:
    """Return the result of each check recorded in the repository, if the record belongs to its weights."""
    try:
        record = read_verification(fetch_file(address, file).parent, file)
    except ConfigError:
        return {file: "damaged"}
    if record is None or record.weights_sha256 != sha256:
        return {file: "of other weights"}
    return {check.name: f"{check.status}: {check.detail}" for check in record.checks}
