"""Whether a model in memory is still what it was created as: its values, and what computes with them."""

from __future__ import annotations

from typing import Any

from rszoo.arch.config import ArchConfig
from rszoo.folder.model_folder import ModelConfig
from rszoo.models.factory import import_model_module
from rszoo.models.live import LiveModel


def computes_as_created(live: LiveModel, origin: ModelConfig) -> bool:
    """Whether a network has the layers of its architecture, with the settings that they are created with, and no hooks.

    What a user exchanged or set in it leaves no trace in the tensors.
    """
    if origin.arch != live.arch:
        return False
    if live.framework == "torch":
        return _torch_layers(live.network) == _torch_layers(_new(live.arch))
    module = import_model_module("keras")
    return _keras_layers(live.network) == _keras_layers(module.build_model(live.arch))


def _new(arch: ArchConfig) -> Any:
    return import_model_module("torch").empty_model(arch)


def _torch_layers(network: Any) -> list[Any]:
    # Its text has a module's settings.
    own = [(name, type(module), module.extra_repr()) for name, module in network.named_modules()]
    hooked = [name for name, module in network.named_modules() if module._forward_hooks or module._forward_pre_hooks]
    return [*own, hooked]


def _keras_layers(network: Any) -> list[Any]:
    import keras

    layers = network._flatten_layers(include_self=False)
    return [(type(layer), layer.get_config()) for layer in layers if not isinstance(layer, keras.Model)]
