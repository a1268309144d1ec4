"""timm's side of `config.json`: an `ArchConfig` and its preprocessing to timm's keys, and back.

With these keys at the top level, `timm.create_model("hf-hub:...")` and `"local-dir:..."` load a model folder, and rszoo
need not be installed. Facts: timm 1.0.31, `models/_hub.py` (what is read), `models/resnet.py` (`resnetrs50` to 420).
timm can say neither the published crop nor the legacy resize; `crop_pct` is the nearest that it has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rszoo.arch.config import BLOCKS_OF_DEPTH, ArchConfig
from rszoo.errors import ConfigError
from rszoo.registry.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Channels, Preprocessing
from rszoo.schema.fields import build, pick
from rszoo.schema.limits import WRITABLE, is_writable, require

# What timm's constructors of this family are given; `layers` may be any.
_BASE_DEPTH = 50
_STRIDES = 32
#: Which pair timm's own repositories hold, by name without `timm/`. That of the 200 has the name of a TF release, but
#: timm trained its weights itself (its release notes of March 2022).
_PAIRS = {
    "resnetrs50.tf_in1k": "resnet-rs-50-i160",
    "resnetrs101.tf_in1k": "resnet-rs-101-i192",
    "resnetrs152.tf_in1k": "resnet-rs-152-i256",
    "resnetrs200.tf_in1k": None,
    "resnetrs270.tf_in1k": "resnet-rs-270-i256",
    "resnetrs350.tf_in1k": "resnet-rs-350-i256",
    "resnetrs420.tf_in1k": "resnet-rs-420-i320",
}
# What timm trains and evaluates with, by depth, where nothing else is said: pixels, and the crop's side as a part of
# the image's.
_SETTINGS = {
    50: (160, 0.91),
    101: (192, 0.94),
    152: (256, 1.0),
    200: (256, 1.0),
    270: (256, 1.0),
    350: (288, 1.0),
    420: (320, 1.0),
}
# Arguments that act in training only: rszoo's own keys have them where they are published.
_TRAINING_ARGS = ("drop_rate", "drop_path_rate", "drop_block_rate")


@dataclass(frozen=True)
class _TimmKeys:
    """What is read of the top level of timm's `config.json`."""

    architecture: str
    num_classes: int | None = None
    global_pool: str = "avg"
    model_args: Mapping[str, Any] | None = None
    pretrained_cfg: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class _TimmSettings:
    """What is read of its `pretrained_cfg`."""

    input_size: tuple[int, int, int] = (3, 224, 224)
    crop_pct: float = Preprocessing.crop
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD
    num_classes: int = 1000


def timm_keys(arch: ArchConfig, preprocessing: Preprocessing, labels: tuple[str, ...] | None) -> dict[str, Any]:
    """Return timm's keys for a network; empty if timm has no such network."""
    plain = ArchConfig(arch.blocks, arch.num_classes, arch.in_chans)
    if replace(arch, dropout_rate=0.0, drop_connect_rate=0.0) != plain:
        return {}
    size = preprocessing.image_size
    keys: dict[str, Any] = {
        "architecture": f"resnetrs{arch.depth or _BASE_DEPTH}",
        "num_classes": arch.num_classes,
        "num_features": arch.num_features,
        "global_pool": "avg",
        "pretrained_cfg": {
            "input_size": [arch.in_chans, size, size],
            "pool_size": [-(-size // _STRIDES)] * 2,
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": preprocessing.crop,
            "crop_mode": "center",
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "num_classes": arch.num_classes,
            "first_conv": "conv1.0",
            "classifier": "fc",
            "paper_ids": "arXiv:2103.07579",
        },
    }
    if arch.depth is None:
        keys["model_args"] = {"layers": list(arch.blocks)}
    if labels is not None:
        # timm reads them here as well as at the top level, where `transformers` would keep them, whatever labels its
        # user gives. It reads and writes `id2label`.
        keys["pretrained_cfg"]["label_names"] = list(labels)
        keys["id2label"] = {str(index): label for index, label in enumerate(labels)}
    return keys


def read_labels(keys: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the labels at the top level of a `config.json`, as `transformers` or timm write them; None without any.

    Raises:
        ConfigError: one has half a character.
    """
    names: Any = keys.get("label_names")
    by_index = keys.get("id2label")
    if isinstance(by_index, Mapping) and set(by_index) == set(map(str, range(len(by_index)))):
        names = [by_index[str(index)] for index in range(len(by_index))]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    for index, name in enumerate(names):
        require(is_writable(name), f"label {index}", WRITABLE, name)
    return tuple(names)


def timm_lineage(repo: str) -> str | None:
    """Return what one of timm's own repositories (`timm/NAME`) holds, in words, or None for any other."""
    owner, _, name = repo.partition("/")
    if owner != "timm" or name not in _PAIRS:
        return None
    pair = _PAIRS[name]
    return "trained by timm, not Google's" if pair is None else f"Google's {pair}, converted by timm"


def timm_pair(repo: str) -> str | None:
    """Return the registered pair whose weights one of timm's own repositories holds; None for any other."""
    owner, _, name = repo.partition("/")
    return _PAIRS.get(name) if owner == "timm" else None


def timm_settings(depth: int) -> Preprocessing:
    """Return the size and crop of timm's model of a published depth."""
    size, crop = _SETTINGS[depth]
    return Preprocessing(size, crop)


def parse_timm_config(keys: Mapping[str, Any]) -> tuple[ArchConfig, Preprocessing, tuple[str, ...] | None]:
    """Return network, preprocessing and labels of a `config.json` that has timm's keys and none of rszoo's.

    The preprocessing is rszoo's, of the size, crop and normalization that timm's keys say: the resize that timm would
    do instead is not among rszoo's.

    Raises:
        ConfigError: it is not a ResNet-RS, or one with arguments that rszoo does not know.
    """
    top = build(_TimmKeys, pick(_TimmKeys, keys))
    match = re.fullmatch(r"resnetrs(\d+)", top.architecture)
    if match is None or int(match[1]) not in BLOCKS_OF_DEPTH:
        known = ", ".join(f"resnetrs{depth}" for depth in BLOCKS_OF_DEPTH)
        raise ConfigError(
            f"architecture {top.architecture!r} is not a ResNet-RS; rszoo has {known}; load this one with timm"
        )
    arguments = dict(top.model_args or {})
    blocks = arguments.pop("layers", BLOCKS_OF_DEPTH[int(match[1])])
    if arguments.pop("global_pool", "avg") != "avg" or top.global_pool != "avg":
        raise ConfigError("global_pool must be 'avg'; load this model with timm")
    if unknown := sorted(set(arguments) - {*_TRAINING_ARGS, "num_classes", "in_chans"}):
        raise ConfigError(f"model_args {', '.join(unknown)} are not known to rszoo; load this model with timm")
    # Older files of timm's have everything at the top level.
    cfg = keys if top.pretrained_cfg is None else top.pretrained_cfg
    settings = build(_TimmSettings, pick(_TimmSettings, cfg), "pretrained_cfg")
    channels, height, width = settings.input_size
    if height != width:
        raise ConfigError(f"input_size {height} x {width} is not square; load this model with timm")
    classes = top.num_classes if top.num_classes is not None else settings.num_classes
    arch = ArchConfig(blocks, arguments.get("num_classes", classes), arguments.get("in_chans", channels))
    preprocessing = Preprocessing(height, settings.crop_pct, mean=settings.mean, std=settings.std)
    labels = read_labels(keys) or read_labels(cfg)
    return arch, preprocessing, labels if labels is not None and len(labels) == arch.num_classes else None
