"""A TF1 checkpoint converted to a model folder: every variable accounted for, written, re-read, compared, renamed.

`convert` is what `rszoo-convert` and `rszoo.create(..., pretrained=True)` call. Needs no TensorFlow and no PyTorch.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open

from converters.account import GLOBAL_STEP, Account, take_account
from converters.read.files import CheckpointFiles
from converters.read.source import Opener, Source, find_entry, find_source, locate
from converters.tensorbundle.bundle import Bundle
from rszoo.arch.names import to_torch_layout, torch_name, torch_shape
from rszoo.arch.walk import TensorSpec
from rszoo.disk.paths import expand_user
from rszoo.disk.safetensors_writer import SafetensorsWriter
from rszoo.disk.staging import staged_folder, sync_file
from rszoo.errors import ConversionError, OutputError, UsageError
from rszoo.folder.model_folder import (
    CONFIG,
    CONVERSION,
    EVALUATION,
    VERIFICATION,
    WEIGHTS,
    ModelConfig,
    WeightSet,
    config_sha256,
    sha256_of,
)
from rszoo.registry.manifest import PretrainedEntry, get_entry, list_models
from rszoo.registry.preprocessing import Preprocessing
from rszoo.terminal import progress_bar
from rszoo.version import __version__

_WORKERS = 2
# Memory is bounded by the groups under way, of this size each; the largest single tensor has 9.4 MB.
_GROUP_BYTES = 8 << 20
_WINDOW = 4

Group = list[tuple[TensorSpec, str]]

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Identity:
    """What the user says a checkpoint is, where its name does not: a registered pair, or an input size of one's own."""

    model: str | None = None
    image_size: int | None = None


def convert(
    source: str | Source,
    output: str | Path,
    *,
    weights: WeightSet = "ema",
    identity: Identity | None = None,
    overwrite: bool = False,
    keep_archive: bool = False,
) -> dict[str, Any]:
    """Convert a checkpoint to the model folder `output`, and return the account (`conversion.json`).

    `source`: archive, folder, prefix, URL or registered name, see `locate`. A download is converted while it arrives;
    `keep_archive` keeps it in the cache afterwards.

    Raises:
        ConversionError: the checkpoint is not a ResNet-RS, or its name, the registry and its content disagree.
        UsageError: `weights` is unknown, or nothing tells the resolution: `identity` must.
        OutputError: `output` exists and `overwrite` is off, or it cannot be written.
        SourceNotFoundError, ArchiveError, CheckpointError, NetworkError: as `locate`.
    """
    if weights not in ("ema", "raw"):
        raise UsageError(f"weights must be ema or raw, received {weights!r}")
    identity = identity or Identity()
    found = find_source(source)
    entry = get_entry(identity.model) if identity.model else find_entry(found)
    target = expand_user(output)
    with (
        # First in, last out: a download is kept until the result is in its place.
        locate(found, keep_archive=keep_archive) as open_files,
        staged_folder(target, overwrite=overwrite, is_ours=is_model_folder) as folder,
    ):
        return convert_into(folder, open_files, entry, weights, identity)


def convert_into(
    folder: Path,
    open_files: Opener,
    entry: PretrainedEntry | None,
    weights: WeightSet,
    identity: Identity = Identity(),
) -> dict[str, Any]:
    """Convert a checkpoint into an empty folder that becomes a model folder, and return the account.

    `entry`: the registered pair that it is known to be. Raises as `convert`.
    """
    with open_accounted(open_files, folder, weights) as (files, bundle, account):
        config = _describe(account, entry, identity)
        metadata = _metadata(files, config)
        _write_weights(folder / WEIGHTS, bundle, account, metadata)
        with ThreadPoolExecutor(_WORKERS) as pool:
            written = pool.submit(sync_file, folder / WEIGHTS)
            sha256 = pool.submit(sha256_of, folder / WEIGHTS)
            _compare_reread(folder / WEIGHTS, bundle, account, metadata)
        written.result()
        report = _report(bundle, account, files, config, sha256.result())
    (folder / CONFIG).write_text(config.to_json(), encoding="utf-8")
    (folder / CONVERSION).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


@contextmanager
def open_accounted(
    open_files: Opener, spool_folder: Path, weights: WeightSet
) -> Iterator[tuple[CheckpointFiles, Bundle, Account]]:
    """Open a checkpoint, account for its variables, and make sure that what will be read is there.

    Raises as `locate` and `take_account` do.
    """
    # First with the guess of where the wanted set lies; should the index refute it, once more with all of the archive.
    for keep in (weights, None):
        with open_files(spool_folder, keep) as files:
            bundle = Bundle(files.index, files.shards)
            account = take_account(bundle.entries, weights)
            wanted = [variable for _, variable in account.mapped] + [GLOBAL_STEP] * (GLOBAL_STEP in bundle.entries)
            if all(files.holds(bundle.entries[variable]) for variable in wanted):
                yield files, bundle, account
                return


def is_model_folder(path: Path) -> bool:
    """Whether a folder is a former result and nothing else, which `--overwrite` may replace."""
    names = {child.name for child in path.iterdir()}
    return {CONFIG, CONVERSION} <= names <= {CONFIG, CONVERSION, WEIGHTS, VERIFICATION, EVALUATION}


def _describe(account: Account, entry: PretrainedEntry | None, identity: Identity) -> ModelConfig:
    """Bring together what the content, the name and the user say; raise where they disagree or say too little."""
    if entry is not None:
        _check_agreement(account, entry, identity)
        arch = replace(
            account.arch,
            dropout_rate=entry.arch.dropout_rate,
            drop_connect_rate=entry.arch.drop_connect_rate,
            bn_epsilon=entry.arch.bn_epsilon,
        )
        return ModelConfig(entry.name, entry.name, arch, entry.preprocessing, entry.labels, account.weights)
    if identity.image_size is None:
        pairs = [name for name in list_models() if get_entry(name).arch.blocks == account.arch.blocks]
        known = f" --model NAME ({', '.join(pairs)}) or" if pairs else ""
        raise UsageError(
            f"the checkpoint holds a {account.arch.label}, but neither its name nor its content tells the input size; "
            f"give{known} --image-size PIXELS"
        )
    settings = Preprocessing(image_size=identity.image_size)
    return ModelConfig(account.arch.label, None, account.arch, settings, None, account.weights)


def _check_agreement(account: Account, entry: PretrainedEntry, identity: Identity) -> None:
    if identity.image_size not in (None, entry.image_size):
        raise UsageError(
            f"{entry.name} is of input size {entry.image_size}, but --image-size {identity.image_size} is given"
        )
    expected = replace(
        entry.arch,
        dropout_rate=account.arch.dropout_rate,
        drop_connect_rate=account.arch.drop_connect_rate,
        bn_epsilon=account.arch.bn_epsilon,
    )
    if expected != account.arch:
        raise ConversionError(
            f"by its name this is {entry.name}, a {_network(expected)}, but the checkpoint holds a "
            f"{_network(account.arch)}; rename it, or say what it is with --model NAME"
        )


def _network(arch: Any) -> str:
    return f"{arch.label} with {arch.num_classes} classes and {arch.in_chans} input channels"


def _metadata(files: CheckpointFiles, config: ModelConfig) -> dict[str, str]:
    """Return the safetensors metadata: nothing in it depends on the machine, the folder or the time."""
    if files.archive_sha256:
        origin = {"source_sha256": files.archive_sha256}
    else:
        # The index holds the CRC32C of every tensor, so its hash stands for the unpacked checkpoint's content.
        origin = {"source_index_sha256": hashlib.sha256(files.index).hexdigest()}
    return {
        "format": "pt",
        "model": config.title,
        "source": files.source,
        "weights": config.weights,
        "converter": f"rszoo {__version__}",
        **origin,
    }


def _write_weights(path: Path, bundle: Bundle, account: Account, metadata: dict[str, str]) -> None:
    shapes = [(torch_name(spec), torch_shape(spec)) for spec, _ in account.mapped]
    writer = SafetensorsWriter(path, shapes, metadata)

    def write(group: Group) -> None:
        writer.write((torch_name(spec), to_torch_layout(spec.kind, bundle.read(name))) for spec, name in group)

    with ThreadPoolExecutor(_WORKERS) as pool:
        for _ in _ahead(pool, write, _progress("converting", _groups(account))):
            pass


def _compare_reread(path: Path, bundle: Bundle, account: Account, metadata: dict[str, str]) -> None:
    """Read the file again with the safetensors package and compare it bit by bit with the checkpoint.

    Raises:
        OutputError: they differ.
    """

    def compare(group: Group) -> None:
        # Opened anew for each group: what the reader has mapped counts as memory.
        with safe_open(path, framework="numpy") as written:
            for spec, variable in group:
                expected = to_torch_layout(spec.kind, bundle.read(variable))
                if not _same_bits(expected, written.get_tensor(torch_name(spec))):
                    raise OutputError(f"{path.name} reads back with other values for {variable}; is the disk failing?")

    try:
        with safe_open(path, framework="numpy") as written:
            names_ok = set(written.keys()) == {torch_name(spec) for spec, _ in account.mapped}
            if not names_ok or written.metadata() != metadata:
                raise OutputError(f"{path.name} reads back with another header than was written; is the disk failing?")
        with ThreadPoolExecutor(_WORKERS) as pool:
            for _ in _ahead(pool, compare, _progress("comparing", _groups(account))):
                pass
    except SafetensorError as error:
        raise OutputError(f"{path.name} does not read back ({error}); is the disk failing?") from error


def _same_bits(expected: np.ndarray, actual: np.ndarray) -> bool:
    # As integers: NaN equals itself, and 0.0 is not -0.0.
    return actual.dtype == np.float32 and np.array_equal(expected.view(np.int32), actual.view(np.int32))


def _groups(account: Account) -> list[Group]:
    """Cut the walk into runs of some megabytes, the portions in which the threads work."""
    groups: list[Group] = [[]]
    size = 0
    for item in account.mapped:
        if size >= _GROUP_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(item)
        size += item[0].size * 4
    return groups


def _progress(title: str, groups: list[Group]) -> Iterator[Group]:
    with progress_bar(title, len(groups)) as bar:
        for group in groups:
            yield group
            bar.update()


def _ahead(pool: ThreadPoolExecutor, work: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
    """Map on the pool in order, never more than a few results ahead of the consumer."""
    pending: deque[Future[_R]] = deque()
    for item in items:
        pending.append(pool.submit(work, item))
        if len(pending) >= _WINDOW:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _report(
    bundle: Bundle, account: Account, files: CheckpointFiles, config: ModelConfig, sha256: str
) -> dict[str, Any]:
    step = bundle.read(GLOBAL_STEP) if GLOBAL_STEP in bundle.entries else None
    return {
        "format_version": 1,
        "converter": f"rszoo {__version__}",
        "model": config.title,
        "architecture": account.arch.label,
        "parameters": sum(spec.size for spec, _ in account.mapped if spec.kind.trainable),
        "weights": account.weights,
        "source": {
            "name": files.source,
            "prefix": files.prefix,
            "archive_size": files.archive_size,
            "archive_sha256": files.archive_sha256,
            "variables": len(bundle.entries),
            "global_step": None if step is None else int(step),
        },
        "result": {
            "file": WEIGHTS,
            "sha256": sha256,
            "config_sha256": config_sha256(config.to_json()),
            "tensors": len(account.mapped),
        },
        "checks": [
            "CRC32C of the index and of every tensor read",
            "every variable mapped or skipped, every tensor filled once",
            "result re-read and equal to the checkpoint bit by bit",
        ],
        "mapped": {variable: torch_name(spec) for spec, variable in account.mapped},
        "skipped": {reason: list(names) for reason, names in account.skipped.items()},
    }
