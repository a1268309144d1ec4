"""`rszoo predict`: images classified. The command imports what it needs when it runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from rszoo.cli.console import FrameworkChoice, Json, load_frameworks, print_json
from rszoo.errors import SourceNotFoundError


def predict(
    model: Annotated[str, typer.Argument(help="Model folder, registered name, or hf-hub:OWNER/NAME.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    framework: Annotated[FrameworkChoice, typer.Option(help="PyTorch or Keras 3.")] = FrameworkChoice.torch,
    top: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 5,
    as_json: Json = False,
) -> None:
    """Classify images with the published preprocessing."""
    from rszoo.cache.find import find_folder
    from rszoo.inference.classifier import Classifier

    for image in images:
        if not image.is_file():
            raise SourceNotFoundError(f"no image at {image}: give the path of a JPEG or PNG file")
    found = find_folder(model)
    load_frameworks(framework.value)
    classifier = Classifier(found, framework.value)
    results = []
    for image, predictions in zip(images, classifier.predict(images, top), strict=True):
        results.append({"image": str(image), "predictions": [dataclasses.asdict(guess) for guess in predictions]})
        if not as_json:
            print(image)
            for guess in predictions:
                print(f"  {100 * guess.probability:6.2f} %  {guess.index:4}  {guess.label}")
    if as_json:
        print_json(results)
