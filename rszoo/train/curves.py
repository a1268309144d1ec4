"""The curves of a training: records of metrics in, a PNG of loss, learning rate and accuracy over epochs out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rszoo.extras import needs
from rszoo.train.metrics import MetricRecord
from rszoo.train.output import writing

_INCHES = (7.0, 8.0)
_DOTS_PER_INCH = 110
_GREY, _BLUE, _RED = "#888888", "#4269a5", "#c23b22"


def check_plotting() -> None:
    """Raise a MissingPackageError without matplotlib: before a training, not at its end."""
    with needs("training", "matplotlib", extra="train"):
        import matplotlib.figure  # noqa: F401


def plot_curves(records: Sequence[MetricRecord], title: str, path: Path) -> None:
    """Write the picture of a run's records.

    Raises:
        MissingPackageError: matplotlib is not installed.
        OutputError: it cannot be written.
    """
    check_plotting()
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, dpi=_DOTS_PER_INCH, layout="constrained")
    loss, rate, top1 = figure.subplots(3, 1, sharex=True)
    steps = [record for record in records if record["kind"] == "train"]
    _line(loss, steps, [record["loss"] for record in steps], ("training loss", _GREY))
    _line(rate, steps, [record["learning_rate"] for record in steps], ("learning rate", _GREY))
    _line(top1, steps, [record["top1"] for record in steps], ("training batches", _GREY))
    for weights, label, color in (("raw", "validation, plain weights", _RED), ("ema", "validation, averaged", _BLUE)):
        rated = [record for record in records if record["kind"] == "evaluation" and record[weights] is not None]
        _line(top1, rated, [record[weights]["top1"] for record in rated], (label, color))
    for axes, label in ((loss, "cross-entropy"), (rate, "learning rate"), (top1, "top-1 in %")):
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    top1.set_xlabel("epoch")
    top1.legend(loc="lower right", fontsize="small")
    figure.suptitle(title)
    with writing(path):
        figure.savefig(path, format="png")


def _line(axes: Any, records: Sequence[MetricRecord], values: Sequence[float], style: tuple[str, str]) -> None:
    label, color = style
    # A point where there is no line to see.
    marker = "o" if len(values) < 2 else None
    axes.plot([record["epoch"] for record in records], values, label=label, color=color, marker=marker)
