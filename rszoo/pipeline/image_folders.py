"""Folders of images: one folder for each class, in `train` and `validation` (or `val`, `valid`), or without splits.

Classes are the names of the folders in Unicode's composed form (NFC), sorted; paths keep the names as they are on the
disk. Without splits a tenth of each class is held out: the images whose names have the smallest SHA-256, so they are
the same on every machine and for every location of the folder.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

from rszoo.disk.paths import to_text
from rszoo.errors import SplitNotFoundError, UsageError, nearest, summarize
from rszoo.pipeline.class_folders import Found, choose_images, find_images
from rszoo.pipeline.file_kinds import kind_name, nfc, split_name
from rszoo.pipeline.files import Entries, list_folder
from rszoo.pipeline.scan import OUTSIDE, SHARDS, Scan, describe_kinds, differ_only_in_case
from rszoo.pipeline.shard_folders import is_shard_like
from rszoo.pipeline.split_folders import LAYOUTS, find_splits

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
    scan: Scan
    folder: str = ""


def list_images(root: str, entries: Entries, split: str) -> Listing:
    """Return the images of a split of the folder `root`, which has `entries`.

    Raises:
        SplitNotFoundError: it has no such split.
        SourceNotFoundError: it cannot be read.
        UsageError: its layout is not supported, or a class has no images.
    """
    splits = find_splits(root, entries)
    if splits is None:
        classes = _classes(root, entries)
        return _list(root, entries, classes, tuple(classes), split)
    if split == "all":
        raise UsageError(f"{root} already has splits ({', '.join(sorted(splits.values()))}); choose one of them")
    if split not in splits:
        raise SplitNotFoundError(
            f"no {split} split in {root}, only {', '.join(sorted(splits.values()))}; create {root}/{split}/CLASS/x.jpg"
        )
    inner = posixpath.join(root, splits[split])
    below = list_folder(inner)
    found = order = _classes(inner, below)
    if split != "train" and "train" in splits:
        # A class without validation images must not shift the labels of the classes after it.
        train = posixpath.join(root, splits["train"])
        order = _classes(train, list_folder(train))
        _check_known(inner, found, order)
    listing = _list(inner, below, found, tuple(order), split, whole=True)
    scan = listing.scan
    used = {splits[name] for name in ("train", "validation") if name in splits}
    scan = replace(
        scan,
        left=_sum(scan.left, _loose(root, entries)),
        left_folders=tuple(name for name in entries.folders if name not in used),
    )
    return listing._replace(folder=splits[split], scan=scan)


def _classes(root: str, entries: Entries) -> dict[str, str]:
    """Return the class folders by the class's name, in the order of the classes.

    Raises:
        UsageError: there are none, or two have one name.
    """
    if not entries.folders:
        files = _loose(root, entries)
        has = f" (it has {describe_kinds(files)})" if files else ""
        raise UsageError(f"no class folders in {root}{has}; {LAYOUTS}")
    classes: dict[str, str] = {}
    for folder in entries.folders:
        name = nfc(to_text(folder))
        if name in classes:
            raise UsageError(
                f"{root} has two folders {name!r}, whose names differ only in their Unicode form; move the "
                "images of one into the other"
            )
        classes[name] = folder
    return dict(sorted(classes.items()))


def _check_known(folder: str, found: Mapping[str, str], known: Mapping[str, str]) -> None:
    unknown = [name for name in found if name not in known]
    if unknown:
        likely = nearest(unknown[0].casefold(), [name.casefold() for name in known], 1)
        like = next((f"; did you mean {name}?" for name in known if name.casefold() in likely), "")
        raise UsageError(f"{folder} has classes that train does not have: {summarize(unknown)}{like}")


def _list(
    root: str, entries: Entries, found: Mapping[str, str], order: tuple[str, ...], split: str, *, whole: bool = False
) -> Listing:
    """Return the images of the class folders `found` of `root`; `whole`: they are of one split, and none is held out.

    `order`: all classes of the data, in the order of their labels.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        looks = dict(zip(found, pool.map(lambda folder: find_images(root, folder), found.values()), strict=True))
    # A class of the other split may have no folder here.
    looks = {name: looks.get(name) or Found() for name in order}
    _check_looks(root, looks, split)
    parts = {name: look.names if whole or split == "all" else _part(look.names, split) for name, look in looks.items()}
    names = tuple(name for part in parts.values() for name in part)
    if not names and not whole:
        raise UsageError(f"no class of {root} has more than one image to split; create {root}/validation/CLASS/x.jpg")
    scan = Scan(
        taken=_sum(*(look.taken for look in looks.values())) if whole or split == "all" else _count(names),
        left=_sum(_loose(root, entries), *(look.left for look in looks.values())),
        other_split=sum(len(look.names) for look in looks.values()) - len(names),
        below=sum(name.count("/") > 1 for name in names),
        twins=sum(look.twins for look in looks.values()),
        classes_without=tuple(name for name, part in parts.items() if not part),
        alike=differ_only_in_case(order),
    )
    labels = tuple(label for label, part in enumerate(parts.values()) for _ in part)
    return Listing(root, names, labels, order, scan)


def _check_looks(root: str, looks: Mapping[str, Found], split: str) -> None:
    """Raise a UsageError if classes have no images, or the only one seems to be a folder of classes."""
    empty = [name for name, look in looks.items() if not look.names]
    if empty and (split != "validation" or len(empty) == len(looks)):
        left = _sum(*(looks[name].left for name in empty))
        has = f" (they have {describe_kinds(left)})" if left else ""
        raise UsageError(
            f"no images in {len(empty)} of {len(looks)} classes of {root}: {summarize(empty)}{has}; {LAYOUTS}"
        )
    if len(looks) > 1:
        return
    ((name, look),) = looks.items()
    inner = {path.split("/")[1] if path.count("/") > 1 else "" for path in look.names}
    if "" not in inner and len(inner) > 1:
        raise UsageError(
            f"{root} has one class folder, {name}, with all images in {len(inner)} folders inside it "
            f"({summarize(sorted(inner))}); give {root}/{name} if these are the classes"
        )


def _loose(root: str, entries: Entries) -> Counter[str]:
    """Return what lies beside the class folders, by kind."""
    shards = [name for name in entries.files if is_shard_like(name)]
    images, others = choose_images(root, [name for name in entries.files if name not in set(shards)])
    counts = entries.left + others
    counts.update({SHARDS: len(shards), OUTSIDE: len(images)})
    return +counts


def _count(names: Iterable[str]) -> Counter[str]:
    return Counter(kind_name(split_name(name)[1]) for name in names)


def _sum(*counts: Mapping[str, int]) -> Counter[str]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return total


def _part(names: list[str], split: str) -> list[str]:
    """Return a split's part of one class's images."""
    by_hash = sorted(names, key=lambda name: hashlib.sha256(os.fsencode(nfc(name))).digest())
    # At least one image, but never the only one.
    count = min(max(1, len(names) // _HELD_OUT), len(names) - 1)
    held_out = set(by_hash[:count]) if count > 0 else set()
    return [name for name in names if (name in held_out) == (split == "validation")]
