"""The engines by name; only the requested one, with its framework, is imported."""

from __future__ import annotations

from collections.abc import Sequence

from rszoo.folder.model_folder import ModelFolder
from rszoo.models.factory import import_model_module
from rszoo.recipes.recipe import Recipe
from rszoo.train.engine import Engine, EngineName


def start_engine(
    name: EngineName, recipe: Recipe, *, init: ModelFolder | None = None, classes: Sequence[str] | None = None
) -> Engine:
    """Return an engine with a network, as `TorchEngine` and `KerasEngine` say.

    Raises:
        ConfigError, UsageError: the recipe, the weights and the devices do not go together.
        MissingPackageError: the framework is not installed.
    """
    import_model_module(name)
    if name == "torch":
        from rszoo.train.torch.engine import TorchEngine

        return TorchEngine(recipe, init=init, classes=classes)
    from rszoo.train.keras.engine import KerasEngine

    return KerasEngine(recipe, init=init, classes=classes)
