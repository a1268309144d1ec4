"""Reports of an evaluation: the text for the terminal, and a folder with all counts.

The folder has `result.json` (`Result.to_dict`), `classes.csv` (one row for each class of the model) and
`confusion.json` (the worst classes, and what they were mistaken for). It is written completely or not at all.
"""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rszoo.disk.staging import ResultKind, staged_folder
from rszoo.evaluate.result import Result
from rszoo.terminal import printable, table

RESULT = "result.json"
CLASSES = "classes.csv"
CONFUSION = "confusion.json"
#: A folder of these, for `rszoo.disk.staging`.
REPORT = ResultKind("rszoo eval", lambda _, names: names == {RESULT, CLASSES, CONFUSION}, last=RESULT)

_WORST = 20
_TAKEN_FOR = 5
# How a formula begins, also after what spreadsheets pass over (OWASP, "CSV Injection").
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_COLUMNS = (
    "index",
    "label",
    "images",
    "top1",
    "top5",
    "taken_for_index",
    "taken_for",
    "taken_for_images",
    "not_finite",
)


@dataclass(frozen=True)
class Confused:
    """Another class that images of a class were mistaken for, and how many images."""

    index: int
    label: str
    images: int


@dataclass(frozen=True)
class ClassScore:
    """One class: number of images, of `right` and `in_top5` ones, and the wrong predictions, most frequent first."""

    index: int
    label: str
    images: int
    right: int
    in_top5: int
    not_finite: int
    taken_for: tuple[Confused, ...]


def class_scores(result: Result) -> list[ClassScore]:
    """Return the scores of every class of the model, in its order; classes without images have zeros."""
    scores, classes = result.scores, result.config.arch.num_classes
    labels = result.config.labels or tuple(f"class {index}" for index in range(classes))
    return [
        ClassScore(
            index=index,
            label=labels[index],
            images=int(row.sum() + scores.broken[index]),
            right=int(row[index]),
            in_top5=int(scores.in_top5[index]),
            not_finite=int(scores.broken[index]),
            taken_for=tuple(Confused(int(other), labels[other], int(row[other])) for other in _wrong(row, index)),
        )
        for index, row in enumerate(scores.confusion)
    ]


def worst_classes(result: Result, count: int = _WORST) -> list[ClassScore]:
    """Return the classes with mistakes and the lowest top-1; ties are sorted by number of mistakes, highest first."""
    mistaken = [score for score in class_scores(result) if score.right < score.images]
    mistaken.sort(key=lambda score: (score.right / score.images, score.right - score.images, score.index))
    return mistaken[:count]


def summary(result: Result) -> str:
    """Return the result as text: figures next to the published ones, how they were measured, and the worst classes."""
    facts = result.to_dict()
    rows = [("", "measured, %", "95 % interval", "right")]
    for name, key in (("top-1", "top1"), ("top-5", "top5")):
        figure = facts[key]
        interval = f"{figure['low']:.2f} to {figure['high']:.2f}"
        rows.append((name, f"{figure['percent']:.2f}", interval, f"{figure['right']:,} of {facts['images']:,}"))
    return "\n\n".join(
        [table(rows), *_references(facts), *_doubts(result), table(_how(result, facts)), *_worst(result)]
    )


def write_report(result: Result, output: Path, *, overwrite: bool = False) -> None:
    """Write a result's files into a new folder, or replace an earlier result.

    Raises:
        OutputError: the folder exists, or cannot be written.
    """
    with staged_folder(output, REPORT, overwrite=overwrite) as folder:
        _write_json(folder / RESULT, result.to_dict())
        worst = [{**asdict(score), "top1": _percent(score.right, score.images)} for score in worst_classes(result)]
        _write_json(folder / CONFUSION, {"worst_classes": worst})
        with (folder / CLASSES).open("w", encoding="utf-8", newline="") as opened:
            writer = csv.writer(opened)
            writer.writerow(_COLUMNS)
            writer.writerows(map(_as_text, _row(score)) for score in class_scores(result))


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _wrong(row: np.ndarray, index: int) -> list[int]:
    """Return the classes that a class was mistaken for, most frequent first."""
    order = np.argsort(-row, kind="stable")
    return [int(other) for other in order if other != index and row[other] > 0][:_TAKEN_FOR]


def _row(score: ClassScore) -> tuple[object, ...]:
    # Cells are empty if there is no image or no mistake.
    first = score.taken_for[0] if score.taken_for else None
    taken_for = (None, None, None) if first is None else (first.index, first.label, first.images)
    figures = _percent(score.right, score.images), _percent(score.in_top5, score.images)
    return score.index, score.label, score.images, *figures, *taken_for, score.not_finite


def _as_text(cell: object) -> object:
    """Return a cell that a spreadsheet takes for what it is: it would compute a name that begins like a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def _percent(right: int, images: int) -> float | None:
    return round(100 * right / images, 2) if images else None


def _references(facts: dict[str, Any]) -> list[str]:
    if not facts["references"]:
        return ["No figures are registered for these weights."]
    rows = [("reference top-1", "preprocessing", "%", "difference", "")]
    for reference in facts["references"]:
        place = "within the interval" if reference["in_interval"] else "outside the interval"
        through = reference["preprocessing"]
        rows.append((reference["source"], through, f"{reference['top1']:g}", f"{reference['difference']:+.2f}", place))
    return [table(rows)]


def _doubts(result: Result) -> list[str]:
    doubts = []
    if result.broken:
        of = "" if result.in_data is None else f" of {result.in_data:,}"
        first = "".join(f"\n  {printable(fault)}" for fault in result.faults[:5])
        counted = f"{result.scores.images:,}{of} images were counted"
        doubts.append(f"BROKEN: {result.broken:,} images or files could not be read, {counted}; first:{first}")
    if broken := int(result.scores.broken.sum()):
        doubts.append(f"NOT FINITE: the logits of {broken:,} images are not finite; they count as wrong")
    if result.limit is not None:
        doubts.append(f"PARTIAL: at most the first {result.limit:,} images; this is not the accuracy on the data set")
    return doubts


def _how(result: Result, facts: dict[str, Any]) -> list[tuple[str, str]]:
    runtime = result.runtime
    backend = "" if facts["backend"] == runtime.framework else f" on {facts['backend']}"
    speed = f"{facts['images_per_s']:,.0f} images/s, including reading"
    return [
        ("model", f"{facts['model']}, weights {facts['weights']}"),
        ("data", f"{result.data}, {result.split}"),
        *([("files", str(result.scan))] if result.scan.taken else []),
        ("classes", result.classes),
        ("preprocessing", f"{result.preprocessing}, {facts['image_size']} x {facts['image_size']}"),
        ("run", f"{runtime.framework}{backend}, {runtime.device}, {runtime.dtype}; {speed}"),
    ]


def _worst(result: Result) -> list[str]:
    rows = [("worst classes", "images", "top-1, %", "mistaken for")]
    for score in worst_classes(result, 10):
        taken_for = ", ".join(f"{one.label} ({one.images})" for one in score.taken_for[:3])
        rows.append((score.label, f"{score.images:,}", f"{_percent(score.right, score.images):.1f}", taken_for))
    return [table(rows)] if len(rows) > 1 else []
