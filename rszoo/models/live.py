"""A PyTorch or Keras model in memory, also inside PyTorch's wrappers: its tensors by the walk's specs.

They are checked against the architecture. Imports no framework: the model's was imported to make it.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from rszoo.arch.audit import audit, dtype_name
from rszoo.arch.config import ArchConfig
from rszoo.arch.names import is_counter, keras_name, to_torch_layout, torch_name, torch_shape
from rszoo.arch.walk import TensorSpec, iter_tensors
from rszoo.errors import UsageError, summarize
from rszoo.folder.model_folder import ModelConfig
from rszoo.models.altered import find_keras_alteration, find_torch_alteration
from rszoo.models.factory import Framework

# The head's tensors, in PyTorch and in Keras.
_HEADS = ("fc.", "head_dense/")
_DTYPES = ("float16", "bfloat16", "float32", "float64")
# What PyTorch puts around a network, and the name under which the network stands in it: torch.compile; DataParallel,
# DistributedDataParallel and AveragedModel.
_WRAPPED_AS = ("_orig_mod", "module")


@dataclass(frozen=True)
class LiveModel:
    """A network in memory: what it is, and its tensors by the walk's specs.

    `names` are the framework's, `skipped` the names of what is no weight, by the reason why not.
    """

    framework: Framework
    network: Any
    arch: ArchConfig
    tensors: dict[TensorSpec, Any]
    names: dict[TensorSpec, str]
    skipped: dict[str, list[str]]

    @property
    def origin(self) -> ModelConfig | None:
        """What the network was created from; None if it was from an architecture alone."""
        return getattr(self.network, "origin", None)

    @property
    def dtypes(self) -> list[str]:
        """The dtypes of its tensors, each once."""
        return sorted(set(map(dtype_name, self.tensors.values())))

    def values(self, spec: TensorSpec) -> np.ndarray:
        """Return a tensor's values now, in PyTorch's layout: float64 if they are, else float32, which holds all others.

        On the CPU and in float32, a PyTorch tensor's are not copied.
        """
        if self.framework == "torch":
            tensor = self.tensors[spec].detach().cpu()
            return (tensor if dtype_name(tensor) == "float64" else tensor.float()).numpy()
        import keras

        values = keras.ops.convert_to_numpy(self.tensors[spec])
        wide = values if values.dtype == np.float64 else values.astype(np.float32, copy=False)
        return to_torch_layout(spec.kind, wide)


def open_model(model: Any) -> LiveModel:
    """Find the network in what the user gave, and every tensor of its architecture in the network.

    Raises:
        UsageError: there is none, or its tensors are others.
    """
    # A framework that was not imported is not the model's. Keras first: on the PyTorch backend its models are also
    # PyTorch modules.
    torch, keras = sys.modules.get("torch"), sys.modules.get("keras")
    framework: Framework = "keras" if keras is not None and isinstance(model, keras.Model) else "torch"
    if framework == "torch" and not (torch is not None and isinstance(model, torch.nn.Module)):
        raise UsageError(f"cannot save a {type(model).__name__}; give a PyTorch or Keras model made by rszoo.create")
    network = _unwrapped(model) if framework == "torch" else model
    # Before the config is asked for: a wrapper of another tool may hide it.
    found, skipped = _torch_tensors(network) if framework == "torch" else _keras_tensors(network)
    arch = getattr(network, "config", None)
    if not isinstance(arch, ArchConfig):
        raise UsageError(
            f"cannot save a {type(network).__name__} that rszoo.create did not make: it has no rszoo.ArchConfig at "
            "model.config; give the network itself, or, if another library loaded it, set model.config"
        )
    if hasattr(network, "feature_info"):
        raise UsageError(
            "cannot save a model made with features_only=True: it has no head, and a model folder holds whole "
            "classifiers; put its values into a model created without features_only, and save that"
        )
    names = {spec: _framework_name(spec, framework) for spec in iter_tensors(arch)}
    _check_tensors(found, names, framework, arch)
    if framework == "torch":
        _check_epsilon(network, arch)
    tensors = {spec: found[name] for spec, name in names.items()}
    return LiveModel(framework, network, arch, tensors, names, skipped)


def _unwrapped(module: Any) -> Any:
    """Return the network inside PyTorch's wrappers, which may be nested."""
    children = dict(module.named_children())
    inner = next((children[name] for name in _WRAPPED_AS if name in children), None)
    return module if inner is None else _unwrapped(inner)


def _torch_tensors(network: Any) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Return the tensors by name, and the names of what is no weight by the reason why not.

    Raises:
        UsageError: another tool changed the network so that its tensors are not its weights.
    """
    # A part of the network that is compiled has its own tensors one level below.
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in network.state_dict().items()}
    _refuse(find_torch_alteration(network, state))
    counters = [name for name in state if is_counter(name)]
    found = {name: tensor for name, tensor in state.items() if name not in counters}
    return found, {"PyTorch's counts of batches, which no network needs": counters} if counters else {}


def _keras_tensors(network: Any) -> tuple[dict[str, Any], dict[str, list[str]]]:
    # `weights` has neither the optimizer's variables nor the seeds of the dropout layers. Layers inside other models
    # have these models' names before their own.
    found = {"/".join(variable.path.split("/")[-2:]): variable for variable in network.weights}
    _refuse(find_keras_alteration(found))
    return found, {}


def _refuse(alteration: str | None) -> None:
    if alteration is not None:
        raise UsageError(f"cannot save this model: {alteration}")


def _framework_name(spec: TensorSpec, framework: Framework) -> str:
    return torch_name(spec) if framework == "torch" else "/".join(keras_name(spec))


def _check_tensors(found: dict[str, Any], names: dict[TensorSpec, str], framework: Framework, arch: ArchConfig) -> None:
    """Raise a UsageError if the network's tensors are not the architecture's; all differences are counted."""
    shapes = {name: torch_shape(spec) if framework == "torch" else spec.shape for spec, name in names.items()}
    if problems := audit(found, shapes, dtypes=_DTYPES):
        raise UsageError(
            f"the model does not have the tensors of the {arch.label} that its config says: {'; '.join(problems)}; "
            f"{_advice(found, shapes, {name for spec, name in names.items() if spec.kind.layer_type == 'bn'})}"
        )


def _check_epsilon(network: Any, arch: ArchConfig) -> None:
    """Raise a UsageError if a normalization has another epsilon than the config says, as frozen ones may."""
    norms = {name: module for name, module in network.named_modules() if hasattr(module, "running_var")}
    others = {name: float(module.eps) for name, module in norms.items() if not _same(module.eps, arch.bn_epsilon)}
    if others:
        raise UsageError(
            f"{len(others)} of {len(norms)} normalizations have another epsilon ({summarize(others)}: "
            f"{summarize(map(str, dict.fromkeys(others.values())))}) than the model's config, {arch.bn_epsilon}; set "
            "their eps to that, or, if all have the same, model.config = dataclasses.replace(model.config, "
            "bn_epsilon=...)"
        )


def _same(first: float, second: float) -> bool:
    return math.isclose(first, second, rel_tol=1e-6)


def _advice(found: dict[str, Any], shapes: dict[str, tuple[int, ...]], norms: set[str]) -> str:
    """Return what to do about tensors that are not the architecture's; `norms`: those of batch normalization."""
    more, lost = set(found) - set(shapes), set(shapes) - set(found)
    differing = more | {name for name in shapes if name in lost or tuple(found[name].shape) != shapes[name]}
    if not differing:
        return "convert them to float32, such as by model.float()"
    if all(name.startswith(_HEADS) for name in differing):
        return "a new head comes with create(..., num_classes=...) or, in PyTorch, model.reset_classifier(...)"
    if more and differing <= more | norms and all(name.endswith("bias") for name in more):
        return "its batch normalization was fused into the convolutions; save it before that"
    return (
        "layers were replaced, removed, or given other numbers of channels, and a model folder holds only networks "
        "that an rszoo.ArchConfig describes; keep this one by the framework's own means, such as torch.save"
    )
