"""What a model is built from: architecture, preprocessing, and the file of its weights."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rszoo.arch.config import ArchConfig
from rszoo.cache.find import ModelLike, find, find_folder
from rszoo.errors import UsageError
from rszoo.folder.model_folder import ModelConfig, ModelFolder
from rszoo.hub.pull import HubModel
from rszoo.registry.entry import PretrainedEntry
from rszoo.registry.preprocessing import Preprocessing

if TYPE_CHECKING:
    from rszoo.weights.remote_file import RemoteFile


@dataclass(frozen=True)
class Stored:
    """What a name stands for. `file` has its weights, None for none; it is remote if only a part of it is needed.

    `origin` is what the weights' folder says of them.
    """

    arch: ArchConfig
    preprocessing: Preprocessing | None
    origin: ModelConfig | None
    file: Path | RemoteFile | None


def find_stored(
    model: ModelLike | ArchConfig, pretrained: bool, needed: Callable[[ArchConfig], Collection[str]]
) -> Stored:
    """Return what a model is built from. A folder's weights are always loaded, others only if `pretrained`.

    `needed`: which tensors of a stored network will be read, by state dict key.

    Raises:
        UsageError: an architecture has no pretrained weights; else as `rszoo.cache.find.find_folder`.
    """
    if isinstance(model, ArchConfig):
        if pretrained:
            raise UsageError("an ArchConfig has no pretrained weights; give a registered name or a model folder")
        return Stored(model, None, None, None)
    found = find(model)
    if not pretrained and not isinstance(found, ModelFolder):
        arch = found.arch if isinstance(found, PretrainedEntry) else found.config.arch
        return Stored(arch, found.preprocessing, None, None)
    if isinstance(found, HubModel):
        opened = found.open_weights(needed(found.config.arch))
        if not isinstance(opened, ModelFolder):
            return Stored(found.config.arch, found.preprocessing, found.config, opened)
        found = opened
    folder = find_folder(found)
    return Stored(folder.config.arch, folder.preprocessing, folder.config, folder.weights_path)
