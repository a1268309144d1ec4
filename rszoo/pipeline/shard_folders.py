"""Folders of TFRecords in the published layout: the files of a split, and their description in `dataset.json`."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from rszoo.errors import ConfigError, SplitNotFoundError, UsageError, summarize
from rszoo.pipeline.files import list_folder, read_text
from rszoo.schema.fields import check_format

#: The file that `rszoo tfrecords` writes next to the records: classes, and the number of records in each file.
DESCRIPTION = "dataset.json"
FORMAT_VERSION = 1

_SHARD = re.compile(r"(train|validation)-(\d{5})-of-(\d{5})")
_SPLITS = ("train", "validation")


class Known(NamedTuple):
    """The contents of `dataset.json`; unknown values are None."""

    title: str | None = None
    class_names: tuple[str, ...] | None = None
    counts: tuple[int, ...] | None = None


def shard_name(split: str, index: int, count: int) -> str:
    """Return a file's name in the published layout."""
    return f"{split}-{index:05}-of-{count:05}"


def find_shards(root: str, names: Sequence[str], split: str) -> tuple[str, ...] | None:
    """Return the paths of a split's files in the folder `root`, which contains `names`; None if it has no TFRecords.

    Raises:
        SplitNotFoundError: it has TFRecords, but none of this split.
        SourceNotFoundError: it cannot be read.
        UsageError: files are missing or belong to two sets, or the folder also has folders of splits.
    """
    found = {match[1]: root for name in names if (match := _SHARD.fullmatch(name))}
    below = [name for name in _SPLITS if name in names]
    if found and below:
        raise UsageError(f"{root} has TFRecords and folders named {' and '.join(below)}; give one of them")
    listings = {root: list(names)}
    for name in below:
        folder = posixpath.join(root, name)
        listings[folder] = list_folder(folder)
        if any(_SHARD.fullmatch(file) for file in listings[folder]):
            found[name] = folder
    if not found:
        return None
    if split not in found:
        raise SplitNotFoundError(f"no {split}-*-of-* in {root}, only {' and '.join(sorted(found))}")
    folder = found[split]
    matches = [match for name in listings[folder] if (match := _SHARD.fullmatch(name)) and match[1] == split]
    counts = sorted({match[3] for match in matches})
    if len(counts) != 1:
        raise UsageError(f"{folder} mixes sets of {' and '.join(counts)} {split} files; keep one set per folder")
    expected = [shard_name(split, index, int(counts[0])) for index in range(int(counts[0]))]
    if missing := sorted(set(expected) - {match[0] for match in matches}):
        raise UsageError(
            f"{len(missing)} of {len(expected)} {split} files are missing in {folder}: {summarize(missing)}"
        )
    return tuple(posixpath.join(folder, name) for name in expected)


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
    if not names or not all(isinstance(name, str) for name in names):
        raise ConfigError("class_names must be strings")
    if len(counts) != num_shards or not all(isinstance(count, int) and count >= 0 for count in counts):
        raise ConfigError(f"records of {split} must be {num_shards} whole numbers, one for each file")
    return Known(str(values["title"]), tuple(names), tuple(counts))
