"""ResNet-RS checkpoints converted, verified and loaded, in PyTorch and Keras 3.

Importing this package loads no framework and touches no network: each public name is imported from its module
when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_MODULE_OF = {
    "ArchConfig": "rszoo.config",
    "Preprocessing": "rszoo.preprocessing",
    "PretrainedEntry": "rszoo.registry",
    "RszooError": "rszoo.errors",
    "create": "rszoo.factory",
    "get_entry": "rszoo.registry",
    "list_models": "rszoo.registry",
    "load_weights": "rszoo.weights",
    "preprocess": "rszoo.images",
    "push_to_hub": "rszoo.hub.push",
    "save": "rszoo.saving",
}

__all__ = [
    "ArchConfig",
    "Preprocessing",
    "PretrainedEntry",
    "RszooError",
    "__version__",
    "create",
    "get_entry",
    "list_models",
    "load_weights",
    "preprocess",
    "push_to_hub",
    "save",
]

if TYPE_CHECKING:
    from rszoo.config import ArchConfig
    from rszoo.errors import RszooError
    from rszoo.factory import create
    from rszoo.hub.push import push_to_hub
    from rszoo.images import preprocess
    from rszoo.preprocessing import Preprocessing
    from rszoo.registry import PretrainedEntry, get_entry, list_models
    from rszoo.saving import save
    from rszoo.weights import load_weights


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'rszoo' has no attribute {name!r}; it offers: {', '.join(__all__)}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
