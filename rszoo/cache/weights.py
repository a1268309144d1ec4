"""`rszoo.load_weights`: whatever names a model's weights in, a lazy mapping of its tensors out."""

from __future__ import annotations

import os
from typing import get_args

from rszoo.cache.fill import find_folder
from rszoo.disk.paths import expand_user
from rszoo.errors import SourceNotFoundError, UsageError, nearest
from rszoo.hub.address import parse_address
from rszoo.net.urls import is_hub_name, is_url
from rszoo.weights.mapping import Layout, Weights
from rszoo.weights.values import import_torch


def load_weights(model: str | os.PathLike[str], framework: Layout = "numpy") -> Weights:
    """Open the weights of a model, reading nothing but the header.

    Args:
        model: a model folder, a registered model (converted on first use), a `.safetensors` file, or the URL of such
            a file or folder, of which only the ranges are fetched that are asked for; so too of `hf-hub:OWNER/NAME`,
            unless it is in the Hub's cache.
        framework: "numpy", "torch" or "keras", whose names, layout and tensors the mapping has. See `Weights`.

    Raises:
        UnknownModelError, SourceNotFoundError: there is no such model or folder.
        WeightsError: the weights are missing or damaged; for "keras", not a ResNet-RS's.
        UsageError: the framework is none of these.
        MissingPackageError: "torch" is not installed.
        NetworkError: the URL, or the archive of a registered model, cannot be had; HubError, if the Hub refuses.
    """
    if framework not in get_args(Layout):
        likely = nearest(str(framework), get_args(Layout)) or get_args(Layout)
        raise UsageError(f"framework must be numpy, torch or keras, received {framework!r}; try {likely[0]!r}")
    if framework == "torch":
        import_torch()
    if is_url(model):
        from rszoo.weights.remote_file import RemoteFile

        return Weights(RemoteFile(str(model)), framework)
    if is_hub_name(model):
        from rszoo.hub.pull import open_hub_file

        return Weights(open_hub_file(parse_address(str(model))), framework)
    path = expand_user(model)
    if path.suffix == ".safetensors" and not path.is_dir():
        if not path.is_file():
            raise SourceNotFoundError(f"there is no file {path}; give a model folder, a name, a file or a URL")
        return Weights(path, framework)
    return Weights(find_folder(model).weights_path, framework)
