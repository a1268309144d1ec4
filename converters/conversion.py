"""`rszoo.convert_checkpoint`: converts a checkpoint to a model folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from converters.convert import Identity, convert
from converters.read.source import Source, find_entries, find_source, locate
from rszoo.errors import UsageError
from rszoo.folder.model_folder import ModelFolder, WeightSet, read_folder
from rszoo.refs import Checkpoint, Folder, Ref


@dataclass(frozen=True)
class Conversion:
    """What a conversion made: the model folder, and the account that its `conversion.json` holds."""

    folder: ModelFolder
    account: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the account."""
        return self.account


def convert_checkpoint(
    source: str | os.PathLike[str] | Ref | Source,
    output: str | os.PathLike[str] | None = None,
    *,
    weights: WeightSet = "ema",
    identity: Identity | None = None,
    overwrite: bool = False,
    keep_archive: bool = False,
    drop_background: bool = False,
    allow_weak_source: bool = False,
) -> Conversion:
    """Convert a checkpoint to a model folder, accounting for every variable.

    Args:
        source: archive, folder, prefix (`folder/model.ckpt`), file of Keras 2's or PyTorch's, URL, registered name, or
            `hf-hub:OWNER/NAME` of timm's.
        output: the new folder; named after the registered model if left out.
        weights: "ema", the averages whose accuracy is published, or "raw".
        identity: what the checkpoint is, where its name does not say.
        overwrite: replace a former model folder.
        keep_archive: keep what is downloaded, in the cache's archives folder.
        drop_background: leave out the first of 1001 classes, which no image of ImageNet has.
        allow_weak_source: of a registered name, if nothing else can be had, also take a copy that no hash proves.

    Raises:
        UsageError: `output` is left out and `source` names no registered model; else as `converters.convert.convert`.
    """
    found = find_source(source)
    places = [] if output is None else [os.fspath(output)]
    if output is None:
        # Of a name with two, the content decides.
        places = [entry.name for entry in find_entries(found)]
        if not places:
            if isinstance(found, (Folder, Checkpoint)):
                with locate(found):
                    pass  # That it is missing matters more than the missing output.
            raise UsageError(f"{found} names no registered model; give --output FOLDER")
    account = convert(
        found,
        places,
        weights=weights,
        identity=identity,
        overwrite=overwrite,
        keep_archive=keep_archive,
        drop_background=drop_background,
        allow_weak_source=allow_weak_source,
    )
    return Conversion(read_folder(places[0] if len(places) == 1 else account["model"]), account)
