"""What a model is built from: architecture, preprocessing, and how to open its weights."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rszoo.arch.config import ArchConfig
from rszoo.cache.find import ModelLike, find, find_folder
from rszoo.errors import UsageError
from rszoo.folder.model_folder import ModelConfig
from rszoo.hub.pull import HubModel
from rszoo.registry.entry import PretrainedEntry
from rszoo.registry.preprocessing import Preprocessing

if TYPE_CHECKING:
    from rszoo.weights.remote_file import RemoteFile


@dataclass(frozen=True)
class Stored:
    """What a name stands for. `open`: the tensors that are needed in, the file that has them out, None for no weights.

    `origin` is what the weights' folder says of them.
    """

    arch: ArchConfig
    preprocessing: Preprocessing | None
    origin: ModelConfig | None
    open: Callable[[Collection[str]], Path | RemoteFile | None]


def find_stored(model: ModelLike | ArchConfig, pretrained: bool) -> Stored:
    """Return what a model is built from. A folder's weights are always loaded, others only if `pretrained`.

    Raises:
        UsageError: an architecture has no pretrained weights; else as `rszoo.cache.find.find_folder`.
    """
    if isinstance(model, ArchConfig):
        if pretrained:
            raise UsageError("an ArchConfig has no pretrained weights; give a registered name or a model folder")
        return Stored(model, None, None, lambda _: None)
    found = find(model)
    if isinstance(found, HubModel):
        origin, opened = (found.config, found.open_weights) if pretrained else (None, lambda _: None)
        return Stored(found.config.arch, found.preprocessing, origin, opened)
    if isinstance(found, PretrainedEntry) and not pretrained:
        return Stored(found.arch, found.preprocessing, None, lambda _: None)
    folder = find_folder(found)
    return Stored(folder.config.arch, folder.preprocessing, folder.config, lambda _: folder.weights_path)
