"""A checkpoint converted to a model folder: every variable accounted for, written, re-read, compared, renamed.

`convert` is what `rszoo-convert` and `rszoo.create(..., pretrained=True)` call. Needs no TensorFlow and no PyTorch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from converters.account import Account, take_account
from converters.formats import recognize
from converters.read.files import OpenCheckpoint
from converters.read.local import Opener
from converters.read.source import Source, find_entries, find_source, locate
from rszoo.arch.config import ArchConfig
from rszoo.disk.temporary import temporary_folder
from rszoo.errors import ConversionError, OutputError, UsageError
from rszoo.folder.model_folder import ModelConfig, WeightSet, read_folder
from rszoo.folder.writing import Provenance, TensorSource, staged_model_folder, write_records, write_weights
from rszoo.registry.entry import PretrainedEntry
from rszoo.registry.manifest import get_entry, list_models

# What leaves no trace in a checkpoint, and a registered pair is known to have.
_NOT_IN_CHECKPOINTS = ("dropout_rate", "drop_connect_rate", "bn_epsilon")
_CHECKS = (
    "every variable mapped or skipped, every tensor filled once",
    "result re-read and equal to the checkpoint bit by bit",
)


@dataclass(frozen=True)
class Identity:
    """What a checkpoint is, where its name does not say: a registered pair, or an input size."""

    model: str | None = None
    image_size: int | None = None


def convert(
    source: str | Source,
    output: str | Path | Sequence[str],
    *,
    weights: WeightSet = "ema",
    identity: Identity | None = None,
    overwrite: bool = False,
    keep_archive: bool = False,
    drop_background: bool = False,
    allow_weak_source: bool = False,
) -> dict[str, Any]:
    """Convert a checkpoint to the model folder `output`, and return the account (`conversion.json`).

    Of several names the folder gets that which is its pair's.

    `source`: archive, folder, prefix, file, URL or registered name, see `locate`. A download is converted while it
    arrives; `keep_archive` keeps it in the cache afterwards. `drop_background`: leave out the first of 1001 classes.
    `allow_weak_source`: of a registered name, if nothing else can be had, also take a copy that no hash proves.

    Raises:
        ConversionError: the checkpoint is not a ResNet-RS, or its name, the registry and its content disagree.
        UsageError: `weights` is unknown, nothing says the resolution (`identity` must), or there is no background.
        OutputError: `output` exists and `overwrite` is off, or it cannot be written.
        SourceNotFoundError, ArchiveError, CheckpointError, NetworkError: as `locate`.
    """
    if weights not in ("ema", "raw"):
        raise UsageError(f"weights must be ema or raw, received {weights!r}")
    identity = identity or Identity()
    found = find_source(source)
    entries = [get_entry(identity.model)] if identity.model else find_entries(found)
    with (
        # Left last: a download is kept until the result has its final name.
        locate(found, keep_archive=keep_archive, allow_weak=allow_weak_source) as open_files,
        _staged(output, overwrite=overwrite) as folder,
    ):
        return convert_into(folder, open_files, entries, weights, identity, drop_background=drop_background)


@contextmanager
def _staged(output: str | Path | Sequence[str], *, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder that becomes the model folder, see `staged_model_folder`."""
    places = [output] if isinstance(output, (str, Path)) else [*output]
    if len(places) == 1:
        with staged_model_folder(places[0], overwrite=overwrite) as folder:
            yield folder
        return
    if not overwrite and all(map(os.path.lexists, places)):
        raise OutputError(f"{' and '.join(map(str, places))} exist; choose another --output, or add --overwrite")
    with temporary_folder(Path(places[0])) as scratch:
        yield scratch
        named = read_folder(scratch).config.title
        with staged_model_folder(named, overwrite=overwrite) as folder:
            for path in scratch.iterdir():
                path.rename(folder / path.name)


def convert_into(
    folder: Path,
    open_files: Opener,
    entries: Sequence[PretrainedEntry],
    weights: WeightSet,
    identity: Identity = Identity(),
    *,
    drop_background: bool = False,
) -> dict[str, Any]:
    """Convert a checkpoint into an empty folder that becomes a model folder, and return the account.

    `entries`: the registered pairs that it may be, by its name, of which its format decides. Raises as `convert`.
    """
    with open_accounted(open_files, folder, weights) as (files, account):
        account = account.without_background() if drop_background else account
        config = _describe(account, entries, identity)
        tensors = TensorSource(account.mapped, lambda spec: account.read(files.reader, spec))
        written = write_weights(folder, config, tensors, {"source": files.source, **files.content_hash()})
        checks = [*files.integrity_checks(), *_CHECKS]
        provenance = Provenance(account.format.name, _source_facts(files, account), account.skipped, checks)
        return write_records(folder, config, tensors.names, provenance, written)


@contextmanager
def open_accounted(
    open_files: Opener, spool_folder: Path, weights: WeightSet
) -> Iterator[tuple[OpenCheckpoint, Account]]:
    """Open a checkpoint, account for its variables, and make sure that what will be read is there.

    Raises as `locate` and `take_account` do.
    """
    # First with the computed ranges of the wanted set; if the index refutes them, again with the whole archive.
    for keep in (weights, None):
        with open_files(spool_folder, keep) as files:
            account = take_account(recognize(files.reader, files.formats()), files.reader, weights)
            if all(map(files.holds, account.wanted)):
                yield files, account
                return


def _describe(account: Account, entries: Sequence[PretrainedEntry], identity: Identity) -> ModelConfig:
    """Bring together what the content, the name and the user say; raise if they disagree or say too little."""
    arch = account.arch
    if entries:
        # Archives of one name were published in two formats.
        of_format = (entry for entry in entries if entry.family.format == account.format.name)
        entry = next(of_format, entries[0])
        if account.weights == "raw" and entry.family.format != account.format.name:
            raise ConversionError(
                f"a {account.format.title} of {entry.name} has the averages, not the plain weights, which are in "
                f"{entry.source.url or entry.source.file} alone; leave out --weights raw"
            )
        _check_agreement(account, entry, identity)
        known = {field: getattr(entry.arch, field) for field in _NOT_IN_CHECKPOINTS}
        arch, labels = replace(arch, **known), entry.labels_of(arch.num_classes)
        if not arch.num_classes:
            # A part of the pair, which is a classifier.
            title = f"{entry.name}, without its classifier"
            return ModelConfig(title, None, arch, entry.preprocessing, None, account.weights)
        return ModelConfig(entry.name, entry.name, arch, entry.preprocessing, labels, account.weights)
    said, size = account.said, identity.image_size or account.said.image_size
    if size is None:
        pairs = [name for name in list_models() if get_entry(name).arch.blocks == arch.blocks]
        known_pairs = f" --model NAME ({', '.join(pairs)}) or" if pairs else ""
        raise UsageError(
            f"the checkpoint holds a {arch.label}, but neither its name nor its content says the input size; "
            f"give{known_pairs} --image-size PIXELS"
        )
    settings = (said.preprocessing or account.format.preprocessing)(size)
    return ModelConfig(arch.label, None, arch, settings, account.labels, account.weights)


def _check_agreement(account: Account, entry: PretrainedEntry, identity: Identity) -> None:
    if identity.image_size not in (None, entry.image_size):
        raise UsageError(
            f"{entry.name} is of input size {entry.image_size}, but --image-size {identity.image_size} is given"
        )
    compared = {field.name for field in fields(ArchConfig)} - {*_NOT_IN_CHECKPOINTS}
    if not account.arch.num_classes or entry.labels_of(account.arch.num_classes) is not None:
        # With the background or without, or without the classifier.
        compared -= {"num_classes"}
    if account.arch.bn_epsilon not in (ArchConfig.bn_epsilon, entry.arch.bn_epsilon):
        # Where the checkpoint says one at all.
        compared |= {"bn_epsilon"}
    differing = [name for name in sorted(compared) if getattr(entry.arch, name) != getattr(account.arch, name)]
    if differing:
        who, remedy = "the name says", "rename it, or say what it is with --model NAME"
        if identity.model:
            who, remedy = "--model says", "give another, or leave it out and give --image-size PIXELS"
        raise ConversionError(
            f"{who} {entry.name} ({entry.family.format}), a {_network(entry.arch)}, but the checkpoint "
            f"({account.format.name}) holds a {_network(account.arch)}; they differ in {', '.join(differing)}; {remedy}"
        )


def _network(arch: ArchConfig) -> str:
    return f"{arch.label} with {arch.num_classes} classes and {arch.in_chans} input channels"


def _source_facts(files: OpenCheckpoint, account: Account) -> dict[str, Any]:
    # Only where there are any: the source of other accounts is as it was.
    notes: dict[str, Any] = {"notes": list(account.notes)} if account.notes else {}
    if files.proof is not None:
        notes["proof"] = files.proof
    return {
        **notes,
        "name": files.source,
        "prefix": files.prefix,
        "archive_size": files.archive_size,
        "archive_sha256": files.archive_sha256,
        "variables": len(files.reader.entries),
        "global_step": None if account.step is None else int(files.reader.read(account.step)),
    }
