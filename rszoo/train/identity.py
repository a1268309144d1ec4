"""The identity of a run: recipe, data and initial weights in, values that distinguish them from others out.

Data and weights are identified by content, not by path, since the files in a folder can change.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from rszoo.errors import SourceNotFoundError
from rszoo.folder.model_folder import ModelFolder, sha256_of
from rszoo.pipeline.file_kinds import nfc
from rszoo.pipeline.sources import ImageSource, ShardSource, Source
from rszoo.recipes.recipe import Recipe
from rszoo.train.start import Start

# Object stores answer many concurrent requests as fast as one.
_QUESTIONS_AT_ONCE = 32


@dataclass(frozen=True)
class Identity:
    """The recipe, data and initial weights of a run.

    `data`: title of the data; `data_sha256`: of the list of what is in them. `init`: name of the weights it starts
    from, `init_sha256` of their file; both None without.
    """

    recipe: Recipe
    data: str
    train_images: int | None
    class_names: tuple[str, ...] | None = None
    data_sha256: str | None = None
    init: str | None = None
    init_sha256: str | None = None

    def facts(self) -> dict[str, Any]:
        """Return all but the recipe as JSON values."""
        return {
            "data": self.data,
            "train_images": self.train_images,
            "class_names": None if self.class_names is None else list(self.class_names),
            "data_sha256": self.data_sha256,
            "init": self.init,
            "init_sha256": self.init_sha256,
        }


def identify(recipe: Recipe, images: Source, start: Start | None, weights: ModelFolder | None) -> Identity:
    """Return the identity of a run; the weights are read in full.

    `weights`: the folder of what `start` names.

    Raises:
        SourceNotFoundError: the data are not there.
        WeightsError: the weights are not there.
    """
    return Identity(
        recipe,
        images.title,
        images.num_images,
        images.class_names,
        data_sha256(images),
        None if start is None else start.name,
        None if weights is None else sha256_of(weights.weights_path),
    )


def data_sha256(images: Source) -> str | None:
    """Return the SHA-256, in hex, of what is listed: names and labels of images, names and sizes of TFRecords.

    Raises:
        SourceNotFoundError: a file of TFRecords cannot be looked at.
    """
    if isinstance(images, ImageSource):
        listed = hashlib.sha256(os.fsencode("\0".join(map(nfc, images.names))))
        listed.update(images.labels.astype("<i8").tobytes())
        return listed.hexdigest()
    if isinstance(images, ShardSource):
        with ThreadPoolExecutor(_QUESTIONS_AT_ONCE) as pool:
            sizes = list(pool.map(_size_of, images.shards))
        lines = [f"{posixpath.basename(shard)} {size}\n" for shard, size in zip(images.shards, sizes, strict=True)]
        return hashlib.sha256(os.fsencode("".join(lines))).hexdigest()
    return None


def _size_of(path: str) -> int:
    import tensorflow as tf

    try:
        return int(tf.io.gfile.stat(os.fsencode(path)).length)
    except tf.errors.OpError as error:
        raise SourceNotFoundError(f"cannot read {path}: {error.message}") from error
