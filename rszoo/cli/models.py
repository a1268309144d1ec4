"""`rszoo list` and `rszoo info`: facts about models. Each command imports what it needs when it runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from rszoo.cli.console import Json, print_json
from rszoo.terminal import show, table


def list_models_command(
    pattern: Annotated[str, typer.Argument(help="Shell pattern, such as '*-i256'.")] = "*",
    family: Annotated[str | None, typer.Option(help="Only those of one origin, such as tf1 or garden.")] = None,
    as_json: Json = False,
) -> None:
    """List the registered models."""
    from rszoo.arch.walk import count_parameters
    from rszoo.registry.manifest import get_entry, list_models

    entries = [get_entry(name) for name in list_models(pattern, family=family)]
    if as_json:
        # Imported here: it needs numpy, which takes as long as the rest.
        from rszoo.cache.describe import describe_entry

        print_json([describe_entry(entry) for entry in entries])
        return
    rows = [("model", "parameters", "input", "top-1 %", "archive MiB", "trained on")]
    for entry in entries:
        size, top1 = str(entry.image_size), f"{entry.published.top1:.1f}"
        count = f"{count_parameters(entry.arch) / 1e6:.1f} M"
        archive = "?" if entry.source.size_mib is None else f"{entry.source.size_mib:g}"
        rows.append((entry.name, count, size, top1, archive, entry.family.dataset.name))
    show(table(rows))


def info(
    model: Annotated[
        str, typer.Argument(help="Model folder, registered name or hf-hub:OWNER/NAME; with --tensors a URL or file.")
    ],
    tensors: Annotated[
        bool, typer.Option("--tensors", help="List the weights' tensors; of a URL only the header is fetched.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show the facts about a registered model, a model folder, or a model on the Hub."""
    from rszoo.cache.describe import describe, describe_tensors

    if tensors:
        _show_tensors(describe_tensors(model), as_json)
    else:
        _show_facts(describe(model), as_json)


def _show_facts(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    show(table([(key, _text(value)) for key, value in _flatten(facts)]))


def _show_tensors(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    rows = [("name", "dtype", "shape", "bytes")]
    for tensor in facts["tensors"]:
        shape = " x ".join(map(str, tensor["shape"]))
        rows.append((tensor["name"], tensor["dtype"], shape, f"{tensor['nbytes']:,}"))
    show(table([*rows, (f"{facts['count']} tensors", "", "", f"{facts['nbytes']:,}")]))


def _flatten(facts: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows = []
    for key, value in facts.items():
        nested = _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
        rows += [(name, item) for name, item in nested if item is not None]
    return rows


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) if not isinstance(item, tuple) else ": ".join(map(str, item)) for item in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
