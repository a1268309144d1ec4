"""`rszoo tfrecords`: TFRecords from a folder of images."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from rszoo.cli.console import Json, load_frameworks, print_json
from rszoo.terminal import show


def make_tfrecords(
    data: Annotated[str, typer.Argument(help="Folder of images: DATA/train/CLASS/x.jpg, or DATA/CLASS/x.jpg.")],
    output: Annotated[Path, typer.Argument(help="New folder for the TFRecords.")],
    shards: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Files for training; an eighth as many for validation. Default: 1 per 1,000 images, at most 1024.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order in which the images are written.")] = 0,
    allow_broken: Annotated[int, typer.Option(min=0, help="Broken images to skip before the command fails.")] = 100,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result in OUTPUT.")] = False,
    as_json: Json = False,
) -> None:
    """Write a folder of images as TFRecords in the published layout, which training reads faster than single files."""
    from rszoo.pipeline.tensorflow_reader import require_tensorflow

    require_tensorflow()
    load_frameworks("tensorflow")
    from rszoo.pipeline.writer import write_tfrecords

    written = write_tfrecords(data, output, shards=shards, seed=seed, overwrite=overwrite, limit=allow_broken)
    if as_json:
        print_json(asdict(written))
        return
    for text in written.broken:
        show(f"left out: {text}")
    for split, counts in written.records.items():
        show(f"{split}: {sum(counts)} images in {len(counts)} files")
    show(f"{len(written.class_names)} classes, in {output}")
