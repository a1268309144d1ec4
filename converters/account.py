"""Every variable of a checkpoint accounted for: mapped to a tensor of the model, skipped for a reason, or an error.

Each tensor of the architecture's walk must be in the checkpoint exactly once; anything unexpected is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np

from converters.formats.format import Contents, Format, Reader, Said
from rszoo.arch.audit import Described, audit, dtype_name
from rszoo.arch.config import ArchConfig
from rszoo.arch.walk import TensorSpec, iter_tensors
from rszoo.errors import ConversionError, UsageError
from rszoo.folder.model_folder import WeightSet

_KIND = {"ema": "averages", "raw": "plain weights"}
_STEP_DTYPES = ("int32", "int64")
# The classes of ImageNet-1k, and one in front that no image has.
_WITH_BACKGROUND = 1001


@dataclass(frozen=True)
class Account:
    """What became of each variable of a checkpoint.

    Attributes:
        mapped: for each tensor of the walk, in its order, the variable that holds it.
        skipped: the other variables, by the reason for leaving them out.
        step: the variable that counts the steps, if there is one.
        notes: what else is to be said, in words.
        said: what the checkpoint says of itself.
        drops_background: whether the first class is left out of the head.
    """

    format: Format
    arch: ArchConfig
    weights: WeightSet
    mapped: Mapping[TensorSpec, str]
    skipped: Mapping[str, tuple[str, ...]]
    step: str | None
    notes: tuple[str, ...] = ()
    said: Said = field(default_factory=Said)
    drops_background: bool = False

    @property
    def wanted(self) -> list[str]:
        """The variables that will be read."""
        return [*self.mapped.values(), *([] if self.step is None else [self.step])]

    @property
    def labels(self) -> tuple[str, ...] | None:
        """What the checkpoint or its format says that the classes are called."""
        if self.said.labels is not None and len(self.said.labels) == self.arch.num_classes:
            return self.said.labels
        if not self.drops_background:
            return self.format.labels(self.arch)
        labels = self.format.labels(replace(self.arch, num_classes=_WITH_BACKGROUND))
        return None if labels is None else labels[1:]

    def read(self, reader: Reader, spec: TensorSpec) -> np.ndarray:
        """Return a tensor's values with PyTorch's axes. Raises CheckpointError if they are damaged or missing."""
        values = self.format.to_torch(spec.kind, reader.read(self.mapped[spec]))
        # PyTorch's axes begin with the classes.
        return values[1:] if self.drops_background and spec.kind.layer_type == "dense" else values

    def without_background(self) -> Account:
        """Return the account of the same checkpoint without its first class, which is none of ImageNet's.

        Raises:
            UsageError: it has not 1001 classes.
        """
        if self.arch.num_classes != _WITH_BACKGROUND:
            raise UsageError(
                f"the checkpoint has {self.arch.num_classes} classes; only of {_WITH_BACKGROUND} the first is the "
                "background: leave out --drop-background"
            )
        arch = replace(self.arch, num_classes=_WITH_BACKGROUND - 1)
        mapped = dict(zip(iter_tensors(arch), self.mapped.values(), strict=True))
        notes = (*self.notes, "the first class, the background, was dropped on request")
        return replace(self, arch=arch, mapped=mapped, notes=notes, drops_background=True)


def take_account(checkpoint_format: Format, reader: Reader, weights: WeightSet) -> Account:
    """Account for every variable of a checkpoint of a format, given which weights are wanted.

    Raises:
        ConversionError: it is another network, or a variable is missing, unexpected, misshapen or not float32. All of
            them are collected and raised as one.
    """
    contents, entries = checkpoint_format.contents(reader), reader.entries
    if weights not in contents.names:
        why = contents.why_missing.get(weights)
        raise ConversionError(
            f"{why}; give --weights {' or '.join(contents.names)}"
            if why
            else f"this {checkpoint_format.title} has no {_KIND[weights]}; give --weights {' or '.join(contents.names)}"
        )
    specs = list(iter_tensors(contents.arch))
    mapped = dict(zip(specs, contents.names[weights], strict=True))
    expected = {name: checkpoint_format.shape(spec) for spec, name in mapped.items()}
    if len(expected) < len(mapped):
        raise ConversionError(f"the format {checkpoint_format.name} has one name for two tensors; report this as a bug")
    skippable = _skippable(contents, weights)
    excused = frozenset(chain.from_iterable(skippable.values()))
    problems = audit(entries, expected, dtypes=checkpoint_format.dtypes, excused=excused.__contains__)
    problems += [*_wrong_step(entries, contents.step), *_other_set(entries, contents, weights)]
    if problems:
        raise ConversionError(f"the checkpoint does not account for a {contents.arch.label}: {'; '.join(problems)}")
    skipped = {
        reason: there
        for reason, names in skippable.items()
        if (there := tuple(name for name in names if name in entries and name not in expected))
    }
    step = contents.step if contents.step in entries else None
    return Account(checkpoint_format, contents.arch, weights, mapped, skipped, step, contents.notes, contents.said)


def _skippable(contents: Contents, weights: WeightSet) -> dict[str, list[str]]:
    """Return the variables that may be there and are not wanted, by the reason for skipping them."""
    reason = "plain weights; their averages were taken" if weights == "ema" else "averages; plain weights were taken"
    others = [name for other, names in contents.names.items() if other != weights for name in names]
    skippable = {reason: others, **{why: list(names) for why, names in contents.skippable.items()}}
    return skippable if contents.step is None else {**skippable, "step counter": [contents.step]}


def _wrong_step(entries: Mapping[str, Described], step: str | None) -> list[str]:
    entry = None if step is None else entries.get(step)
    if entry is None or (not entry.shape and dtype_name(entry) in _STEP_DTYPES):
        return []
    return [f"{step} is {dtype_name(entry)} {tuple(entry.shape)}, not one whole number"]


def _other_set(entries: Mapping[str, Described], contents: Contents, weights: WeightSet) -> list[str]:
    """Return what to type where the wanted set is missing as a whole and another one may be there."""
    others = [other for other in contents.names if other != weights]
    if not others or any(name in entries for name in contents.names[weights]):
        return []
    other = others[0]
    return [f"it holds no {_KIND[weights]} at all; to take the {_KIND[other]}, give --weights {other}"]
