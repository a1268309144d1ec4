"""Entry points for `torch.hub.load("OWNER/rszoo", "resnet_rs_50", pretrained=True)`, made from the registry.

One entry point for every depth (its largest registered resolution) and one for every registered pair, such as
`resnet_rs_152_i224`. PyTorch lists every callable here whose name does not start with an underscore.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

# The repository is on the import path only while this file runs and while an entry point is called. Later imports, such
# as that for `rszoo.save`, work because both packages are loaded by then.
import converters  # noqa: F401
import rszoo
from rszoo.arch.walk import iter_tensors as _iter_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

#: Import names of what must be installed, which PyTorch checks first: PyTorch and rszoo's own requirements, except
#: those of the command line.
dependencies = [
    *("torch", "numpy", "safetensors", "PIL"),
    *("filelock", "google_crc32c", "huggingface_hub", "isal", "requests", "tqdm", "urllib3"),
]

_ARGUMENTS = """
    Args:
        pretrained: load the published averaged weights, downloaded, checked and converted on first use. Without, the
            published initial values are drawn.
        num_classes: another number than the weights' keeps the backbone and starts a new head, with a warning; 0 leaves
            the head out.
        in_chans: another number than the weights' adapts the first convolution.
        features_only: return a list of feature maps, described by `feature_info` as in timm.
        out_indices: which maps: 0 the stem (stride 2), 1 to 4 the stages (strides 4 to 32). All five if left out.
        dtype: "float32", "float16", "bfloat16" or "float64", or a `torch.dtype`. float32 if left out.
        device: where the weights go: "cpu", "cuda:0".

    Input: images (N, 3, H, W) of any size, normalized RGB; `rszoo.preprocess(photo, model)` makes one as published, but
    NHWC. Output: logits (N, num_classes). `rszoo.create` says more.
    """


def _entry_point(name: str) -> Callable[..., torch.nn.Module]:
    """Return the entry point of a model's name in the registry, with a docstring for `torch.hub.help`."""

    def entry_point(
        pretrained: bool = False,
        *,
        num_classes: int | None = None,
        in_chans: int | None = None,
        features_only: bool = False,
        out_indices: Sequence[int] | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> torch.nn.Module:
        return rszoo.create(
            name,
            pretrained=pretrained,
            num_classes=num_classes,
            in_chans=in_chans,
            features_only=features_only,
            out_indices=out_indices,
            dtype=dtype,
            device=device,
        )

    entry_point.__name__ = entry_point.__qualname__ = name.replace("-", "_").replace(".", "_")
    entry_point.__doc__ = _summary(name) + _ARGUMENTS
    return entry_point


def _summary(name: str) -> str:
    entry = rszoo.get_entry(name)
    parameters = sum(spec.size for spec in _iter_tensors(entry.arch) if spec.kind.trainable)
    which = entry.name if name == entry.name else f"{name}, which means {entry.name}"
    return (
        f"{which}: {parameters / 1e6:.1f} M parameters, input {entry.image_size} x {entry.image_size}, published top-1 "
        f"{entry.published.top1:.1f} % on {entry.family.dataset.name}.\n"
    )


def _names() -> list[str]:
    """Return every depth's name and every pair's, in the registry's order."""
    entries = map(rszoo.get_entry, rszoo.list_models())
    return list(dict.fromkeys(name for entry in entries for name in (entry.short_name or entry.name, entry.name)))


globals().update({_function.__name__: _function for _function in map(_entry_point, _names())})
