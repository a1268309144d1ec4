"""`rszoo prefetch`, `rszoo cache ...` and `rszoo manifest ...`. Each command imports what it needs when it runs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rszoo.cli.console import Json, WeakSource, WeightsChoice, examples, new_app, print_json, print_path, raise_first
from rszoo.errors import SourceNotFoundError, UsageError, VerificationError
from rszoo.terminal import show, table

if TYPE_CHECKING:
    from rszoo.registry.trust import Record

cache_app = new_app("Converted models on this machine. RSZOO_CACHE names the folder.")
manifest_app = new_app("The list of published models and their hashes.")

Pattern = Annotated[str, typer.Argument(help="Shell pattern, such as '*-i256'.")]


def prefetch(
    patterns: Annotated[list[str], typer.Argument(help="Names or shell patterns, such as '*-i256'.")],
    output: Annotated[
        Path | None, typer.Option(help="Fill this folder instead of the cache; elsewhere, RSZOO_CACHE can name it.")
    ] = None,
    weights: Annotated[WeightsChoice, typer.Option(help="Averaged or plain weights.")] = WeightsChoice.ema,
    keep_archive: Annotated[
        bool, typer.Option("--keep-archive", help="Keep the archives in the cache's archives folder.")
    ] = False,
    allow_weak_source: WeakSource = False,
    as_json: Json = False,
) -> None:
    """Download and convert models, for use without a network."""
    from rszoo.cache.prefetch import prefetch_models

    outcomes = []
    for outcome in prefetch_models(
        patterns, output, weights=weights.value, keep_archive=keep_archive, allow_weak_source=allow_weak_source
    ):
        outcomes.append(outcome)
        if not as_json and outcome.error is None:
            show(f"{outcome.name}  {outcome.path}")
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if len(outcomes) > 1:
        for outcome in failed:
            show(f"{outcome.name}: {outcome.error}", file=sys.stderr)
    if as_json:
        found = [outcome.to_dict() for outcome in outcomes if outcome.error is None]
        print_json({"models": found, "failed": [outcome.to_dict() for outcome in failed]})
    raise_first([outcome.error for outcome in failed], len(outcomes), "models are missing, see above")


@cache_app.command("path", epilog=examples("rszoo cache path", "rszoo cache path resnet-rs-50-i160"))
def cache_path(model: Annotated[str | None, typer.Argument(help="Registered name.")] = None) -> None:
    """Print the cache's folder, or that of a model in it."""
    from rszoo.cache.cached import find_cached
    from rszoo.disk.paths import cache_folder
    from rszoo.registry.manifest import get_entry

    if model is None:
        print_path(cache_folder())
        return
    entry = get_entry(model)
    folder = find_cached(entry)
    if folder is None:
        raise SourceNotFoundError(f"{entry.name} is not in the cache; get it with `rszoo prefetch {entry.name}`")
    print_path(folder.path)


@cache_app.command("list", epilog=examples("rszoo cache list", "rszoo cache list '*-i256' --json"))
def cache_list(pattern: Pattern = "*", as_json: Json = False) -> None:
    """List the models in the cache, what they were made from, and the hashes that were trusted on first use."""
    from rszoo.cache.upkeep import find_garbage, list_cached, list_records, tree_bytes
    from rszoo.disk.paths import archives_folder, cache_folder

    cached, records = list_cached(pattern), list_records()
    if as_json:
        facts = {name: dataclasses.asdict(record) for name, record in records.items()}
        print_json({"models": [model.to_dict() for model in cached], "records": facts})
        return
    rows = [("model", "weights", "MB", "SHA-256", "archive SHA-256", "archive known since")]
    for model in cached:
        size, archive = f"{model.bytes / 1e6:.1f}", (model.archive_sha256 or "?")[:16]
        rows.append((model.name, model.weights, size, (model.sha256 or "?")[:16], archive, _since(model.name, records)))
    for name in sorted(records.keys() - {model.name for model in cached}):
        rows.append((name, "not here", "", "", (records[name].sha256 or "?")[:16], _since(name, records)))
    show(table(rows) if len(rows) > 1 else f"{cache_folder()} has no models; get some with `rszoo prefetch NAME`")
    if archives := tree_bytes(archives_folder()):
        show(f"{archives / 1e6:.1f} MB of kept archives in {archives_folder()}")
    if garbage := find_garbage():
        size = f"{sum(map(tree_bytes, garbage)) / 1e6:.1f}"
        show(f"{len(garbage)} unfinished or outdated, {size} MB: `rszoo cache prune` removes them")


@cache_app.command("verify", epilog=examples("rszoo cache verify", "rszoo cache verify resnet-rs-50-i160"))
def cache_verify(pattern: Pattern = "*", as_json: Json = False) -> None:
    """Read every model in the cache in full, and convert damaged ones again."""
    from rszoo.cache.upkeep import verify_cache

    verdicts = verify_cache(pattern)
    if as_json:
        print_json([verdict.to_dict() for verdict in verdicts])
    else:
        for verdict in verdicts:
            show(f"{verdict.status:8} {verdict.name}: {verdict.detail}")
    if damaged := [verdict.name for verdict in verdicts if verdict.status == "damaged"]:
        raise VerificationError(
            f"{len(damaged)} of {len(verdicts)} models were damaged and removed: {', '.join(damaged)}"
        )


@cache_app.command("prune", epilog=examples("rszoo cache prune --dry-run"))
def cache_prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    as_json: Json = False,
) -> None:
    """Remove unfinished downloads, leftovers of killed processes, and older copies; active downloads are kept."""
    from rszoo.cache.upkeep import find_garbage, remove_all, tree_bytes

    garbage = [(path, tree_bytes(path)) for path in find_garbage()]
    if not dry_run:
        remove_all([path for path, _ in garbage])
    _report_removed(garbage, as_json, "would remove" if dry_run else "removed")


@cache_app.command("clear", epilog=examples("rszoo cache clear '*-i320' --yes"))
def cache_clear(
    pattern: Annotated[str | None, typer.Argument(help="Only models that match; all of the cache if left out.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove models from the cache. Recorded hashes are kept, and later downloads must have the same."""
    from rszoo.cache.upkeep import clear_cache, list_cached, tree_bytes
    from rszoo.disk.paths import cache_folder

    sizes = {model.path: tree_bytes(model.path) for model in list_cached(pattern or "*")}
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("this removes models, and there is no terminal to confirm it; add --yes")
        typer.confirm(f"remove {len(sizes)} models from {cache_folder()}?", abort=True, err=True)
    _report_removed([(path, sizes.get(path, 0)) for path in clear_cache(pattern)], as_json, "removed")


@manifest_app.command("pin", epilog=examples("rszoo manifest pin weights_manifest.json"))
def manifest_pin(
    manifest: Annotated[Path, typer.Argument(help="The file to write into.")] = Path("weights_manifest.json"),
    as_json: Json = False,
) -> None:
    """Write the hashes recorded on this machine into a manifest, where it has none."""
    from rszoo.registry.pinning import pin_manifest

    pinned = pin_manifest(manifest)
    if as_json:
        print_json(pinned)
        return
    for name, facts in pinned.items():
        show(f"{name}: {', '.join(facts)}")
    if not pinned:
        show(f"{manifest} is unchanged: no recorded hash that it lacks")


def _since(name: str, records: Mapping[str, Record]) -> str:
    """Return when a model's archive hash was recorded, or that the manifest pins it."""
    from rszoo.registry.manifest import get_entry, list_models

    if name in list_models() and get_entry(name).source.sha256:
        return "pinned in the manifest"
    return records[name].recorded if name in records else "not recorded"


def _report_removed(removed: list[tuple[Path, int]], as_json: bool, verb: str) -> None:
    if as_json:
        print_json([{"path": str(path), "bytes": size} for path, size in removed])
        return
    for path, size in removed:
        show(f"{verb} {path} ({size / 1e6:.1f} MB)")
    show(f"{verb} {sum(size for _, size in removed) / 1e6:.1f} MB in all")
