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
    "Conversion": "converters.conversion",
    "Framework": "rszoo.models.factory",
    "Identity": "converters.convert",
    "Keep": "rszoo.evaluate.api",
    "ModelFolder": "rszoo.folder.model_folder",
    "Prefetched": "rszoo.cache.prefetch",
    "Preview": "rszoo.publish.push",
    "Preprocessing": "rszoo.registry.preprocessing",
    "PretrainedEntry": "rszoo.registry.entry",
    "Published": "rszoo.publish.family",
    "Pulled": "rszoo.cache.pulling",
    "Pushed": "rszoo.publish.push",
    "RszooError": "rszoo.errors",
    "Runtime": "rszoo.inference.network",
    "StepTime": "rszoo.bench.timing",
    "Timing": "rszoo.bench.timing",
    "Trained": "rszoo.train.api",
    "TrainingOptions": "rszoo.train.api",
    "TrainingPlan": "rszoo.train.api",
    "Verification": "rszoo.verify.api",
    "benchmark_model": "rszoo.bench.timing",
    "convert_checkpoint": "converters.conversion",
    "create": "rszoo.models.factory",
    "evaluate_model": "rszoo.evaluate.api",
    "find_folder": "rszoo.cache.find",
    "get_entry": "rszoo.registry.manifest",
    "list_models": "rszoo.registry.manifest",
    "load_weights": "rszoo.cache.weights",
    "plan_training": "rszoo.train.api",
    "prefetch_models": "rszoo.cache.prefetch",
    "preprocess": "rszoo.inference.images",
    "publish_models": "rszoo.publish.family",
    "pull_model": "rszoo.cache.pulling",
    "preview_push": "rszoo.publish.push",
    "push_to_hub": "rszoo.publish.push",
    "save": "rszoo.models.saving",
    "train_model": "rszoo.train.api",
    "verify_model": "rszoo.verify.api",
}

__all__ = [
    "ArchConfig",
    "Conversion",
    "Framework",
    "Identity",
    "Keep",
    "ModelFolder",
    "Prefetched",
    "Preprocessing",
    "PretrainedEntry",
    "Preview",
    "Published",
    "Pulled",
    "Pushed",
    "RszooError",
    "Runtime",
    "StepTime",
    "Timing",
    "Trained",
    "TrainingOptions",
    "TrainingPlan",
    "Verification",
    "__version__",
    "benchmark_model",
    "convert_checkpoint",
    "create",
    "evaluate_model",
    "find_folder",
    "get_entry",
    "list_models",
    "load_weights",
    "plan_training",
    "prefetch_models",
    "preprocess",
    "preview_push",
    "publish_models",
    "pull_model",
    "push_to_hub",
    "save",
    "train_model",
    "verify_model",
]

if TYPE_CHECKING:
    from converters.conversion import Conversion, convert_checkpoint
    from converters.convert import Identity
    from rszoo.arch.config import ArchConfig
    from rszoo.bench.timing import StepTime, Timing, benchmark_model
    from rszoo.cache.find import find_folder
    from rszoo.cache.prefetch import Prefetched, prefetch_models
    from rszoo.cache.pulling import Pulled, pull_model
    from rszoo.cache.weights import load_weights
    from rszoo.errors import RszooError
    from rszoo.evaluate.api import Keep, evaluate_model
    from rszoo.folder.model_folder import ModelFolder
    from rszoo.inference.images import preprocess
    from rszoo.inference.network import Runtime
    from rszoo.models.factory import Framework, create
    from rszoo.models.saving import save
    from rszoo.publish.family import Published, publish_models
    from rszoo.publish.push import Preview, Pushed, preview_push, push_to_hub
    from rszoo.registry.entry import PretrainedEntry
    from rszoo.registry.manifest import get_entry, list_models
    from rszoo.registry.preprocessing import Preprocessing
    from rszoo.train.api import Trained, TrainingOptions, TrainingPlan, plan_training, train_model
    from rszoo.verify.api import Verification, verify_model


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'rszoo' has no attribute {name!r}; it offers: {', '.join(__all__)}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
