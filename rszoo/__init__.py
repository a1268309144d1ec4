"""ResNet-RS checkpoints converted, verified and loaded, in PyTorch and Keras 3.

Importing this package loads no framework and touches no network: each public name is imported from its module
when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rszoo.version import __version__

_MODULE_OF = {
    "ArchConfig": "rszoo.arch.config",
    "Framework": "rszoo.models.factory",
    "Preprocessing": "rszoo.registry.preprocessing",
    "PretrainedEntry": "rszoo.registry.manifest",
    "RszooError": "rszoo.errors",
    "create": "rszoo.models.factory",
    "get_entry": "rszoo.registry.manifest",
    "list_models": "rszoo.registry.manifest",
    "load_weights": "rszoo.cache.weights",
    "preprocess": "rszoo.inference.images",
    "push_to_hub": "rszoo.publish.push",
    "save": "rszoo.models.saving",
}

__all__ = [
    "ArchConfig",
    "Framework",
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
    from rszoo.arch.config import ArchConfig
    from rszoo.cache.weights import load_weights
    from rszoo.errors import RszooError
    from rszoo.inference.images import preprocess
    from rszoo.models.factory import Framework, create
    from rszoo.models.saving import save
    from rszoo.publish.push import push_to_hub
    from rszoo.registry.manifest import PretrainedEntry, get_entry, list_models
    from rszoo.registry.preprocessing import Preprocessing


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'rszoo' has no attribute {name!r}; it offers: {', '.join(__all__)}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
