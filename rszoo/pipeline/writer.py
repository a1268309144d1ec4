"""TFRecords from a folder of images, in the published layout, so that training reads a few large files sequentially.

JPEG and PNG, detected by content, are stored unchanged if TensorFlow decodes them as `rszoo.inference.reader` does;
all else that the reader reads is stored as an 8-bit RGB PNG of its pixels, without loss.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

import rszoo
from rszoo.disk.paths import to_text
from rszoo.disk.staging import ResultKind, staged_folder
from rszoo.errors import ImageError, OutputError, SplitNotFoundError, UsageError
from rszoo.inference import jpeg
from rszoo.inference.reader import PNG_MAGIC, Decoded, decode
from rszoo.pipeline.decoding import FIRST_LABEL, Decoder
from rszoo.pipeline.faults import DEFAULT_LIMIT, Faults
from rszoo.pipeline.scan import Scan
from rszoo.pipeline.shard_folders import DESCRIPTION, FORMAT_VERSION, is_written, shard_name
from rszoo.pipeline.sources import ImageSource, open_source
from rszoo.terminal import progress_bar

_SPLITS = ("train", "validation")
# As published: 1,281,167 images in 1024 files; 128 for validation.
_RECORDS_PER_FILE, _MAX_SHARDS, _VALIDATION_PART = 1000, 1024, 8
_MAX_COUNT = 99999
_RECORDS = ResultKind("rszoo tfrecords", is_written, last=DESCRIPTION)
_MAGIC = {jpeg.MAGIC: b"JPEG", PNG_MAGIC: b"PNG"}


@dataclass(frozen=True)
class Written:
    """What was written. `records`: the number in each file, by split; `broken`: images left out, with reasons.

    `scans`: what of the folder was taken and what was left, by split.
    """

    title: str
    class_names: tuple[str, ...]
    records: dict[str, tuple[int, ...]]
    broken: tuple[str, ...]
    scans: dict[str, Scan]


def write_tfrecords(
    data: str,
    output: Path,
    *,
    shards: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    limit: int = DEFAULT_LIMIT,
) -> Written:
    """Write the images of a folder as TFRecords; the folder `output` appears when everything is written.

    Args:
        data: a folder of images as in `open_source`, or "digits". Without splits a tenth is used for validation.
        output: a new folder.
        shards: number of files for training; an eighth as many for validation. By default one for each 1,000
            images, at most 1024.
        seed: seed of the order in which images are written; the same seed gives the same files.
        overwrite: replace an earlier output of this function.
        limit: how many images may be broken; they are left out.

    Raises:
        SourceNotFoundError, UsageError: the data do not exist, or their layout is not supported.
        ImageError: more images are broken than allowed.
        OutputError: `output` exists or cannot be written.
    """
    if shards is not None and not 1 <= shards <= _MAX_COUNT:
        raise UsageError(f"shards must be from 1 to {_MAX_COUNT}, received {shards}")
    sources, faults = _open_splits(data), Faults(limit)
    sizes = {split: len(source.names) for split, source in sources.items()}
    counts = _shard_counts(sizes, shards)
    records: dict[str, tuple[int, ...]] = {}
    with staged_folder(output, _RECORDS, overwrite=overwrite) as staging:
        with progress_bar(f"writing {output.name}", sum(sizes.values()), "images") as bar:
            for split, source in sources.items():
                order = np.random.default_rng([seed, _SPLITS.index(split)]).permutation(sizes[split])
                records[split] = tuple(
                    _write_shard(staging / shard_name(split, number, counts[split]), source, part.tolist(), faults, bar)
                    for number, part in enumerate(np.array_split(order, counts[split]))
                )
        first = next(iter(sources.values()))
        scans = {split: source.scan for split, source in sources.items()}
        written = Written(first.title, first.class_names or (), records, tuple(faults.texts), scans)
        (staging / DESCRIPTION).write_text(json.dumps(_describe(written, seed), indent=1) + "\n", encoding="utf-8")
    return written


def _open_splits(data: str) -> dict[str, ImageSource]:
    sources: dict[str, ImageSource] = {}
    missing: SplitNotFoundError | None = None
    for split in ("train", "validation"):
        try:
            source = open_source(data, split)
        except SplitNotFoundError as error:
            missing = error
            continue
        if not isinstance(source, ImageSource):
            raise UsageError(f"{data} already has TFRecords; give a folder of images")
        sources[split] = source
    if not sources and missing is not None:
        raise missing
    return sources


def _shard_counts(sizes: dict[str, int], shards: int | None) -> dict[str, int]:
    fitting = min(max(1, max(sizes.values()) // _RECORDS_PER_FILE), _MAX_SHARDS)
    wanted = {"train": shards or fitting}
    wanted["validation"] = max(1, wanted["train"] // _VALIDATION_PART)
    # No empty files: they would be opened in every epoch for nothing.
    return {split: min(wanted[split], size) for split, size in sizes.items()}


def _write_shard(path: Path, source: ImageSource, indices: Sequence[int], faults: Faults, bar: Any) -> int:
    """Write one file; return the number of records in it."""
    count = 0
    try:
        with tf.io.TFRecordWriter(os.fsencode(path)) as writer:
            for record in _examples(source, indices, faults):
                bar.update()
                if record is not None:
                    writer.write(record)
                    count += 1
    except tf.errors.OpError as error:
        raise OutputError(f"cannot write {path.name}: {error.message}; choose another output") from error
    return count


def _examples(source: ImageSource, indices: Sequence[int], faults: Faults) -> Iterator[bytes | None]:
    """Yield the records in order, None for each broken image."""
    decoder = Decoder(source, source.num_classes, faults)

    def make(index: int) -> bytes | None:
        name, label = source.names[index], int(source.labels[index])
        try:
            encoded, _ = decoder.bytes_of(source.contents[index], label)
            return _example(encoded, label, (source.class_names or ())[label], name)
        except ImageError as error:
            decoder.note(index, 0, error)
            return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(make, indices)


def _example(encoded: bytes, label: int, text: str, name: str) -> bytes:
    decoded = decode(encoded)
    pixels = decoded.pixels
    kind = next((kind for magic, kind in _MAGIC.items() if encoded.startswith(magic)), None)
    if kind is None or not _decodes_alike(encoded, decoded):
        kind, buffer = b"PNG", io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        encoded = buffer.getvalue()
    texts = {
        "image/encoded": encoded,
        "image/format": kind,
        "image/colorspace": b"RGB",
        "image/class/text": text.encode(),
        "image/filename": to_text(name).encode(),
    }
    numbers = {
        "image/class/label": label + FIRST_LABEL,
        "image/height": pixels.shape[0],
        "image/width": pixels.shape[1],
        "image/channels": pixels.shape[2],
    }
    features = {key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value])) for key, value in texts.items()}
    features |= {key: tf.train.Feature(int64_list=tf.train.Int64List(value=[value])) for key, value in numbers.items()}
    example: bytes = tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(
        deterministic=True
    )
    return example


def _decodes_alike(encoded: bytes, decoded: Decoded) -> bool:
    """Whether TensorFlow decodes a file to the same pixels; to the same size, if those of the reader are not exact."""
    try:
        pixels = tf.io.decode_image(encoded, channels=3, expand_animations=False).numpy()
    except tf.errors.OpError:
        return False
    return pixels.shape == decoded.pixels.shape and (not decoded.exact or np.array_equal(pixels, decoded.pixels))


def _describe(written: Written, seed: int) -> dict[str, Any]:
    facts = asdict(written)
    records = facts.pop("records")
    splits = {split: {"images": sum(counts), "records": list(counts)} for split, counts in records.items()}
    return {"format_version": FORMAT_VERSION, **facts, "splits": splits, "seed": seed, "rszoo": rszoo.__version__}
