"""What a look at a data set took and what it left, by kind and number, for people and for records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rszoo.errors import summarize
from rszoo.pipeline.file_kinds import HIDDEN, IMAGE_SUFFIXES, SYSTEM, is_known, split_of

#: How files are counted that are images and in no class's folder, and those that seem to be TFRecords.
OUTSIDE, SHARDS = "images outside of class folders", "TFRecords of other names"

_LISTED = 6


@dataclass(frozen=True)
class Scan:
    """What one split of a data set has, as counts of files by kind: `.jpg`, `without suffix`, `hidden`.

    Attributes:
        taken: what is used.
        left: what is not used.
        left_folders: folders that are not used, with all that is in them, such as `test`.
        other_split: images of the same folders that belong to the other split; 0 where splits have folders.
        below: how many of the images taken are in folders inside the class's, which count for the class.
        twins: how many of them have the name of another of their folder, except for the suffix.
        classes_without: classes of which this split has no image.
        alike: classes whose names differ only in upper and lower case.
    """

    taken: Mapping[str, int] = field(default_factory=dict)
    left: Mapping[str, int] = field(default_factory=dict)
    left_folders: tuple[str, ...] = ()
    other_split: int = 0
    below: int = 0
    twins: int = 0
    classes_without: tuple[str, ...] = ()
    alike: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # Plain and in one order: they are compared, and written into files.
        for name in ("taken", "left"):
            object.__setattr__(
                self, name, {kind: count for kind, count in sorted(getattr(self, name).items()) if count}
            )

    @property
    def is_doubtful(self) -> bool:
        """Whether something was left, or looks, as if the user may not know of it."""
        files = any(kind not in (HIDDEN, SYSTEM) and not _is_other(kind) for kind in self.left)
        folders = any(split_of(name) != "test" for name in self.left_folders)
        return files or folders or bool(self.twins or self.classes_without or self.alike)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def __str__(self) -> str:
        """Return one line for people."""
        taken = f"took {_counted(self.taken)}"
        if self.below:
            taken += f", {self.below:,} of them in folders inside a class's"
        if self.other_split:
            taken += f" ({self.other_split:,} more are in the other split)"
        left = [_counted(self.left)] if self.left else []
        if self.left_folders:
            left.append(f"{_plural(len(self.left_folders), 'folder')}: {summarize(self.left_folders, _LISTED)}")
        notes = [f"left {' and '.join(left)}" if left else "left nothing"]
        if self.twins:
            notes.append(f"{self.twins:,} have the name of another except for the suffix")
        if self.classes_without:
            count = _plural(len(self.classes_without), "class", "classes")
            notes.append(f"{count} without images: {summarize(self.classes_without)}")
        if self.alike:
            notes.append(f"classes that differ only in upper and lower case: {summarize(self.alike)}")
        return "; ".join([taken, *notes])


def describe_kinds(counts: Mapping[str, int]) -> str:
    """Return counts by kind as a text, the most frequent first: `12 .txt, 1 hidden`."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return summarize([f"{count:,} {kind}" for kind, count in ordered], _LISTED)


def differ_only_in_case(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of which another differs only in upper and lower case."""
    by_fold: dict[str, list[str]] = {}
    for name in names:
        by_fold.setdefault(name.casefold(), []).append(name)
    return tuple(name for group in by_fold.values() if len(group) > 1 for name in group)


def _counted(counts: Mapping[str, int]) -> str:
    return f"{_plural(sum(counts.values()), 'file')} ({describe_kinds(counts)})" if counts else "nothing"


def _plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _is_other(kind: str) -> bool:
    suffix = kind.removeprefix(".")
    return kind.startswith(".") and is_known(suffix) and suffix not in IMAGE_SUFFIXES
