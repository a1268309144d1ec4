"""Data sources: a folder of TFRecords or images, or the built-in digits, as a `Source` for the datasets.

Opening lists and checks names; no image is read. TFRecords have the published layout (`train-00000-of-01024`,
`validation-00000-of-00128`, in the folder or in its subfolders `train` and `validation`), on a local disk or where
TensorFlow can read (`gs://`); images are in one folder for each class.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import posixpath
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from rszoo.disk.paths import expand_user, to_text
from rszoo.errors import UsageError, nearest, summarize
from rszoo.pipeline.scan import Scan
from rszoo.pipeline.tensorflow_reader import require_tensorflow
from rszoo.refs import Folder
from rszoo.terminal import printable

if TYPE_CHECKING:
    from rszoo.pipeline.files import Entries

log = logging.getLogger("rszoo")

#: "all" is every image of a folder of images without splits.
Split = Literal["train", "validation", "all"]
#: The content of an element before decoding: a tf.train.Example, the path of an image, or an image's bytes.
Content = Literal["example", "path", "image"]
DIGITS = "digits"


@dataclass(frozen=True, eq=False)
class Source:
    """One split of a data set. `title` is its name in results; None: unknown without reading everything.

    `scan`: what was taken of a folder and what was left.
    """

    title: str
    split: Split
    num_classes: int | None
    class_names: tuple[str, ...] | None
    num_images: int | None
    scan: Scan = field(default_factory=Scan, kw_only=True)

    @property
    def content(self) -> Content:
        """The content of an element before decoding."""
        raise NotImplementedError

    def name_of(self, file: int, record: int) -> str:
        """Return the name of an image for error messages."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class ImageSource(Source):
    """Listed images. `names` are relative to `root`; `labels` int64, from 0.

    `images` are their bytes if they are in memory, None if they are files. `folder` is the split's folder in the data.
    """

    root: str
    names: tuple[str, ...]
    labels: np.ndarray
    images: tuple[bytes, ...] | None = None
    folder: str = ""

    @property
    def content(self) -> Content:
        """The content of an element before decoding."""
        return "path" if self.images is None else "image"

    @cached_property
    def contents(self) -> list[bytes]:
        """The paths as the file system has them, or the images' bytes."""
        if self.images is not None:
            return list(self.images)
        return [os.fsencode(posixpath.join(self.root, name)) for name in self.names]

    def name_of(self, file: int, record: int) -> str:
        """Return an image's name, unique over all splits; `record` is 0."""
        return to_text(posixpath.join(self.folder, self.names[file]))


@dataclass(frozen=True, eq=False)
class ShardSource(Source):
    """TFRecords: the files' full paths in order, and the number of records in each, None if unknown.

    `cache` is a folder for copies of them, None to read them in place.
    """

    shards: tuple[str, ...]
    counts: tuple[int, ...] | None = None
    cache: Path | None = None

    @property
    def content(self) -> Content:
        """The content of an element before decoding."""
        return "example"

    def local(self, file: int) -> str:
        """Return the path to read a file from; it is copied to the cache first if there is one.

        Raises:
            SourceNotFoundError: the file cannot be read.
            OutputError: the cache cannot be written.
        """
        from rszoo.pipeline.shard_files import cached_copy

        return self.shards[file] if self.cache is None else cached_copy(self.shards[file], self.cache)

    @cached_property
    def record_counts(self) -> tuple[int, ...]:
        """The number of records in each file; if unknown, they are counted by their headers, with a progress bar."""
        from rszoo.pipeline.shard_files import count_records

        return self.counts or count_records(range(len(self.shards)), self.local)

    def name_of(self, file: int, record: int) -> str:
        """Return a record's name."""
        return f"{to_text(posixpath.basename(self.shards[file]))} record {record}"


def open_source(data: str, split: Split, *, cache: str | Path | None = None) -> Source:
    """Open one split of the data.

    Args:
        data: "digits" (scikit-learn's, built in), or a folder of TFRecords or of images, also `gs://...`.
        split: "train" or "validation". In a folder of images without splits (`DATA/CLASS/x.jpg`) a tenth of each
            class is held out for validation, the same at every call; "all" is both together.
        cache: a local folder for copies of TFRecords, which are made when they are first read.

    Raises:
        SourceNotFoundError: there is no such folder, or it cannot be read.
        SplitNotFoundError: it has data, but not this split.
        UsageError: its layout is not supported or incomplete, or it has nothing to cache.
        ConfigError: its `dataset.json` is damaged.
        MissingPackageError: TensorFlow, or for the digits scikit-learn, is not installed.
    """
    if split not in get_args(Split):
        likely = nearest(str(split), get_args(Split)) or get_args(Split)
        raise UsageError(f"split must be {' or '.join(likely)}, received {split!r}")
    require_tensorflow()
    if data == DIGITS:
        if os.path.isdir(DIGITS):
            _say_shadowed(os.getcwd())
        if cache is not None:
            raise UsageError("the digits are in memory, and only TFRecords are cached; leave out --cache")
        return _open_digits(split)
    root = data.rstrip("/") if "://" in data else str(expand_user(data))
    source = _open_folder(data, root, split, None if cache is None else expand_user(cache))
    _say(source)
    return source


def _say(source: Source) -> None:
    """Log what was taken of a folder and what was left: as a warning if the user may not know of it."""
    names = source.class_names
    classes = "" if names is None else f", {len(names)} classes ({summarize(names)})"
    level = logging.WARNING if source.scan.is_doubtful else logging.INFO
    log.log(level, "%s", printable(f"{source.title}, {source.split}{classes}: {source.scan}"))


@functools.cache
def _say_shadowed(_here: str) -> None:
    log.warning("%s is the built-in data set; %s is the folder here", DIGITS, Folder(DIGITS))


def _open_folder(data: str, root: str, split: Split, cache: Path | None) -> Source:
    from rszoo.pipeline.files import list_root
    from rszoo.pipeline.shard_folders import find_shards

    entries = list_root(root)
    found = find_shards(root, entries, split)
    if found is not None:
        return _open_shards(root, *found, split, cache)
    if cache is not None:
        raise UsageError(f"{data} has no TFRecords, and only these are cached; run: rszoo tfrecords {data} OUTPUT")
    return _open_images(root, entries, split)


def _open_shards(root: str, shards: tuple[str, ...], scan: Scan, split: Split, cache: Path | None) -> ShardSource:
    from rszoo.pipeline.shard_files import check_unpacked
    from rszoo.pipeline.shard_folders import read_description

    check_unpacked(shards[0])
    known = read_description(root, shards, split)
    return ShardSource(
        known.title or _title(root),
        split,
        None if known.class_names is None else len(known.class_names),
        known.class_names,
        None if known.counts is None else sum(known.counts),
        shards,
        known.counts,
        cache,
        scan=scan,
    )


def _open_images(root: str, entries: Entries, split: Split) -> ImageSource:
    from rszoo.pipeline.image_folders import list_images

    listing = list_images(root, entries, split)
    return ImageSource(
        title=_title(root),
        split=split,
        num_classes=len(listing.classes),
        class_names=listing.classes,
        num_images=len(listing.labels),
        root=listing.root,
        names=listing.names,
        labels=np.asarray(listing.labels, np.int64),
        folder=listing.folder,
        scan=listing.scan,
    )


def _title(root: str) -> str:
    return to_text(posixpath.basename(root if "://" in root else Path(root).absolute().as_posix()) or root)


def _open_digits(split: Split) -> Source:
    from PIL import Image

    from rszoo.pipeline.digits import digit_images, split_digits
    from rszoo.registry.manifest import get_entry

    if split == "all":
        images, labels = digit_images()
    else:
        train_images, held_out_images, train_labels, held_out_labels = split_digits(*digit_images())
        chosen = {"train": (train_images, train_labels), "validation": (held_out_images, held_out_labels)}
        images, labels = chosen[split]
    stored = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        stored.append(buffer.getvalue())
    return ImageSource(
        title=get_entry("resnet-rs-demo").family.dataset.name,
        split=split,
        num_classes=10,
        class_names=tuple(map(str, range(10))),
        num_images=len(stored),
        root="",
        names=tuple(f"digit {number}" for number in range(len(stored))),
        labels=np.asarray(labels, np.int64),
        images=tuple(stored),
        folder=split,
    )
