"""Texts from files as pieces of Markdown that stay what they are: nothing in them can end a line, a cell or a span."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_LONGEST = 500
# With a meaning in CommonMark, in GitHub's tables and strikethrough, in HTML, or, the dollar, in the Hub's formulas.
# As character references, not with backslashes: a backslash before a bracket begins a formula on the Hub.
_SPECIAL = {ord(sign): f"&#{ord(sign)};" for sign in "\\`*_[]<>|~$&#"}


def one_line(text: str) -> str:
    """Return a text on one line, without characters that do not print, shortened if it is very long."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."


def plain(text: str) -> str:
    """Return a text as Markdown that shows just these characters, anywhere but at the beginning of a line."""
    return one_line(text).translate(_SPECIAL)


def code(text: str) -> str:
    """Return a text as a code span, as long as none of its characters would end the span or a table's cell."""
    line = one_line(text)
    return plain(line) if not line or set(line) & set("`|") else f"`{line}`"


def link_target(url: str) -> str:
    """Return a URL as it may stand between a link's parentheses."""
    return html.escape("".join(one_line(url).split())).translate({ord("("): "%28", ord(")"): "%29", ord("|"): "%7C"})


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; the cells are Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
