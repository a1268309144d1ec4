"""Keras's files of a repository on the Hub: weights in HDF5, and Keras's keys of `config.json`.

With both, `keras.saving.load_model("hf://...")` makes the model where rszoo is not installed. Made through functions
that Keras has made public; nothing in them depends on the process, the time, or what Keras built before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rszoo.arch.audit import same_bits
from rszoo.errors import OutputError
from rszoo.folder.model_folder import KERAS_WEIGHTS, ModelFolder
from rszoo.models.adapt import keras_weights
from rszoo.models.devices import keras_scope
from rszoo.models.factory import import_model_module
from rszoo.weights.mapping import Weights, check_header

_DTYPE = "float32"
# What a layer takes from the loading process's settings if its config does not say.
_ALWAYS_SAID = ("dtype", "data_format")


def write_keras_files(folder: ModelFolder, target: Path) -> dict[str, Any]:
    """Write `target/model.weights.h5`, and return Keras's keys of the `config.json` that must stand beside it.

    The keys are JSON values, beside which others may stand: Keras reads only its own. Layers leave out what they would
    have anyway: without the newest options, Keras versions that do not know these load the file, and it is smaller by
    a third. The weights file was read back and equals the folder's bit by bit.

    Raises:
        MissingPackageError: Keras or its backend is not installed.
        WeightsError: the folder's weights are missing, damaged, or of another architecture.
        OutputError: the file reads back with other values.
    """
    module = import_model_module("keras")
    import keras

    arch, path = folder.config.arch, target / KERAS_WEIGHTS
    # Not mapped: pages of the file would count as memory beside the model.
    with Weights(folder.weights_path) as weights:
        check_header(weights, arch)
        tensors = keras_weights(weights, arch)
        with keras_scope(_DTYPE, None):
            model = module.build_model(arch, tensors)
        model.save_weights(path)
        _check_reread(model, path, tensors)
    return _slimmed(_plain_json(keras.saving.serialize_keras_object(model)), {})


def _check_reread(model: Any, path: Path, tensors: Mapping[tuple[str, str], np.ndarray]) -> None:
    """Have Keras load the file into the model, whose values are wiped before, and compare all of them bit by bit.

    `tensors`: what they must be, by Keras's names. The model is made of the file afterwards.

    Raises:
        OutputError: they differ.
    """
    import keras

    variables = {(variable.path.split("/")[-2], variable.name): variable for variable in model.weights}
    for variable in variables.values():
        # NaN, not zeros: some weights are zero, and would seem to have been loaded.
        variable.assign(np.full(variable.shape, np.nan, np.float32))
    model.load_weights(path)
    for name, variable in variables.items():
        if not same_bits(tensors[name], keras.ops.convert_to_numpy(variable)):
            raise OutputError(
                f"{path.name} reads back with other values for {'/'.join(name)}; is the disk failing? Else report it "
                f"as a bug, with Keras's version, which is {keras.__version__}"
            )


def _slimmed(layer: dict[str, Any], known: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a serialized layer or model whose layers' configs are without what their classes would add anyway.

    `known`: what was left of configs that occurred before; it grows.
    """
    config = layer["config"]
    if "layers" in config:
        return {**layer, "config": {**config, "layers": [_slimmed(part, known) for part in config["layers"]]}}
    # Hundreds of layers are the same except for their names.
    identity = {key: layer[key] for key in ("module", "class_name", "registered_name")}
    alike = {**identity, "config": {**config, "name": "layer"}}
    text = json.dumps(alike)
    if text not in known:
        known[text] = _needed(alike)
    return {**layer, "config": {**known[text], "name": config["name"]}}


def _needed(part: dict[str, Any]) -> dict[str, Any]:
    """Return those arguments of a serialized layer or initializer without which it would be another."""
    config = {key: _shortened(value) for key, value in part["config"].items()}
    whole = _rebuilt(part, part["config"])
    needed = {
        key: value
        for key, value in config.items()
        if key in _ALWAYS_SAID or _rebuilt(part, {name: config[name] for name in config if name != key}) != whole
    }
    # Each alone can be left out; check that all can together.
    return needed if _rebuilt(part, needed) == whole else part["config"]


def _shortened(value: Any) -> Any:
    """Return an argument in its shortest form: the name of a dtype policy, an initializer without its defaults."""
    if not isinstance(value, dict):
        return value
    if value["class_name"] == "DTypePolicy":
        return value["config"]["name"]
    return {**value, "config": _needed(value)}


def _rebuilt(part: dict[str, Any], config: dict[str, Any]) -> dict[str, Any] | None:
    """Return what an object made with some arguments says of itself, or None if it cannot be made with them."""
    import keras

    try:
        # A copy: Keras changes some of what it reads.
        made = keras.saving.deserialize_keras_object(_plain_json({**part, "config": config}))
    # Keras raises either for an argument that is not there.
    except (TypeError, ValueError):
        return None
    arguments: dict[str, Any] = _plain_json(keras.saving.serialize_keras_object(made))["config"]
    return arguments


def _plain_json(values: Any) -> Any:
    """Return values as JSON has them: tuples as lists."""
    return json.loads(json.dumps(values))
