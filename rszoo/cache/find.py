"""What a text, path or ref stands for: a registry entry, a model folder, or a model on the Hub.

`find` resolves a name, `find_folder` also fetches the weights. Whatever takes a model also takes what they return, so
that no command looks up a name twice.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TypeGuard, get_args

from rszoo.cache.cached import find_cached
from rszoo.cache.fill import fill_cache
from rszoo.errors import SourceNotFoundError, UnknownModelError, UsageError
from rszoo.folder.model_folder import ModelFolder, read_folder
from rszoo.hub.pull import HubModel, find_model, find_pinned
from rszoo.refs import Checkpoint, Folder, Hub, Ref, Registered, Url, parse_ref
from rszoo.registry.entry import PretrainedEntry
from rszoo.registry.lookup import lookup
from rszoo.registry.manifest import get_entry
from rszoo.weights.belonging import settle

#: What a ref stands for. The `config.json` of a folder or a model on the Hub was read.
Found = PretrainedEntry | ModelFolder | HubModel
#: A name of a model, or a model that was found.
ModelLike = str | os.PathLike[str] | Ref | Found

log = logging.getLogger("rszoo")


def names_model(model: object) -> TypeGuard[ModelLike]:
    """Whether something is a name of a model or was found, and is not a model in memory."""
    return isinstance(model, (str, os.PathLike, *get_args(Ref), *get_args(Found)))


def find(model: ModelLike) -> Found:
    """Return what a name stands for; no weights are fetched. What was found already is returned as it is.

    Raises:
        UsageError: it is no name, see `rszoo.refs.parse_ref`.
        UnknownModelError, SourceNotFoundError: there is no such model or folder.
        HubError, NetworkError: the Hub does not have it, or cannot be reached.
        ConfigError: its `config.json` is damaged, or not a ResNet-RS's.
    """
    if isinstance(model, (PretrainedEntry, ModelFolder, HubModel)):
        return model
    ref = parse_ref(model)
    found = _find(ref)
    # Seen with logging at DEBUG; the tests count these.
    log.debug("found %s: %s", ref, type(found).__name__)
    return found


def find_folder(model: ModelLike) -> ModelFolder:
    """Return the model folder of a name or of what was found, with its weights, fetched or converted now if needed.

    For a registered name: the cached one, that of the repository the manifest pins, or the published archive converted.

    Raises:
        NetworkError: it must be downloaded and cannot be; HubError, if the Hub refuses.
        IntegrityError: the download does not have the known hashes.
        OutputError: the cache cannot be written; else as `find`.
    """
    found = find(model)
    if isinstance(found, ModelFolder):
        return found
    if isinstance(found, HubModel):
        return found.fetch_weights()
    if cached := find_cached(found):
        return settle(cached)
    pinned = find_pinned(found)
    return fill_cache(found) if pinned is None else pinned.fetch_weights(found.converted.sha256)


def find_local(model: ModelLike) -> ModelFolder:
    """Return the model folder of a path, or of a registered name that is in the cache; nothing is fetched.

    Raises:
        SourceNotFoundError: it is not on this machine; else as `find`.
    """
    place = find_place(model)
    if isinstance(place, Hub):
        raise SourceNotFoundError(
            f"{place} is on the Hub, not a folder; first run `rszoo pull {place} --output FOLDER`"
        )
    found = find(place)
    folder = find_cached(found) if isinstance(found, PretrainedEntry) else find_folder(found)
    if folder is None:
        name = found.name if isinstance(found, PretrainedEntry) else found
        raise SourceNotFoundError(f"{name} is not in the cache; get it with `rszoo prefetch {name}`")
    return folder


def find_remote(model: ModelLike) -> HubModel:
    """Return a model on the Hub by its name, with or without `hf-hub:`, or by a registered name that is pinned there.

    Raises:
        UsageError: it is not on the Hub; else as `find`.
    """
    if isinstance(model, HubModel):
        return model
    place = find_place(model)
    if isinstance(place, Registered):
        place = lookup(place) or place
    if isinstance(place, PretrainedEntry):
        pin = place.converted.hub
        if pin is None:
            raise UsageError(f"{place.name} is not on the Hub; get it with `rszoo prefetch {place.name}`")
        place = Hub(pin.repo, pin.commit)
    elif isinstance(place, (Registered, Folder, Checkpoint)):
        # OWNER/NAME alone reads as a path.
        try:
            place = parse_ref(f"hf-hub:{model}")
        except UsageError as error:
            raise UsageError(f"{model} is not a model on the Hub; give hf-hub:OWNER/NAME") from error
    found = find(place) if isinstance(place, Hub) else None
    if not isinstance(found, HubModel):
        raise UsageError(f"{place} is not a model on the Hub; give hf-hub:OWNER/NAME")
    return found


def find_place(model: ModelLike) -> Ref | PretrainedEntry | ModelFolder:
    """Parse a name without looking it up; for what was found, return the folder, entry or Hub ref.

    Raises:
        UsageError: it is no name, see `rszoo.refs.parse_ref`.
    """
    if isinstance(model, (PretrainedEntry, ModelFolder)):
        return model
    return model.address if isinstance(model, HubModel) else parse_ref(model)


def _find(ref: Ref) -> Found:
    if isinstance(ref, Hub):
        return find_model(ref)
    if isinstance(ref, Url):
        raise SourceNotFoundError(
            f"{ref} is a URL, not a folder; its tensors can be read by `rszoo.load_weights` and `rszoo info "
            "--tensors`, an archive's by `rszoo-convert --ckpt`"
        )
    if isinstance(ref, Registered):
        entry = lookup(ref)
        if entry is None and not os.path.isdir(ref.name):
            # It raises, and names the nearest.
            return get_entry(ref.name)
        return entry or settle(read_folder(ref.name))
    if isinstance(ref, Checkpoint) and not Path(ref.path).is_dir():
        raise UnknownModelError(
            f"{ref} is a file, not a model; convert an archive with `rszoo-convert --ckpt {ref}`, or give a folder"
        )
    return settle(read_folder(ref.path))
