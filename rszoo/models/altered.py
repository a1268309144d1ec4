"""What other tools did to a network in memory so that it cannot be saved as it is: found, and named with its remedy.

In go the tensors of a network, under the names that its framework gives them, and its modules. Imports no framework:
the tools leave their mark in names, and in the packages that classes come from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from rszoo.errors import summarize

# PEFT's adapters: LoRA and its kin, and the layers that they wrap.
_PEFT = re.compile(r"(^|\.)(lora_\w+|base_layer|modules_to_save|ia3_l|vera_\w+|hada_w\w+|boft_\w+|oft_\w+|hra_u)(\.|$)")
_QUANTIZING = ("torchao", "torch.ao", "torch.nn.quantized", "torch.nn.qat", "bitsandbytes", "quanto", "optimum", "hqq")
_SHARDING = ("torch.distributed",)
# What Keras's quantized layers have beside or instead of their kernels.
_KERAS_QUANTIZED = re.compile(r"_(scale|zero|amax_history)$|/(quantized_kernel|g_idx)$")
_KERAS_LORA = re.compile(r"/lora_\w+$")


def find_torch_alteration(network: Any, state: Mapping[str, Any]) -> str | None:
    """Return what was done to a PyTorch network and what to do about it; None if nothing was.

    `state`: its state dict.
    """
    rules: tuple[Callable[[Any, Mapping[str, Any]], str | None], ...] = (
        _find_peft,
        _find_pruning,
        _find_parametrization,
        _find_quantization,
        _find_sharding,
        _find_other_tensors,
    )
    return next(filter(None, (rule(network, state) for rule in rules)), None)


def find_keras_alteration(names: Mapping[str, Any]) -> str | None:
    """The same for a Keras model, by the names of its variables."""
    if lora := [name for name in names if _KERAS_LORA.search(name)]:
        return (
            f"it has LoRA in {_listed(lora)}; model.save_weights writes the merged kernels: load its file into a new "
            'model of rszoo.create(..., framework="keras"), and save that'
        )
    if quantized := [name for name in names if _KERAS_QUANTIZED.search(name)]:
        return f"it is quantized ({_listed(quantized)}); save it before model.quantize, a model folder holds float32"
    return None


def _find_peft(network: Any, state: Mapping[str, Any]) -> str | None:
    names = [name for name in state if _PEFT.search(name)] or list(_from_packages(network, ("peft",)))
    if not names:
        return None
    return f"it has PEFT's adapters ({_listed(names)}); save what model.merge_and_unload() returns"


def _find_pruning(network: Any, state: Mapping[str, Any]) -> str | None:
    names = [name.removesuffix("_mask") for name in state if name.endswith("_mask")]
    if not (pruned := [name for name in names if f"{name}_orig" in state]):
        return None
    how = _each(pruned[0], "torch.nn.utils.prune.remove")
    return f"{len(pruned)} tensors are pruned ({_listed(pruned)}); first make that permanent, for each by {how}"


def _find_parametrization(network: Any, state: Mapping[str, Any]) -> str | None:
    parts = [re.fullmatch(r"(.*\.)?parametrizations\.(\w+)\..*", name) for name in state]
    if names := list(dict.fromkeys(f"{part[1] or ''}{part[2]}" for part in parts if part)):
        how = _each(names[0], "torch.nn.utils.parametrize.remove_parametrizations")
        return f"{len(names)} tensors are parametrized ({_listed(names)}); first undo that, for each by {how}"
    # The older functions of the same purpose.
    for first, second, function in (("_g", "_v", "remove_weight_norm"), ("_orig", "_u", "remove_spectral_norm")):
        stems = [name.removesuffix(first) for name in state if name.endswith(first)]
        if names := [stem for stem in stems if f"{stem}{second}" in state]:
            how = _each(names[0], f"torch.nn.utils.{function}")
            return f"{len(names)} tensors are parametrized ({_listed(names)}); first undo that, for each by {how}"
    return None


def _find_quantization(network: Any, state: Mapping[str, Any]) -> str | None:
    tensors = [name for name, value in state.items() if getattr(value, "is_quantized", False)]
    tensors += [name for name, value in state.items() if _comes_from(value, _QUANTIZING)]
    names = tensors or list(_from_packages(network, _QUANTIZING))
    if not names:
        return None
    return (
        f"it is quantized ({_listed(names)}), and a model folder holds float32; save the float model before it is "
        "quantized, or put the values of dequantize() into a new model of rszoo.create, and save that"
    )


def _find_sharding(network: Any, state: Mapping[str, Any]) -> str | None:
    names = [name for name, value in state.items() if _comes_from(value, _SHARDING)]
    names = names or list(_from_packages(network, ("torch.distributed.fsdp",)))
    if not names:
        return None
    return (
        f"its tensors are spread over processes ({_listed(names)}); gather them with "
        "torch.distributed.checkpoint.state_dict.get_model_state_dict and StateDictOptions(full_state_dict=True), load "
        "them into a new model of rszoo.create, and save that"
    )


def _find_other_tensors(network: Any, state: Mapping[str, Any]) -> str | None:
    """Find tensors that are no plain ones: without values, sparse, or of a class that answers for itself."""
    tensors = {name: value for name, value in state.items() if hasattr(value, "layout")}
    if empty := [name for name, value in tensors.items() if value.is_meta or hasattr(value, "cls_to_become")]:
        return f"{len(empty)} tensors are without values ({_listed(empty)}); load values first, then save"
    if sparse := [name for name, value in tensors.items() if str(value.layout) != "torch.strided"]:
        return f"{len(sparse)} tensors are sparse ({_listed(sparse)}); replace each by its to_dense()"
    if odd := [name for name, value in tensors.items() if _answers_for_itself(value)]:
        kind = type(tensors[odd[0]])
        return (
            f"{len(odd)} tensors are no plain tensors but {kind.__module__}.{kind.__qualname__} ({_listed(odd)}); put "
            "their values into a new model of rszoo.create, and save that"
        )
    return None


def _answers_for_itself(tensor: Any) -> bool:
    """Whether a tensor's class decides what each operation does: its values may be others than they seem."""
    kinds = type(tensor).__mro__
    plain = next(kind for kind in kinds if kind.__module__ == "torch" and kind.__name__ == "Tensor")
    return getattr(type(tensor), "__torch_dispatch__", None) is not getattr(plain, "__torch_dispatch__", None)


def _from_packages(network: Any, packages: Iterable[str]) -> Iterator[str]:
    """Yield the names of the modules whose classes come from these packages."""
    return (name or type(module).__name__ for name, module in network.named_modules() if _comes_from(module, packages))


def _comes_from(value: Any, packages: Iterable[str]) -> bool:
    return any(f"{type(value).__module__}.".startswith(f"{package}.") for package in packages)


def _each(name: str, function: str) -> str:
    """Return a call for one of the tensors, as an example."""
    module, _, tensor = name.rpartition(".")
    return f'{function}(model.get_submodule("{module}"), "{tensor}")'


def _listed(names: Iterable[str]) -> str:
    return summarize(list(dict.fromkeys(names)))
