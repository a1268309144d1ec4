"""`rszoo.create`: a name, a model folder or an architecture in, a ready PyTorch or Keras model out.

With weights nothing is initialized first: PyTorch modules are built on the meta device and take the tensors that were
read; Keras variables are created from the file's values. For another dtype or device each tensor is read, converted and
let go of before the next. Each is compared with its checksum on the way.
"""

from __future__ import annotations

import importlib
import operator
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from rszoo.arch.config import ArchConfig
from rszoo.arch.features import FeatureInfo, choose_features
from rszoo.cache.find import ModelLike
from rszoo.errors import MissingPackageError, UsageError, nearest
from rszoo.extras import is_installed, needs
from rszoo.models.adapt import adapt_weights, keras_weights, needed_tensors
from rszoo.models.collection import paused_collection
from rszoo.models.devices import check_device, keras_scope
from rszoo.models.keras_settings import BACKENDS, chosen_backend
from rszoo.models.stored import Stored, find_stored
from rszoo.weights.mapping import Layout, Weights, check_header
from rszoo.weights.tensor_file import LocalFile

if TYPE_CHECKING:
    import keras
    import torch

    from rszoo.models.torch_resnet_rs import ResNetRS, ResNetRSFeatures

Framework = Literal["torch", "keras"]

_FRAMEWORKS: tuple[Framework, ...] = ("torch", "keras")
_DTYPES = ("float32", "float16", "bfloat16", "float64")
_KERAS_DTYPES = (*_DTYPES, "mixed_float16", "mixed_bfloat16")


@dataclass(frozen=True)
class _Plan:
    """What is to be built: what is stored, and the network that is wanted.

    `features`: the maps that it returns, None for a classifier.
    """

    stored: Stored
    wanted: ArchConfig
    features: FeatureInfo | None
    dtype: str | None
    device: str | None
    mmap: bool
    check: bool

    @property
    def needed(self) -> list[str]:
        """Which of the stored tensors it needs, by state dict key."""
        return needed_tensors(self.stored.arch, self.wanted, self.features)


@overload
def create(
    model: ModelLike | ArchConfig,
    *,
    pretrained: bool = False,
    framework: Literal["torch"] = "torch",
    num_classes: int | None = None,
    in_chans: int | None = None,
    features_only: Literal[False] = False,
    out_indices: Sequence[int] | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    mmap: bool = False,
    check: bool = True,
) -> ResNetRS: ...


@overload
def create(
    model: ModelLike | ArchConfig,
    *,
    pretrained: bool = False,
    framework: Literal["torch"] = "torch",
    num_classes: int | None = None,
    in_chans: int | None = None,
    features_only: Literal[True],
    out_indices: Sequence[int] | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    mmap: bool = False,
    check: bool = True,
) -> ResNetRSFeatures: ...


@overload
def create(
    model: ModelLike | ArchConfig,
    *,
    pretrained: bool = False,
    framework: Literal["keras"],
    num_classes: int | None = None,
    in_chans: int | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    mmap: bool = False,
    check: bool = True,
) -> keras.Model: ...


@overload
def create(
    model: ModelLike | ArchConfig,
    *,
    pretrained: bool = False,
    framework: Framework = "torch",
    num_classes: int | None = None,
    in_chans: int | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    mmap: bool = False,
    check: bool = True,
) -> ResNetRS | ResNetRSFeatures | keras.Model: ...


def create(
    model: ModelLike | ArchConfig,
    *,
    pretrained: bool = False,
    framework: Framework = "torch",
    num_classes: int | None = None,
    in_chans: int | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    mmap: bool = False,
    check: bool = True,
) -> Any:
    """Build a model: a `torch.nn.Module` or a `keras.Model`, in evaluation mode if it has weights.

    Its `config` is the `ArchConfig`, `preprocessing` what images go through (gray ones for `in_chans=1`), and `origin`
    the `ModelConfig` of the folder that it came from, or None.

    Args:
        model: a registered name (`resnet-rs-152` means its largest resolution), a model on the Hugging Face Hub
            (`hf-hub:OWNER/NAME[@REVISION]`), a model folder, whose weights are always loaded, or an `ArchConfig`. A
            registered name wins over a folder of that name, which is `./NAME`.
        pretrained: load the weights: of a registered name the averaged ones, converted into the cache on first use; of
            a repository those in `model.safetensors`, or in the file named after it (`hf-hub:OWNER/NAME/FILE`).
        framework: "torch" (input NCHW) or "keras" (input NHWC, whatever backend Keras is set to).
        num_classes: another number than the weights' keeps the backbone and starts a new head, with a warning; 0 leaves
            the head out, and the model returns the pooled features (N, num_features).
        in_chans: another number than the weights' adapts the first convolution: summed over RGB for 1, else RGB's
            kernels repeated in turn and scaled by 3 / in_chans.
        features_only: return a list of feature maps, described by `feature_info` as in timm. What comes after the last
            of them is neither built nor read.
        out_indices: which maps, in the order in which they are returned: 0 the stem (stride 2), 1 to 4 the stages
            (strides 4 to 32), negative ones from the end. All five if left out.
        dtype: "float32", "float16", "bfloat16" or "float64" for all weights and statistics; a `torch.dtype` will do.
            For Keras the dtype policy of the layers, also "mixed_float16" or "mixed_bfloat16". float32 if left out,
            for Keras its current policy.
        device: where the weights go, in the framework's words: "cpu", "cuda:0"; for Keras "gpu:0".
        mmap: let PyTorch's tensors map the file instead of copying it (float32 on the CPU, and without effect
            elsewhere): they are there at once, and processes share them. The file must then stay as it is for as long
            as the model lives: what is written into it changes the model, and if it gets shorter, the process dies.
        check: compare each tensor with its checksum, where the file has checksums.

    Raises:
        UnknownModelError, SourceNotFoundError: there is no such model or folder.
        HubError: the Hub does not have it, or does not give it.
        WeightsError: the folder's weights are missing, damaged, or of another architecture.
        UsageError, ConfigError: an argument is not allowed.
        MissingPackageError: the framework is not installed.
    """
    _check_arguments(framework, num_classes, features_only, out_indices)
    indices = choose_features(out_indices) if features_only else None

    def wanted_of(stored: ArchConfig) -> tuple[ArchConfig, FeatureInfo | None]:
        wanted = replace(
            stored,
            num_classes=stored.num_classes if num_classes is None else _whole(num_classes),
            in_chans=stored.in_chans if in_chans is None else in_chans,
        )
        return wanted, None if indices is None else FeatureInfo(wanted, indices)

    dtype_name = None if dtype is None else _dtype_name(dtype, framework)
    # Before the model is looked for: a missing framework or device should not cost a download.
    module = import_model_module(framework)
    if device is not None:
        check_device(framework, str(device), dtype_name)
    found = find_stored(model, pretrained, lambda stored: needed_tensors(stored, *wanted_of(stored)))
    wanted, features = wanted_of(found.arch)
    device_name = None if device is None else str(device)
    plan = _Plan(found, wanted, features, dtype_name, device_name, mmap, check)
    built = _create_torch(module, plan) if framework == "torch" else _create_keras(module, plan)
    # What saving the model will need. PyTorch's has its config already.
    if framework == "keras":
        built.config = wanted
    built.origin = found.origin
    if found.preprocessing is not None:
        built.preprocessing = found.preprocessing.for_channels(wanted.in_chans)
    return built


def _whole(count: Any) -> Any:
    """Return a whole number of numpy's or PyTorch's as Python's; what is none is the config's to refuse."""
    return operator.index(count) if hasattr(count, "__index__") and not isinstance(count, bool) else count


def _check_arguments(
    framework: str, num_classes: int | None, features_only: bool, out_indices: Sequence[int] | None
) -> None:
    if framework not in _FRAMEWORKS:
        likely = nearest(str(framework), _FRAMEWORKS) or list(_FRAMEWORKS)
        raise UsageError(f"framework must be torch or keras, received {framework!r}; did you mean {likely[0]!r}?")
    if num_classes is not None and features_only:
        raise UsageError(f"features_only has no head, received num_classes={num_classes!r} too; leave one of them out")
    if out_indices is not None and not features_only:
        raise UsageError(f"out_indices={out_indices!r} chooses feature maps; add features_only=True")


def import_model_module(framework: Framework) -> Any:
    """Import the module that builds models for a framework.

    Raises:
        MissingPackageError: the framework, or Keras's backend, is not installed. A breakage inside it is passed on.
        UsageError: KERAS_BACKEND or `keras.json` has what Keras does not have.
    """
    if framework == "torch":
        with needs("a PyTorch model", framework, hint=_other_framework("keras")):
            return importlib.import_module("rszoo.models.torch_resnet_rs")
    backend = chosen_backend()
    hint = ", ".join(filter(None, ("or set KERAS_BACKEND to an engine that is installed", _other_framework("torch"))))
    with needs("a Keras model", framework, *BACKENDS, extra=f"keras,{backend}", hint=hint):
        return importlib.import_module("rszoo.models.keras_resnet_rs")


def default_framework() -> Framework:
    """Return PyTorch if it is installed, or else Keras if it is.

    Raises:
        MissingPackageError: neither is.
    """
    for framework in _FRAMEWORKS:
        if is_installed(framework):
            return framework
    raise MissingPackageError(
        'neither PyTorch nor Keras is installed; run: pip install "rszoo[torch]", or "rszoo[keras,tensorflow]"'
    )


def _other_framework(framework: Framework) -> str:
    return f"or choose the framework {framework}, which is installed" if is_installed(framework) else ""


def _dtype_name(dtype: str | torch.dtype, framework: Framework) -> str:
    name = str(dtype).removeprefix("torch.")
    allowed = _KERAS_DTYPES if framework == "keras" else _DTYPES
    if name not in allowed:
        ordered = dict.fromkeys([*nearest(name, allowed), *allowed])
        raise UsageError(f"dtype for {framework} must be one of {', '.join(ordered)}; received {dtype!r}")
    return name


def _create_torch(module: Any, plan: _Plan) -> Any:
    import torch

    # Half precision in a file becomes float32, exactly.
    dtype = getattr(torch, plan.dtype or "float32")
    device = None if plan.device is None else torch.device(plan.device)
    # Whether what is read becomes the weights. If not, each tensor is read, converted and let go of before the next,
    # and no page of the file is mapped, which would count as memory too.
    kept = dtype == torch.float32 and (device is None or device.type == "cpu")
    with paused_collection(), _open(plan, "torch", mapped=plan.mmap and kept) as weights:
        tensors = {} if weights is None else _fitted(weights, plan, at_once=kept)
        model = module.empty_model(plan.wanted, plan.features)
        module.assign_weights(model, tensors, dtype, device)
    return model if plan.stored.file is None else model.eval()


def _create_keras(module: Any, plan: _Plan) -> Any:
    # Not mapped: Keras copies each tensor, and pages of the file would count as memory beside the copies.
    with keras_scope(plan.dtype, plan.device), _open(plan, "numpy") as weights:
        tensors = None if weights is None else keras_weights(_fitted(weights, plan), plan.wanted)
        return module.build_model(plan.wanted, tensors, plan.features)


def _open(plan: _Plan, layout: Layout, *, mapped: bool = False) -> AbstractContextManager[Weights | None]:
    file = plan.stored.file
    if file is None:
        return nullcontext()
    opened = LocalFile(file, mapped=mapped) if isinstance(file, Path) else file
    return Weights(opened, layout, check=plan.check)


def _fitted(weights: Weights, plan: _Plan, *, at_once: bool = False) -> Mapping[str, Any]:
    """Check the weights against the architecture, and return them as the wanted model needs them."""
    check_header(weights, plan.stored.arch, half=True)
    # Of a remote file all at once: what neighbours there comes in one request.
    at_once = at_once or not isinstance(plan.stored.file, Path)
    tensors = weights.load(plan.needed) if at_once else weights
    return adapt_weights(tensors, plan.stored.arch, plan.wanted)
