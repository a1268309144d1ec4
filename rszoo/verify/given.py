"""The checks that need what a user gives: the original checkpoint, and the photo that the published logits belong to.

What is given and cannot be used is an error, so that a typing error is not recorded as a fault of the weights.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters.convert import open_accounted
from converters.read.local import is_rszoo_config
from converters.read.source import find_source, locate
from rszoo.arch.audit import same_bits
from rszoo.arch.config import ArchConfig
from rszoo.arch.names import torch_name
from rszoo.arch.walk import TensorSpec, iter_tensors
from rszoo.cache.find import find_folder
from rszoo.disk.paths import expand_user
from rszoo.disk.regular import read_regular
from rszoo.errors import ImageError, SourceNotFoundError, UsageError, WeightsError
from rszoo.folder.model_folder import CONFIG, ModelFolder, WeightKind, WeightSet, sha256_of
from rszoo.hub.pull import fetch_file
from rszoo.inference.images import preprocess
from rszoo.models.factory import import_model_module
from rszoo.refs import Checkpoint, Folder, Hub
from rszoo.registry.entry import Golden, GoldenImage
from rszoo.registry.manifest import get_entry
from rszoo.registry.preprocessing import Preprocessing
from rszoo.verify.check import Check, Status
from rszoo.verify.stages import torch_stages
from rszoo.weights.mapping import Weights, check_header

# Published logits have four decimals, but are of TensorFlow's crop of the JPEG, with other colours at its left and
# right edge; and if simplejpeg is missing, Pillow decodes it, a level of 255 off on average.
_GOLDEN_BOUND = 0.1
_AGAINST = "other source"
# What leaves no trace in tensors.
_OPERATIONS = ("activation", "strided_padding", "shortcut_pool")


def check_source(folder: ModelFolder, source: str | None) -> Check:
    """Read the original checkpoint again and compare every tensor bit by bit.

    Raises:
        UsageError: a source is given for weights that have none; else as `locate` and `open_accounted`.
    """
    weights_kind = folder.config.weights
    if source is not None and not source:
        raise UsageError("--ckpt is empty; give the checkpoint, or leave it out")
    if weights_kind == "trained":
        if source is not None:
            raise UsageError(
                f"--ckpt {source} cannot be used: the weights of {folder.path} were trained, and no checkpoint has "
                "them; leave it out"
            )
        return Check("source", "not run", "the weights were trained; no published checkpoint has them")
    source = source or _embedded(folder)
    if source is None:
        return Check("source", "not run", "give the original with --ckpt to compare every tensor with it")
    try:
        check_header(folder.weights_path, folder.config.arch)
    except WeightsError as error:
        return Check("source", "failed", str(error))
    with (
        tempfile.TemporaryDirectory(prefix="rszoo-") as spool,
        locate(source) as open_files,
        open_accounted(open_files, Path(spool), weights_kind) as (files, account),
    ):
        if account.arch.num_classes == folder.config.arch.num_classes + 1:
            account = account.without_background()
        if set(account.mapped) != set(iter_tensors(folder.config.arch)):
            labels = folder.config.arch.label, account.arch.label
            return Check("source", "failed", f"the weights are of a {labels[0]}, {source} is of another {labels[1]}")
        with Weights(folder.weights_path, check=False) as weights:
            for spec, variable in account.mapped.items():
                if not same_bits(account.read(files.reader, spec), weights[torch_name(spec)]):
                    return Check("source", "failed", f"{torch_name(spec)} differs from {variable} in {source}")
        return Check("source", "passed", f"all {len(account.mapped)} tensors equal to {files.source}, bit by bit")


def check_against(folder: ModelFolder, source: str) -> Check:
    """Compare every tensor, bit by bit, with those of another source: a checkpoint of any format, or a model.

    Raises:
        UsageError: it is empty, or names no such thing; else as `locate`, `open_accounted` and `rszoo.load_weights`.
    """
    if not source:
        raise UsageError("--against is empty; give a checkpoint, a model folder, or hf-hub:OWNER/NAME")
    check_header(folder.weights_path, folder.config.arch)
    with ExitStack() as stack:
        other = stack.enter_context(_open_other(source, folder.config.weights))
        if set(other.specs) != set(iter_tensors(folder.config.arch)):
            mine, theirs = _network(folder.config.arch), _network(other.arch)
            return Check(_AGAINST, "failed", f"the weights are of a {mine}, {source} is of a {theirs}")
        weights = stack.enter_context(Weights(folder.weights_path, check=False))
        differing = [
            (torch_name(spec), np.abs(values - mine).max() if values.shape == mine.shape else math.inf)
            for spec in other.specs
            if not same_bits(values := other.read(spec), mine := weights[torch_name(spec)])
        ]
        count = len(other.specs)
    if not differing:
        ops = [name for name in _OPERATIONS if getattr(other.arch, name) != getattr(folder.config.arch, name)]
        but = f"; but not the networks, by {' and '.join(ops)}" if ops else ""
        return Check(
            _AGAINST, "failed" if ops else "passed", f"all {count} tensors equal to {other.name}, bit by bit{but}"
        )
    name, largest = max(differing, key=lambda pair: pair[1])
    return Check(
        _AGAINST,
        "failed",
        f"{len(differing)} of {count} tensors differ from {other.name}: first {differing[0][0]}, most {name}, by "
        f"{largest:.1e}",
    )


def _network(arch: ArchConfig) -> str:
    return f"{arch.label} with {arch.num_classes} classes and {arch.in_chans} input channels"


@dataclass(frozen=True)
class _Other:
    """Weights to compare with: `read` gives a tensor as a model folder has it."""

    name: str
    arch: ArchConfig
    specs: list[TensorSpec]
    read: Callable[[TensorSpec], np.ndarray]


@contextmanager
def _open_other(source: str, kind: WeightKind) -> Iterator[_Other]:
    """Open a model folder here or on the Hub, or else a checkpoint, of which the same set is taken, if it has two."""
    if (found := _find_model(source)) is not None:
        check_header(found.weights_path, found.config.arch, half=True)
        with Weights(found.weights_path) as weights:
            specs = list(iter_tensors(found.config.arch))
            yield _Other(source, found.config.arch, specs, lambda spec: weights[torch_name(spec)].astype("f4"))
        return
    wanted: WeightSet = "raw" if kind == "raw" else "ema"
    with (
        tempfile.TemporaryDirectory(prefix="rszoo-") as spool,
        locate(source) as open_files,
        open_accounted(open_files, Path(spool), wanted) as (files, account),
    ):
        yield _Other(files.source, account.arch, list(account.mapped), lambda spec: account.read(files.reader, spec))


def _find_model(source: str) -> ModelFolder | None:
    """Return the model folder that a text names, here or on the Hub; None for a checkpoint or a registered pair."""
    ref = find_source(source)
    if isinstance(ref, Hub):
        return find_folder(ref) if is_rszoo_config(read_regular(fetch_file(ref, CONFIG))) else None
    if isinstance(ref, (Folder, Checkpoint)) and (config := expand_user(ref.path) / CONFIG).is_file():
        return find_folder(Folder(ref.path)) if is_rszoo_config(read_regular(config)) else None
    return None


def _embedded(folder: ModelFolder) -> str | None:
    """Return the checkpoint of a folder's pair if it comes with rszoo."""
    path = get_entry(folder.config.pair).source.path if folder.config.pair else None
    return None if path is None else str(path)


def check_photo(folder: ModelFolder, image: Path) -> None:
    """Check that a file is the photo that the published logits of a folder's weights belong to.

    Raises:
        SourceNotFoundError: there is no such file, or it cannot be read. ImageError: it is another.
        UsageError: no logits are published for these weights.
        MissingPackageError: PyTorch, which computes the logits, is not installed.
    """
    if not image.is_file():
        raise SourceNotFoundError(f"no image at {image}; give the path of the published photo")
    known = _find_golden(folder)
    if isinstance(known, str):
        raise UsageError(f"--golden-image {image} cannot be used: {known}; leave it out")
    _, photo = known
    try:
        sha256 = sha256_of(image)
    except OSError as error:
        raise SourceNotFoundError(f"cannot read {image}: {error.strerror}; give the path of {photo.name}") from error
    if sha256 != photo.sha256:
        raise ImageError(
            f"{image} is not {photo.name}: its SHA-256 is {sha256}, not {photo.sha256}; get the photo from {photo.url}"
        )
    import_model_module("torch")


def _find_golden(folder: ModelFolder) -> tuple[Golden, GoldenImage] | str:
    """Return the logits that are published for a folder's weights and the photo of them, or why there are none."""
    entry = get_entry(folder.config.pair) if folder.config.pair else None
    if entry is None or entry.golden is None or entry.family.golden_image is None:
        return f"no logits are published for {folder.config.title}"
    if folder.config.weights != "ema":
        return "the published logits are of the averaged weights"
    return entry.golden, entry.family.golden_image


def check_golden(folder: ModelFolder, image: str | None) -> Check:
    """Compare the logits of the published photo with those of the original graph."""
    name, known = "published logits", _find_golden(folder)
    if isinstance(known, str):
        return Check(name, "not run", known)
    golden, photo = known
    if image is None:
        return Check(name, "not run", f"give {photo.name} ({photo.url}) with --golden-image")
    inputs = preprocess(image, Preprocessing(photo.image_size))
    logits = torch_stages(folder, [inputs], "float32")[0]["logits"][0].astype(np.float64)
    figures = {f"class {index}": abs(float(logits[index]) - expected) for index, expected in golden.top5}
    figures["L2 norm"] = abs(float(np.linalg.norm(logits)) - golden.logits_l2)
    worst = max(figures, key=lambda key: figures[key] if math.isfinite(figures[key]) else math.inf)
    status: Status = "passed" if figures[worst] <= _GOLDEN_BOUND else "failed"
    return Check(name, status, f"{worst} differs most, by {figures[worst]:.4f} (at most {_GOLDEN_BOUND})", figures)
