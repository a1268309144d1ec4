"""The picture of a family: published top-1 over published latency, one model marked."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rszoo.errors import UsageError
from rszoo.extras import needs
from rszoo.registry.entry import PretrainedEntry
from rszoo.registry.manifest import get_entry, list_models

_INCHES = (6.4, 4.2)
_DOTS_PER_INCH = 110
_BLUE, _RED, _GREY = "#4269a5", "#c23b22", "#666666"


def has_family_plot(entry: PretrainedEntry) -> bool:
    """Whether there is a picture of a model's family: its own published latency is known, and another's."""
    return entry.published.v100_latency_s is not None and len(_timed(entry)) > 1


def family_plot(entry: PretrainedEntry) -> bytes:
    """Return the picture as PNG, the same bytes each time for the same registry and version of matplotlib.

    Raises:
        UsageError: no latencies are published, see `has_family_plot`.
        MissingPackageError: matplotlib is not installed.
    """
    if not has_family_plot(entry):
        raise UsageError(f"no latencies are published of {entry.name}, so there is nothing to plot; leave the plot out")
    with _own_style() as figure:
        return _draw(figure, entry)


def _draw(figure: Any, entry: PretrainedEntry) -> bytes:
    axes, publisher = figure.add_subplot(), entry.family.publisher
    for position, one in enumerate(_timed(entry)):
        # The points rise to the right, so there is room below and right of them, and above and left, by turns.
        _add_point(axes, one, marked=one.name == entry.name, below=position % 2 == 0)
    axes.set_xscale("log")
    axes.set_xticks([0.3, 1, 3, 10], ["0.3", "1", "3", "10"])
    axes.minorticks_off()
    # Room for the labels of the first and the last.
    axes.margins(x=0.11, y=0.08)
    axes.set_xlabel("latency of one training step on V100, s (log scale)")
    axes.set_ylabel(f"top-1 on {entry.family.dataset.name}, %")
    axes.set_title(f"{entry.name} among the ResNet-RS", loc="left", fontsize=11)
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.text(
        0.99,
        0.012,
        f"figures published by {publisher.name if publisher else 'rszoo'}, not measured here",
        ha="right",
        fontsize=7,
        color=_GREY,
    )
    return _encoded(figure)


def _encoded(figure: Any) -> bytes:
    written = io.BytesIO()
    # Without the version of matplotlib, which is all that it would say of itself.
    figure.savefig(written, format="png", metadata={"Software": None})
    return written.getvalue()


def _timed(entry: PretrainedEntry) -> list[PretrainedEntry]:
    """Return the pairs of a family whose latency is known."""
    entries = (get_entry(name) for name in list_models())
    return [one for one in entries if one.family == entry.family and one.published.v100_latency_s is not None]


@contextmanager
def _own_style() -> Iterator[Any]:
    """Yield an empty figure, unknown to pyplot, drawn by Agg in matplotlib's own style, whatever the user has set."""
    with needs("the plot", "matplotlib"):
        import matplotlib.style
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    with matplotlib.style.context("default"):
        figure = Figure(figsize=_INCHES, dpi=_DOTS_PER_INCH, layout="tight")
        FigureCanvasAgg(figure)
        yield figure


def _add_point(axes: Any, entry: PretrainedEntry, *, marked: bool, below: bool) -> None:
    colour = _RED if marked else _BLUE
    point = entry.published.v100_latency_s, entry.published.top1
    axes.plot(*point, marker="*" if marked else "o", markersize=13 if marked else 6, color=colour, linestyle="none")
    axes.annotate(
        f"{entry.arch.depth} at {entry.image_size}",
        point,
        textcoords="offset points",
        xytext=(7, -12) if below else (-7, 4),
        horizontalalignment="left" if below else "right",
        fontsize=8.5,
        color=colour,
        fontweight="bold" if marked else "normal",
    )
