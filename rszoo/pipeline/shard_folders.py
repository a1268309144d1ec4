"""Folders of TFRecords in the published layout: the files of a split, and their description in `dataset.json`."""

from __future__ import annotations

import json
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rszoo.disk.regular import read_regular_text
from rszoo.errors import ConfigError, SplitNotFoundError, UsageError, summarize
from rszoo.pipeline.file_kinds import kind_name, nfc, split_name
from rszoo.pipeline.files import Entries, list_folder, read_text
from rszoo.pipeline.scan import SHARDS, Scan
from rszoo.schema.fields import check_format
from rszoo.schema.limits import WRITABLE, is_a

#: The file that `rszoo tfrecords` writes next to the records: classes, and the number of records in each file.
DESCRIPTION = "dataset.json"
FORMAT_VERSION = 1

# As published, or with a suffix as many tools write them.
_SHARD = re.compile(r"(train|validation|val|valid)-(\d{5})-of-(\d{5})(\.tfrecords?|\.tfrec)?")
_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation"}
# What somebody may take for TFRecords.
_SHARD_LIKE = re.compile(r"-\d+-of-\d+|\.tfrec", re.IGNORECASE)


class Known(NamedTuple):
    """The contents of `dataset.json`; unknown values are None."""

    title: str | None = None
    class_names: tuple[str, ...] | None = None
    counts: tuple[int, ...] | None = None


def shard_name(split: str, index: int, count: int) -> str:
    """Return a file's name in the published layout."""
    return f"{split}-{index:05}-of-{count:05}"


def is_written(folder: Path, names: set[str]) -> bool:
    """Whether a folder, which has just these names, is one of `rszoo tfrecords`."""
    if DESCRIPTION not in names or not all(_SHARD.fullmatch(name) for name in names - {DESCRIPTION}):
        return False
    try:
        return "format_version" in json.loads(read_regular_text(folder / DESCRIPTION))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def is_shard_like(name: str) -> bool:
    """Whether a file's name looks like one of TFRecords, in whatever layout."""
    return _SHARD_LIKE.search(name) is not None


def find_shards(root: str, entries: Entries, split: str) -> tuple[tuple[str, ...], Scan] | None:
    """Return the paths of a split's files in the folder `root`, and what was left; None if it has no TFRecords.

    Raises:
        SplitNotFoundError: it has TFRecords, but none of this split.
        SourceNotFoundError: it cannot be read.
        UsageError: files are missing or belong to two sets, or the folder also has folders of splits.
    """
    here = {_SPLITS[match[1]] for match in map(_SHARD.fullmatch, entries.files) if match}
    below = {name: list_folder(posixpath.join(root, name)) for name in entries.folders if name in _SPLITS}
    inside = [name for name, inner in below.items() if _of_split(inner.files, _SPLITS[name])]
    if here and below:
        raise UsageError(f"{root} has TFRecords and folders named {' and '.join(below)}; give one of them")
    if here:
        return _choose(root, entries, split, here, Scan(left=entries.left, left_folders=tuple(entries.folders)))
    if not inside:
        return None
    if len({_SPLITS[name] for name in below}) < len(below):
        raise UsageError(f"{root} has two folders of one split: {' and '.join(below)}; keep one")
    name = next((name for name in below if _SPLITS[name] == split), None)
    if name is not None and name not in inside:
        raise UsageError(
            f"{root}/{inside[0]} has TFRecords and {root}/{name} has none; keep them apart, or write the images as "
            "TFRecords too with `rszoo tfrecords`"
        )
    inner = Entries([], [], Counter()) if name is None else below[name]
    folders = [*(other for other in entries.folders if other not in inside), *inner.folders]
    left = entries.left + inner.left + _count_others(entries.files, ())
    folder = root if name is None else posixpath.join(root, name)
    return _choose(folder, inner, split, {_SPLITS[name] for name in inside}, Scan({}, left, tuple(folders)), (split,))


def _choose(
    folder: str,
    entries: Entries,
    split: str,
    available: Collection[str],
    scan: Scan,
    expected_splits: Collection[str] = ("train", "validation"),
) -> tuple[tuple[str, ...], Scan]:
    """Return a split's files, all of one complete set, and the scan; `available`: the splits that have files.

    `scan` has what was left so far; files of `expected_splits` are not left.
    """
    if split not in available:
        raise SplitNotFoundError(f"no {split}-*-of-* in {folder}, only {' and '.join(sorted(available))}")
    matches = _of_split(entries.files, split)
    sets = sorted({f"{match[1]}-*-of-{match[3]}{match[4] or ''}" for match in matches})
    if len(sets) > 1:
        raise UsageError(f"{folder} mixes sets of {split} files: {' and '.join(sets)}; keep one set per folder")
    name, count, suffix = matches[0][1], int(matches[0][3]), matches[0][4] or ""
    expected = [shard_name(name, index, count) + suffix for index in range(count)]
    if missing := sorted(set(expected) - {match[0] for match in matches}):
        raise UsageError(
            f"{len(missing)} of {len(expected)} {split} files are missing in {folder}: {summarize(missing)}"
        )
    left = Counter(scan.left) + _count_others(entries.files, expected_splits)
    scan = replace(scan, taken={"TFRecords": count}, left=left)
    return tuple(posixpath.join(folder, file) for file in expected), scan


def _of_split(files: Sequence[str], split: str) -> list[re.Match[str]]:
    """Return the names of a split's files, taken apart."""
    return [match for name in files if (match := _SHARD.fullmatch(name)) and _SPLITS[match[1]] == split]


def _count_others(files: Sequence[str], splits: Collection[str]) -> Counter[str]:
    """Count by kind the files that are no TFRecords of these splits and not their description."""
    known = {match[0] for split in splits for match in _of_split(files, split)} | {DESCRIPTION}
    others = [name for name in files if name not in known]
    return Counter(SHARDS if is_shard_like(name) else kind_name(split_name(name)[1]) for name in others)


def read_description(root: str, shards: Sequence[str], split: str) -> Known:
    """Return the description of a split in the folder's `dataset.json`; all None if there is no such file.

    Raises:
        ConfigError: it is damaged, or describes other files.
        NewerFormatError: a newer rszoo wrote it.
    """
    path = posixpath.join(root, DESCRIPTION)
    text = read_text(path)
    if text is None:
        return Known()
    try:
        return _parse(check_format(json.loads(text), FORMAT_VERSION, path), len(shards), split)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged: {error}; delete it, or write the TFRecords again") from error


def _parse(values: Any, num_shards: int, split: str) -> Known:
    names, counts = values["class_names"], values["splits"][split]["records"]
    if not is_a(values["title"], str):
        raise ConfigError(f"title must be {WRITABLE}")
    if not names or not all(is_a(name, str) for name in names):
        raise ConfigError("class_names must be strings")
    if len(counts) != num_shards or not all(isinstance(count, int) and count >= 0 for count in counts):
        raise ConfigError(f"records of {split} must be {num_shards} whole numbers, one for each file")
    return Known(values["title"], tuple(map(nfc, names)), tuple(counts))
