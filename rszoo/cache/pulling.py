"""`rszoo.pull_model`: fetches a model from the Hugging Face Hub."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from rszoo.cache.find import ModelLike, find_remote
from rszoo.disk.paths import expand_user
from rszoo.folder.writing import staged_model_folder
from rszoo.hub.pull import copy_model, fetch_records


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
    """Fetch a model from the Hugging Face Hub, and check its SHA-256.

    Args:
        model: `hf-hub:OWNER/NAME[@REVISION][/FILE.safetensors]`, with or without `hf-hub:`, or a registered name that
            the manifest has a repository of.
        output: the new model folder; only the Hub's cache if left out.
        overwrite: replace a former model folder.

    Raises:
        UsageError: it is not on the Hub.
        HubError, NetworkError: the Hub does not have it, or does not give it.
        IntegrityError: the file is not the one that it should be.
        OutputError: `output` exists and `overwrite` is off, or it cannot be written.
    """
    found = find_remote(model)
    if output is None:
        path = found.fetch_weights().path
        fetch_records(found)
    else:
        path = expand_user(output)
        with staged_model_folder(path, overwrite=overwrite) as folder:
            copy_model(found, folder)
    return Pulled(str(found.address), found.config.title, path)
