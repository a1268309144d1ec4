"""`rszoo verify` and `rszoo demo`: a model checked. Each command imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rszoo.cli.console import Json, load_frameworks, print_json


def verify(
    model: Annotated[str, typer.Argument(help="Model folder, or a registered name that is in the cache.")],
    ckpt: Annotated[str | None, typer.Option(help="The checkpoint it was converted from.")] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Another source of the same weights: checkpoint, model folder, hf-hub:OWNER/NAME."),
    ] = None,
    golden_image: Annotated[str | None, typer.Option(help="The photo whose logits are published.")] = None,
    as_json: Json = False,
) -> None:
    """Check a model folder as far as possible on this machine, and list what could not be checked.

    The result is written to FOLDER/verification.json.
    """
    from rszoo.cache.find import find_local
    from rszoo.verify.api import verify_model
    from rszoo.verify.demo import print_check

    folder = find_local(model)
    load_frameworks("torch", "keras", "tensorflow")
    report = None if as_json else print_check
    verification = verify_model(folder, source=ckpt, golden_image=golden_image, against=against, report=report)
    if as_json:
        print_json(verification.to_dict()["checks"])
    verification.raise_for_failure()


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the converted model.")] = Path("demo-model"),
) -> None:
    """Convert the embedded checkpoint, verify it, and classify digits that it never saw."""
    from rszoo.verify.demo import run_demo

    load_frameworks("torch", "keras", "tensorflow")
    run_demo(output)
