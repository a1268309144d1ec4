"""Initial weights of a training: a name in, what it stands for out."""

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
    """Weights to start from. `name` is recorded in the run's folder; it does not depend on where a model folder is."""

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
    def labels(self) -> tuple[str, ...] | None:
        """The names of its classes."""
        return self.found.labels if isinstance(self.found, PretrainedEntry) else self.found.config.labels

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing that belongs to the weights."""
        return self.found.preprocessing


def find_start(init: ModelLike) -> Start:
    """Look up initial weights, without fetching them. Raises as `rszoo.cache.find.find`."""
    found = find(init)
    if isinstance(found, ModelFolder):
        return Start(found.path.name, found)
    if isinstance(init, (str, os.PathLike)):
        # As it was typed: a run's folder compares it with what is typed later.
        return Start(os.fspath(init), found)
    return Start(str(found.address) if isinstance(found, HubModel) else found.name, found)
