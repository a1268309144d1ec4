"""A bare word to the registered pair that it names: the registry always wins over a folder of that name."""

from __future__ import annotations

import functools
import logging
import os

from rszoo.errors import UnknownModelError
from rszoo.refs import Folder, Registered
from rszoo.registry.entry import PretrainedEntry
from rszoo.registry.manifest import get_entry

log = logging.getLogger("rszoo")


def lookup(ref: Registered) -> PretrainedEntry | None:
    """Return the pair of a bare word, or None if the registry has no such name.

    A warning says so, once, where a folder of that name lies in the working directory.
    """
    try:
        entry = get_entry(ref.name)
    except UnknownModelError:
        return None
    if os.path.isdir(ref.name):
        _say_shadowed(ref.name, os.getcwd())
    return entry


@functools.cache
def _say_shadowed(name: str, _here: str) -> None:
    log.warning("%s is the registered model; %s is the folder here", name, Folder(name))
