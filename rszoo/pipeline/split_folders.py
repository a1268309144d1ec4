"""Which folders of a data set are its splits: by name, and by what is in them.

A folder called `train` is a split if it has class folders with images. If it has images itself, beside other folders
with images, it is a class of that name (locomotives). What could be either is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rszoo.errors import UsageError, summarize
from rszoo.pipeline.class_folders import holds_images
from rszoo.pipeline.file_kinds import split_of
from rszoo.pipeline.files import Entries

LAYOUTS = (
    "expected: TFRecords named train-00000-of-01024 and validation-00000-of-00128, or images as "
    "DATA/train/CLASS/x.jpg and DATA/validation/CLASS/x.jpg, or DATA/CLASS/x.jpg"
)


def find_splits(root: str, entries: Entries) -> Mapping[str, str] | None:
    """Return the folder of each split in `root`; None if its folders are classes.

    Raises:
        UsageError: the folders could be either, or two are of one split.
        SourceNotFoundError: a folder cannot be read.
    """
    named = [(split, name) for name in entries.folders if (split := split_of(name))]
    if not named:
        return None
    holds = {name: holds_images(root, name) for _, name in named}
    deep = {name for name, (_, below) in holds.items() if below}
    if not deep:
        if next(_others(root, entries, holds), None) is not None:
            return None
        first = named[0][1]
        if holds[first][0]:
            raise UsageError(
                f"{root}/{first} has images, but no class folders; move them into {root}/{first}/CLASS, or, if {first} "
                f"is a class, into {root}/train/{first}"
            )
        raise UsageError(f"no class folders with images in {root}/{first}; {LAYOUTS}")
    if {"train", "validation"} <= {split for split, name in named if name in deep}:
        return _by_split(root, named)
    # Only one of them, and other classes beside it: the folders inside may be parts of a class of that name.
    if others := list(_others(root, entries, holds)):
        name = sorted(deep)[0]
        raise UsageError(
            f"{root}/{name} has folders of images, as a split has, and beside it are images in {summarize(others)}, as "
            f"if {name} were a class; give {root}/{name} if its folders are the classes, or else move its images up "
            f"into {name} itself"
        )
    return _by_split(root, named)


def _others(root: str, entries: Entries, holds: Mapping[str, object]) -> Iterator[str]:
    """Yield the folders that are not named like a split and have images."""
    return (name for name in entries.folders if name not in holds and any(holds_images(root, name)))


def _by_split(root: str, named: list[tuple[str, str]]) -> dict[str, str]:
    splits: dict[str, str] = {}
    for split, name in named:
        if split in splits and split != "test":
            raise UsageError(f"{root} has two folders of {split} images, {splits[split]} and {name}; keep one")
        splits[split] = name
    return splits
