"""`rszoo.pull_model`: fetches a model from the Hugging Face Hub."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rszoo.cache.find import ModelLike, find_remote
from rszoo.disk.paths import expand_user
from rszoo.errors import NetworkError, WeightsError
from rszoo.folder.writing import staged_model_folder
from rszoo.hub.pull import HubModel, copy_model, fetch_records, open_remote
from rszoo.weights.auditing import audit_folder, audit_header
from rszoo.weights.mapping import Weights


@dataclass(frozen=True)
class Pulled:
    """What was pulled: `model` the repository at its commit, `path` the folder with it."""

    model: str
    title: str
    path: Path

    def to_dict(self) -> dict[str, str]:
        """Return it as JSON values."""
        return {"model": self.model, "title": self.title, "path": str(self.path)}


def pull_model(model: ModelLike, output: str | os.PathLike[str] | None = None, *, overwrite: bool = False) -> Pulled:
    """Fetch a model from the Hugging Face Hub, and check its SHA-256, its tensors and its records.

    The header of the weights is read first: of what is not the repository's network, nothing more is downloaded.

    Args:
        model: `hf-hub:OWNER/NAME[@REVISION][/FILE.safetensors]`, with or without `hf-hub:`, or a registered name that
            the manifest has a repository of.
        output: the new model folder; only the Hub's cache if left out.
        overwrite: replace a former model folder.

    Raises:
        UsageError: it is not on the Hub.
        HubError, NetworkError: the Hub does not have it, or does not give it.
        IntegrityError: the file is not the one that it should be.
        WeightsError: it is no safetensors file, of another network, or not what the repository's account says.
        OutputError: `output` exists and `overwrite` is off, or it cannot be written.
    """
    found = find_remote(model)
    try:
        _check_header(found)
        path = _fetch(found) if output is None else _copy(found, expand_user(output), overwrite)
    except WeightsError as error:
        raise WeightsError(f"{found.address} cannot be used: {error}. Tell its owner, or pull another") from error
    return Pulled(str(found.address), found.config.title, path)


def _check_header(found: HubModel) -> None:
    """Look at the header of weights that are not in the cache: whether a model can be made of them."""
    if (found.folder / found.address.file).is_file():
        return
    # If ranges cannot be fetched, the whole file may.
    with suppress(NetworkError), Weights(open_remote(found.address)) as weights:
        audit_header(weights, found.config)


def _fetch(found: HubModel) -> Path:
    folder = found.fetch_weights()
    fetch_records(found)
    audit_folder(folder)
    return folder.path


def _copy(found: HubModel, path: Path, overwrite: bool) -> Path:
    with staged_model_folder(path, overwrite=overwrite) as copied:
        audit_folder(copy_model(found, copied))
    return path
