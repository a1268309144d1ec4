"""Data that ship with the package: class names, the demo's archive and its digits."""

from __future__ import annotations

from pathlib import Path


def asset(name: str) -> Path:
    """Return the path of a file in this folder."""
    return Path(__file__).parent / name
