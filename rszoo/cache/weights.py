"""`rszoo.load_weights`: opens the weights of a name, path, file or URL as a lazy mapping."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rszoo.cache.find import ModelLike, find_folder, find_place
from rszoo.disk.paths import expand_user
from rszoo.errors import SourceNotFoundError, UsageError, nearest
from rszoo.hub.pull import open_hub_file
from rszoo.refs import Checkpoint, Hub, Url
from rszoo.weights.mapping import Layout, Weights
from rszoo.weights.tensor_file import LocalFile
from rszoo.weights.values import import_torch

if TYPE_CHECKING:
    from rszoo.weights.remote_file import RemoteFile


def load_weights(model: ModelLike, framework: Layout = "numpy", *, mmap: bool = False, check: bool = True) -> Weights:
    """Open the weights of a model, reading nothing but the header.

    Args:
        model: a model folder, a registered model (converted on first use), a `.safetensors` file, the URL of such a
            file or folder, `hf-hub:OWNER/NAME`, or what any of these was found to be. From a URL, or the Hub unless
            the model is in its cache, only the requested ranges are fetched.
        framework: "numpy", "torch" or "keras", whose names, layout and tensors the mapping has. See `Weights`.
        mmap: let tensors of a file on this machine be views of it, as `rszoo.create` does with `mmap=True`.
        check: compare each tensor that is read as a whole with its checksum, where the file has checksums.

    Raises:
        UnknownModelError, SourceNotFoundError: there is no such model or folder.
        WeightsError: the weights are missing or damaged; for "keras", not a ResNet-RS's.
        UsageError: the framework is none of these.
        MissingPackageError: "torch" is not installed.
        NetworkError: the URL, or the archive of a registered model, cannot be fetched; HubError, if the Hub refuses.
    """
    if framework not in get_args(Layout):
        likely = nearest(str(framework), get_args(Layout)) or get_args(Layout)
        raise UsageError(f"framework must be numpy, torch or keras, received {framework!r}; try {likely[0]!r}")
    if framework == "torch":
        import_torch()
    source = _open(model)
    return Weights(LocalFile(source, mapped=mmap) if isinstance(source, Path) else source, framework, check=check)


def _open(model: ModelLike) -> Path | RemoteFile:
    ref = find_place(model)
    if isinstance(ref, Url):
        # Imported here: a local file needs no HTTP client.
        from rszoo.weights.remote_file import RemoteFile

        return RemoteFile(ref.url)
    if isinstance(ref, Hub):
        return open_hub_file(ref)
    if isinstance(ref, Checkpoint) and ref.is_weights and not (path := expand_user(ref.path)).is_dir():
        if not path.is_file():
            raise SourceNotFoundError(f"there is no file {path}; give a model folder, a name, a file or a URL")
        return path
    return find_folder(ref).weights_path
