"""The kinds of checkpoints that are converted, each described by one `Format` in a file of its own.

To add one, add a file here and its name in `_FORMATS`; programs that use rszoo call `register`.
"""

from __future__ import annotations

from collections.abc import Iterable

from converters.formats.format import Format, Reader, Writer
from converters.formats.garden import GARDEN
from converters.formats.keras2 import KERAS2
from converters.formats.tf1 import TF1
from converters.formats.timm import TIMM
from converters.tensorbundle.layout import Ranges
from rszoo.errors import ConversionError, UsageError, nearest
from rszoo.folder.model_folder import WeightSet

#: What a model folder is called beside the checkpoint formats, where one says what to write.
MODEL_FOLDER = "safetensors"

_FORMATS: dict[str, Format] = {known.name: known for known in (TF1, GARDEN, KERAS2, TIMM)}


def list_formats() -> list[Format]:
    """Return all formats; the first that recognizes a checkpoint is its format."""
    return list(_FORMATS.values())


def get_format(name: str) -> Format:
    """Return the format of a name.

    Raises:
        UsageError: there is none.
    """
    if name not in _FORMATS:
        likely = nearest(name, _FORMATS) or list(_FORMATS)
        raise UsageError(f"no checkpoint format is called {name!r}; did you mean {', '.join(likely)}?")
    return _FORMATS[name]


def list_targets() -> list[str]:
    """Return what `rszoo-convert --to` may name: a model folder, or a format that can be written."""
    return [MODEL_FOLDER, *(known.name for known in list_formats() if known.write is not None)]


def get_target(name: str) -> tuple[Format, Writer]:
    """Return the format of a name and what writes it.

    Raises:
        UsageError: there is no such format, or it cannot be written.
    """
    writers = {known.name: (known, known.write) for known in list_formats() if known.write is not None}
    if name not in writers:
        likely = nearest(name, list_targets()) or list_targets()
        raise UsageError(f"no checkpoint of format {name!r} can be written; choose {' or '.join(likely)}")
    return writers[name]


def register(new: Format) -> None:
    """Add a format, for as long as the program runs or until `unregister`.

    Raises:
        UsageError: its name is taken.
    """
    if new.name in (*_FORMATS, MODEL_FOLDER):
        raise UsageError(f"a format is called {new.name!r} already; give yours another name")
    _FORMATS[new.name] = new


def unregister(name: str) -> None:
    """Remove a format that was registered. Raises UsageError if there is none of that name."""
    del _FORMATS[get_format(name).name]


def expected_ranges(size: int, weights: WeightSet) -> Ranges | None:
    """Return where a set's tensors and the step counter lie in a shard of `size` bytes, or None if no format knows.

    A published shard holds several sets of weights and precedes its index in the archive. The index is compared later.
    """
    found = (known.shard_ranges(size, weights) for known in list_formats() if known.shard_ranges is not None)
    return next(filter(None, found), None)


def recognize(reader: Reader, candidates: Iterable[Format]) -> Format:
    """Return the format of a checkpoint, by the names, shapes and dtypes in it.

    `candidates`: the formats whose kind of file it is.

    Raises:
        ConversionError: it is none of them; the text says why not.
    """
    reasons = []
    for candidate in candidates:
        reason = candidate.why_not(reader)
        if reason is None:
            return candidate
        reasons.append(f"it is not a {candidate.title} ({candidate.name}), since it {reason}")
    known = ", ".join(f"{known.name} ({known.title})" for known in list_formats())
    raise ConversionError(
        f"the checkpoint has no format that rszoo converts: {'; '.join(reasons)}. Known formats: {known}"
    )
