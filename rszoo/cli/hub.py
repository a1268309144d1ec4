"""`rszoo push`, `rszoo publish` and `rszoo pull`. Each command imports what it needs when it runs."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rszoo.cli.console import Json, WeakSource, load_frameworks, print_json, raise_first
from rszoo.terminal import show, table

if TYPE_CHECKING:
    from rszoo.publish.family import Published
    from rszoo.publish.push import Preview

Private = Annotated[bool, typer.Option("--private", help="Create the repository as private.")]
Keras = Annotated[bool, typer.Option("--keras", help="Also push what keras.saving.load_model('hf://...') needs.")]


def push(
    folder: Annotated[str, typer.Argument(help="Model folder that `rszoo verify` has passed.")],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub; created if missing.")],
    private: Private = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to, created if missing.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    keras: Keras = False,
    raw_folder: Annotated[
        str | None, typer.Option(help="Model folder with the same checkpoint's plain weights.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show files, sizes and card; send nothing.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Push without a passed verification; the card will say so.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also replace a card that rszoo did not write.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check a model folder, write its card, and push it to the Hugging Face Hub as one commit.

    The login is huggingface_hub's: `hf auth login`, or HF_TOKEN.
    """
    from rszoo.publish.push import preview_push, push_to_hub

    if keras:
        load_frameworks("keras")
    if dry_run:
        _show(
            preview_push(
                folder,
                repo,
                revision=revision,
                create_pr=create_pr,
                keras=keras,
                raw_folder=raw_folder,
                force=force,
            ),
            as_json,
        )
        return
    pushed = push_to_hub(
        folder,
        repo,
        private=private,
        revision=revision,
        create_pr=create_pr,
        keras=keras,
        raw_folder=raw_folder,
        force=force,
        overwrite=overwrite,
    )
    if as_json:
        print_json(dataclasses.asdict(pushed))
        return
    show(f"{'pushed' if pushed.changed else 'nothing to push, all is there:'} {pushed.pr_url or pushed.url}")
    if pushed.deleted:
        show(f"deleted there, since this push does not have it: {', '.join(pushed.deleted)}")
    at = "" if pushed.pr_url is None and revision is None else f"@{pushed.commit}"
    show(f'load it with: rszoo.create("hf-hub:{pushed.repo}{at}", pretrained=True)')


def publish(
    patterns: Annotated[list[str], typer.Argument(help="Names or shell patterns, such as 'resnet-rs-*'.")],
    to: Annotated[str, typer.Option(help="Account or organization on the Hub; repositories get the models' names.")],
    private: Private = False,
    keras: Keras = False,
    raw: Annotated[bool, typer.Option("--raw", help="Also the plain weights.")] = False,
    pin: Annotated[
        Path | None, typer.Option(help="Write repositories, commits and hashes into this weights_manifest.json.")
    ] = None,
    allow_weak_source: WeakSource = False,
    as_json: Json = False,
) -> None:
    """Fetch, convert, verify and push registered models; the same command resumes after an interruption."""
    from rszoo.publish.family import Extras, publish_models

    publishing = publish_models(patterns, to, private=private, extras=Extras(raw, keras, allow_weak_source), pin=pin)
    load_frameworks("torch", "keras", "tensorflow")
    outcomes = []
    for outcome in publishing:
        outcomes.append(outcome)
        show(f"{outcome.name}: {outcome.error or outcome.status}", file=sys.stderr)
    print_json([outcome.to_dict() for outcome in outcomes]) if as_json else show(_table(outcomes))
    failed = [outcome.error for outcome in outcomes if outcome.error is not None]
    raise_first(failed, len(outcomes), "models failed, see above; run it again to resume")


def pull(
    model: Annotated[str, typer.Argument(help="hf-hub:OWNER/NAME[@REVISION][/FILE.safetensors]")],
    output: Annotated[Path | None, typer.Option(help="New model folder. Default: only the Hub's cache.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a former model folder.")] = False,
    as_json: Json = False,
) -> None:
    """Fetch a model from the Hugging Face Hub, and check its SHA-256."""
    from rszoo.cache.pulling import pull_model

    pulled = pull_model(model, output, overwrite=overwrite)
    print_json(pulled.to_dict()) if as_json else show(f"{pulled.model}  {pulled.path}")


def _show(preview: Preview, as_json: bool) -> None:
    if as_json:
        print_json(dataclasses.asdict(preview))
        return
    rows = [("file", "bytes"), *((name, f"{size:,}") for name, size in sorted(preview.files.items()))]
    show(f"would push to {preview.repo}:\n{table(rows)}\n\n{preview.card}")


def _table(outcomes: list[Published]) -> str:
    rows = [("model", "repository", "outcome", "commit", "SHA-256")]
    for done in outcomes:
        rows.append((done.name, done.repo, done.status, (done.commit or "")[:12], (done.sha256 or "")[:16]))
    return table(rows)
