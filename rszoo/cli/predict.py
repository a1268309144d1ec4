"""`rszoo predict`: images classified. The command imports what it needs when it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rszoo.cli.console import ChosenFramework, Json, choose_framework, load_frameworks, print_json
from rszoo.errors import SourceNotFoundError
from rszoo.terminal import printable, show, table

if TYPE_CHECKING:
    import numpy as np


def predict(
    model: Annotated[str, typer.Argument(help="Model folder, registered name, or hf-hub:OWNER/NAME.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    framework: ChosenFramework = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 5,
    exif: Annotated[bool, typer.Option("--exif", help="Turn images as their EXIF orientation says.")] = False,
    as_json: Json = False,
) -> None:
    """Classify images with the published preprocessing."""
    from rszoo.cache.find import find_folder
    from rszoo.inference.classifier import Classifier

    for image in images:
        if not image.is_file():
            raise SourceNotFoundError(f"no image at {image}: give the path of a JPEG or PNG file")
    found = find_folder(model)
    chosen = choose_framework(framework)
    load_frameworks(chosen)
    classifier = Classifier(found, chosen)
    results: list[dict[str, Any]] = []
    pixels = _read(images, exif, results)
    for number, predictions in enumerate(classifier.predict(pixels, top)):
        results[number]["predictions"] = [dataclasses.asdict(guess) for guess in predictions]
        if not as_json:
            rows = [(f"{100 * guess.probability:9.2f} %", f"{guess.index:5}", guess.label) for guess in predictions]
            show(f"{printable(str(images[number]))}\n{table([('probability', 'class', 'label'), *rows])}")
    if as_json:
        print_json(results)


def _read(images: list[Path], exif: bool, results: list[dict[str, Any]]) -> Iterator[np.ndarray]:
    """Yield the pixels of each image, and add to the results how it was read."""
    from rszoo.inference.images import read_image

    for image in images:
        read = read_image(image, exif=exif)
        results.append({"image": str(image), "decoder": read.decoder, "exact": read.exact})
        yield read.pixels
