"""Verification of a model folder: what can be proven on this machine is, and what cannot is named.

In goes a folder, out come `Check`s one by one: file against account, weights against their source, PyTorch against
Keras in float64, both against the original code in float32, logits against the published ones.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np

from converters.formats import list_formats
from converters.formats.format import Reference
from rszoo.arch.names import torch_name
from rszoo.arch.walk import Kind, iter_tensors
from rszoo.disk.temporary import write_whole
from rszoo.errors import ConfigError, MissingPackageError, OutputError, RszooError
from rszoo.extras import installed_versions, needs
from rszoo.folder.model_folder import FORMAT_VERSIONS, VERIFICATION, ModelFolder, find_damage, sha256_of
from rszoo.folder.records import read_conversion, read_verification
from rszoo.models.factory import import_model_module
from rszoo.verify.check import Check
from rszoo.verify.given import check_against, check_golden, check_photo, check_source
from rszoo.verify.stages import keras_stages, stage_errors, torch_stages
from rszoo.weights.mapping import Weights, check_header

#: Largest relative L2 error of float32 stages; right ports had up to 1.2e-6, wrong ones over 100 times the bound.
FLOAT32_BOUND = 2e-6
#: The same in float64, where only wiring can differ.
FLOAT64_BOUND = 1e-10
# An even and an odd size: padding and pooling differ between them.
_INPUT_SIZES = (64, 75)


def verify(
    folder: ModelFolder, *, source: str | None = None, golden_image: str | None = None, against: str | None = None
) -> Iterator[Check]:
    """Yield the outcome of every check; a failed one does not stop the others.

    What is given and cannot be used is an error before the first outcome, not a failed check.

    `source`: the checkpoint that the folder was converted from, see `locate`; an embedded one is found by itself.
    `golden_image`: path of the photo that the published logits belong to. `against`: another source of the same
    weights, see `check_against`.

    Raises:
        NewerFormatError: a newer rszoo wrote the account, or the outcome of earlier checks.
        UsageError: the folder is not of a kind that has a source or published logits.
        SourceNotFoundError, UnknownModelError: there is no such source or photo.
        ImageError: it is another photo.
        ArchiveError, CheckpointError, ConversionError, NetworkError: the source cannot be read, or is none.
    """
    _check_versions(folder)
    if golden_image is not None:
        check_photo(folder, Path(golden_image))
    compared = None if source is None else check_source(folder, source)
    other = None if against is None else check_against(folder, against)
    checks: tuple[tuple[str, Callable[[], Check]], ...] = (
        ("file", lambda: check_file(folder)),
        ("values", lambda: check_values(folder)),
        ("source", lambda: compared or check_source(folder, None)),
        *((("other source", lambda: other),) if other is not None else ()),
        ("torch = keras", lambda: check_frameworks(folder)),
        ("torch = original graph", lambda: check_original(folder, "torch")),
        ("keras = original graph", lambda: check_original(folder, "keras")),
        ("published logits", lambda: check_golden(folder, golden_image)),
    )
    for name, run in checks:
        try:
            yield run()
        except MissingPackageError as error:
            yield Check(name, "not run", str(error))
        except RszooError as error:
            yield Check(name, "failed", str(error))


def _check_versions(folder: ModelFolder) -> None:
    """Raise NewerFormatError if a newer rszoo wrote a record that a check reads, or that its outcome replaces."""
    for read in (read_conversion, read_verification):
        # A damaged one is `check_file`'s to report, or is replaced.
        with suppress(ConfigError):
            read(folder.path)


def save_verification(folder: ModelFolder, checks: list[Check]) -> None:
    """Write `verification.json`: the outcome, what it was of, and with which versions.

    Raises:
        OutputError: the folder cannot be written.
    """
    record = {
        "format_version": FORMAT_VERSIONS[VERIFICATION],
        "weights_sha256": sha256_of(folder.weights_path),
        "passed": all(check.status != "failed" for check in checks),
        "checks": [check.to_dict() for check in checks],
        "versions": installed_versions(("rszoo", "numpy", "torch", "keras", "tensorflow", "jax")),
    }
    target = folder.path / VERIFICATION
    try:
        write_whole(target, json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error


def check_file(folder: ModelFolder) -> Check:
    """Hold names, shapes and SHA-256 of the weights file against the architecture and the account."""
    check_header(folder.weights_path, folder.config.arch)
    if problem := find_damage(folder.path):
        return Check("file", "failed", f"{problem}; {folder.remedy}")
    digits = sha256_of(folder.weights_path)[:16]
    return Check("file", "passed", f"a {folder.config.arch.label}, SHA-256 {digits}... as recorded")


def check_values(folder: ModelFolder) -> Check:
    """Look for values that no trained network has: not finite, or negative variances."""
    wrong = []
    with Weights(folder.weights_path, check=False) as weights:
        for spec in iter_tensors(folder.config.arch):
            values = weights[torch_name(spec)]
            if not np.isfinite(values).all() or (spec.kind is Kind.MOVING_VARIANCE and values.min() < 0):
                wrong.append(torch_name(spec))
    if wrong:
        return Check("values", "failed", f"{len(wrong)} tensors not finite or with negative variance, first {wrong[0]}")
    return Check("values", "passed", "all finite, no variance negative")


def check_frameworks(folder: ModelFolder) -> Check:
    """Compare PyTorch and Keras stage by stage, in float64 where Keras's backend computes in it throughout."""
    import_model_module("torch")
    import_model_module("keras")
    import keras

    # JAX has no float64 by default, and on PyTorch Keras casts to float32 in its batch normalization.
    dtype = "float64" if keras.config.backend() == "tensorflow" else "float32"
    bound = FLOAT32_BOUND if dtype == "float32" else FLOAT64_BOUND
    batches = _inputs(folder)
    figures = stage_errors(keras_stages(folder, batches, dtype), torch_stages(folder, batches, dtype))
    return _judge("torch = keras", figures, bound, f"in {dtype}, Keras on {keras.config.backend()}")


def check_original(folder: ModelFolder, framework: Literal["torch", "keras"]) -> Check:
    """Give the weights to the original implementation of their format, and compare stage by stage in float32."""
    name = f"{framework} = original graph"
    run = {"torch": torch_stages, "keras": keras_stages}[framework]
    import_model_module(framework)
    reference = _find_reference(folder)
    if reference is None:
        return Check(name, "not run", f"no original implementation of this {folder.config.arch.label} is known")
    module, _, function = reference.function.partition(":")
    with needs("the original graph", reference.package):
        original = getattr(importlib.import_module(module), function)
    batches = _inputs(folder)
    figures = stage_errors(run(folder, batches, "float32"), original(folder, batches))
    return _judge(name, figures, FLOAT32_BOUND, f"in float32, {reference.how}")


def _find_reference(folder: ModelFolder) -> Reference | None:
    """Return the original implementation: that of the recorded format, or else of one that could hold the network."""
    try:
        recorded = read_conversion(folder.path).format
    except ConfigError:
        # `check_file` says so.
        recorded = None
    arch = folder.config.arch
    fitting = (
        known.reference
        for known in list_formats()
        if (known.fits(arch) if recorded is None else known.name == recorded)
    )
    return next(filter(None, fitting), None)


def _judge(name: str, figures: dict[str, float], bound: float, how: str) -> Check:
    # In the order of the forward pass, so the first stage over the bound is where the fault is.
    over = next((stage for stage, error in figures.items() if not error <= bound), None)
    worst = max(figures.values())
    if over is not None:
        return Check(
            name, "failed", f"first diverges at {over}, error {figures[over]:.1e}, bound {bound:.0e}; {how}", figures
        )
    return Check(name, "passed", f"largest relative L2 error {worst:.1e}, bound {bound:.0e}; {how}", figures)


def _inputs(folder: ModelFolder) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    channels = folder.config.arch.in_chans
    return [rng.standard_normal((2, size, size, channels)).astype(np.float32) for size in _INPUT_SIZES]
