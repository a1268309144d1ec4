"""The weights that a training starts from: what a user names in, what was found, once, out."""

from __future__ import annotations

import os
from dataclasses import dataclass

from rszoo.arch.config import ArchConfig
from rszoo.cache.find import Found, ModelLike, find
from rszoo.folder.model_folder import ModelFolder
from rszoo.hub.pull import HubModel
from rszoo.registry.entry import PretrainedEntry
from rszoo.registry.preprocessing import Preprocessing


@dataclass(frozen=True)
class Start:
    """Weights to start from. `name`: what a run's folder records, the same wherever a model folder lies."""

    name: str
    found: Found

    @property
    def title(self) -> str:
        """The model's name for people."""
        return self.found.name if isinstance(self.found, PretrainedEntry) else self.found.config.title

    @property
    def arch(self) -> ArchConfig:
        """The architecture."""
        return self.found.arch if isinstance(self.found, PretrainedEntry) else self.found.config.arch

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing that belongs to the weights."""
        return self.found.preprocessing


def find_start(init: ModelLike) -> Start:
    """Look up weights to start from, without fetching them. Raises as `rszoo.cache.find.find`."""
    found = find(init)
    if isinstance(found, ModelFolder):
        return Start(found.path.name, found)
    if isinstance(init, (str, os.PathLike)):
        # As it was typed: a run's folder compares it with what is typed later.
        return Start(os.fspath(init), found)
    return Start(str(found.address) if isinstance(found, HubModel) else found.name, found)
