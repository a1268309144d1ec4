"""The images of one class: its folder with all folders inside, as torchvision's `ImageFolder` has it.

Names with a known suffix are not looked into. Of the others, the first bytes of a few decide for those of their folder
and suffix, so that a bucket of a million images without suffixes costs a few reads for each class.
"""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rszoo.pipeline.file_kinds import (
    IMAGE_SUFFIXES,
    is_known,
    kind_name,
    looks_like_image,
    nfc,
    split_name,
)
from rszoo.pipeline.files import Entries, is_local, list_folder, read_start

#: How folders are counted that a link inside leads back to.
LOOP = "links to a folder above"

# Of so many files of one suffix in one folder each is looked into; of more, this many of them decide for all.
_LOOKED_INTO = 8


@dataclass
class Found:
    """The images of a folder and the folders inside it: names below the root, and counts as of `Scan`."""

    names: list[str] = field(default_factory=list)
    taken: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    below: int = 0
    twins: int = 0


def find_images(root: str, folder: str) -> Found:
    """Return the images of the class folder `folder` of `root`, sorted by name.

    Raises:
        SourceNotFoundError: a folder cannot be read.
    """
    found = Found()
    for name, entries in _walk(root, folder, found.left):
        images, left = choose_images(posixpath.join(root, name), entries.files)
        parts = [split_name(image) for image in images]
        found.names += [f"{name}/{image}" for image in images]
        found.taken.update(kind_name(suffix) for _, suffix in parts)
        found.left.update(entries.left + left)
        found.twins += len(images) - len({stem for stem, _ in parts})
        found.below += len(images) if name != folder else 0
    found.names.sort(key=nfc)
    return found


def holds_images(root: str, folder: str) -> tuple[bool, bool]:
    """Return whether a folder has images directly, and whether it has any in the folders inside it.

    Raises:
        SourceNotFoundError: a folder cannot be read.
    """
    direct = False
    for name, entries in _walk(root, folder, Counter()):
        if choose_images(posixpath.join(root, name), entries.files)[0]:
            if name != folder:
                return direct, True
            direct = True
    return direct, False


def choose_images(folder: str, files: Sequence[str]) -> tuple[list[str], Counter[str]]:
    """Return which files of a folder are images, in order, and how many are not, by kind."""
    left: Counter[str] = Counter()
    odd: dict[str, list[str]] = {}
    taken = []
    for name in files:
        suffix = split_name(name)[1]
        if suffix in IMAGE_SUFFIXES:
            taken.append(name)
        elif is_known(suffix):
            left[kind_name(suffix)] += 1
        else:
            odd.setdefault(suffix, []).append(name)
    for suffix, names in odd.items():
        images = _look_into(folder, names)
        taken += images
        left[kind_name(suffix)] += len(names) - len(images)
    return (sorted(taken, key=nfc) if odd else taken), +left


def _look_into(folder: str, names: list[str]) -> list[str]:
    """Return which files are images by their first bytes.

    If one of a sample is, those that were not looked into are taken too: what is no image is named when it is read.
    """
    sample = names[:: -(-len(names) // _LOOKED_INTO)]
    others = {
        name
        for name in sample
        if (start := read_start(posixpath.join(folder, name))) is None or not looks_like_image(start)
    }
    return [] if len(others) == len(sample) else [name for name in names if name not in others]


def _walk(root: str, folder: str, left: Counter[str]) -> Iterator[tuple[str, Entries]]:
    """Yield a folder and the folders inside it, each with its entries; counts loops of links in `left`."""
    above = os.path.realpath(root) if is_local(root) else ""
    waiting: list[tuple[str, tuple[str, ...]]] = [(folder, (above,))]
    while waiting:
        name, chain = waiting.pop()
        path = posixpath.join(root, name)
        if is_local(root):
            real = os.path.realpath(path) if os.path.islink(path) else os.path.join(chain[-1], posixpath.basename(name))
            if any(f"{one}{os.sep}".startswith(f"{real.rstrip(os.sep)}{os.sep}") for one in chain):
                left[LOOP] += 1
                continue
            chain = (*chain, real)
        entries = list_folder(path)
        yield name, entries
        waiting += [(f"{name}/{inner}", chain) for inner in reversed(entries.folders)]
