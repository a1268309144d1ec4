"""Accuracy of a model on data: `evaluate` counts, `Result` is what came of it; `rszoo eval` is the command.

Images come from `rszoo.pipeline`, counts from `scores`, and what a model folder keeps is in `rszoo.folder.evaluations`.
Each name is imported from its module when it is first used, so that the command line starts without numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_MODULE_OF = {
    "Reference": "rszoo.evaluate.result",
    "Result": "rszoo.evaluate.result",
    "Runtime": "rszoo.inference.network",
    "evaluate": "rszoo.evaluate.runner",
}

__all__ = ["Reference", "Result", "Runtime", "evaluate"]

if TYPE_CHECKING:
    from rszoo.evaluate.result import Reference, Result
    from rszoo.evaluate.runner import evaluate
    from rszoo.inference.network import Runtime


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'rszoo.evaluate' has no attribute {name!r}; it offers: {', '.join(__all__)}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value
