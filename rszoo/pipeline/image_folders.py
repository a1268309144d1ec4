"""Folders of images: one folder for each class, in `train` and `validation` (or `val`), or without splits.

Classes are the sorted names of the folders. Without splits a tenth of each class is held out: the images whose names
have the smallest SHA-256, so they are the same on every machine and for every location of the folder.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from rszoo.errors import SplitNotFoundError, UsageError, summarize
from rszoo.pipeline.files import is_folder, list_folder

#: Allowed folder names for each split.
SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val")}
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
LAYOUTS = (
    "expected: TFRecords named train-00000-of-01024 and validation-00000-of-00128, or images as "
    "DATA/train/CLASS/x.jpg and DATA/validation/CLASS/x.jpg, or DATA/CLASS/x.jpg"
)
_HELD_OUT = 10
_THREADS = 16


class Listing(NamedTuple):
    """Images by class: names relative to `root`, labels from 0, and the classes' names.

    `folder` is the split's folder in the data, "" if they have no splits.
    """

    root: str
    names: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    folder: str = ""


def list_images(root: str, names: Sequence[str], split: str) -> Listing:
    """Return the images of a split of the folder `root`, which contains `names`.

    Raises:
        SplitNotFoundError: it has no such split.
        SourceNotFoundError: it cannot be read.
        UsageError: its layout is not supported, or a class has no images.
    """
    of_splits = {name for folders in SPLIT_FOLDERS.values() for name in folders} & set(names)
    if not of_splits:
        return _list_split(root, _list_classes(root), split)
    if split == "all":
        raise UsageError(f"{root} already has splits ({', '.join(sorted(of_splits))}); choose one of them")
    folder = next((name for name in SPLIT_FOLDERS[split] if name in of_splits), None)
    if folder is None:
        raise SplitNotFoundError(
            f"no {split} split in {root}, only {', '.join(sorted(of_splits))}; create {root}/{split}/CLASS/x.jpg"
        )
    found = _list_classes(posixpath.join(root, folder))
    # A class without validation images must not shift the labels of the classes after it.
    classes = found if "train" not in of_splits or folder == "train" else _list_classes(posixpath.join(root, "train"))
    if unknown := sorted(set(found) - set(classes)):
        raise UsageError(f"{root}/{folder} has classes that train does not have: {summarize(unknown)}")
    listing = _list_split(posixpath.join(root, folder), found, "all")
    labels = tuple(classes.index(listing.classes[label]) for label in listing.labels)
    return listing._replace(labels=labels, classes=classes, folder=folder)


def _list_classes(root: str) -> tuple[str, ...]:
    classes = tuple(name for name in list_folder(root) if is_folder(posixpath.join(root, name)))
    if not classes:
        raise UsageError(f"no class folders in {root}; {LAYOUTS}")
    return classes


def _list_split(root: str, classes: tuple[str, ...], split: str) -> Listing:
    def images_of(name: str) -> list[str]:
        found = [f"{name}/{file}" for file in list_folder(posixpath.join(root, name)) if _is_image(file)]
        return found if split == "all" else _part(found, split)

    with ThreadPoolExecutor(_THREADS) as pool:
        images = list(pool.map(images_of, classes))
    if split != "validation" and (empty := [name for name, found in zip(classes, images, strict=True) if not found]):
        raise UsageError(
            f"no images in {len(empty)} of {len(classes)} classes of {root}: {summarize(empty)}; {LAYOUTS}"
        )
    if not any(images):
        raise UsageError(f"no class of {root} has more than one image to split; create {root}/validation/CLASS/x.jpg")
    labels = tuple(label for label, found in enumerate(images) for _ in found)
    return Listing(root, tuple(name for found in images for name in found), labels, classes)


def _is_image(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES)


def _part(names: list[str], split: str) -> list[str]:
    """Return a split's part of one class's images."""
    by_hash = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    # At least one image, but never the only one.
    count = min(max(1, len(names) // _HELD_OUT), len(names) - 1)
    held_out = set(by_hash[:count]) if count > 0 else set()
    return [name for name in names if (name in held_out) == (split == "validation")]
