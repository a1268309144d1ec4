"""ResNet-RS in PyTorch, built from an `ArchConfig`; module names, and therefore state dict keys, are timm's.

Input: float32 (N, C, H, W), normalized RGB, any size. Facts about the arithmetic: tensorflow/tpu
`models/official/resnet/resnet_model.py`; the config describes the differences of the Model Garden.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor, nn

from rszoo.arch.config import Activation, ArchConfig, Block, StemConv
from rszoo.arch.features import FeatureInfo
from rszoo.arch.names import torch_name, torch_shape
from rszoo.arch.walk import Initial, TensorSpec, iter_tensors
from rszoo.folder.model_folder import ModelConfig
from rszoo.models.initial import TRUNCATED_STD
from rszoo.models.torch_layers import DropConnect, SameConv2d, SamePool2x2, SamePool3x3, SqueezeExcite, checkpointed
from rszoo.registry.preprocessing import Preprocessing

_DENSE_STD = 0.01
# The part of a normal distribution that is within two standard deviations.
_WITHIN_2_STD = math.erf(math.sqrt(2))

Device = str | torch.device | None


class Bottleneck(nn.Module):
    """One block: 1x1, 3x3 with the stride, 1x1, squeeze-excitation, drop-connect, shortcut, activation."""

    def __init__(self, block: Block, config: ArchConfig, device: Device = None) -> None:
        super().__init__()
        out, reduced = block.out_channels, block.se_channels
        self.conv1 = _conv(block.in_channels, block.width, 1, device=device)
        self.bn1 = _bn(block.width, config, device)
        self.act1 = _activation(config.activation)
        self.conv2 = _conv(block.width, block.width, 3, block.stride, config, device)
        self.bn2 = _bn(block.width, config, device)
        self.act2 = _activation(config.activation)
        self.conv3 = _conv(block.width, out, 1, device=device)
        self.bn3 = _bn(out, config, device)
        self.se = SqueezeExcite(out, reduced, device) if reduced else nn.Identity()
        self.drop_connect = DropConnect(block.drop_connect_rate)
        self.downsample = _projection(block, config, device) if block.has_projection else None
        self.act3 = _activation(config.activation)
        self.checkpointed = False

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        return checkpointed(self, self._forward, x) if self.checkpointed and self.training else self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))
        x = self.se(self.bn3(self.conv3(x)))
        return self.act3(self.drop_connect(x) + shortcut)


class Backbone(nn.Module):
    """Stem and stages of a ResNet-RS; attribute names follow timm. `config` is its `ArchConfig`.

    `last`: the deepest wanted feature map (0 to 4); later layers are not built.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential
    #: What `rszoo.create` knows of the weights: the config of the folder that they came from, and what images go
    #: through. The latter is missing where nothing says it.
    origin: ModelConfig | None
    preprocessing: Preprocessing

    def __init__(self, config: ArchConfig, last: int = 4, device: Device = None) -> None:
        super().__init__()
        self.config = config
        #: Modules that stay in evaluation mode, by name; see `rszoo.train.torch.freezing.freeze`.
        self.frozen: tuple[str, ...] = ()
        self._last = last
        (*before, conv), strided = config.split_stem()
        layers = [layer for first in before for layer in _conv_bn_act(first, config, device)]
        last_conv = _stem_conv(conv, config, device)
        self.conv1 = nn.Sequential(*layers, last_conv) if layers else last_conv
        self.bn1 = _bn(conv.out_channels, config, device)
        self.act1 = _activation(config.activation)
        if last > 0:
            # timm's name: ResNet-RS has a strided convolution in the position of other ResNets' max pool.
            self.maxpool = nn.Sequential(*_conv_bn_act(strided, config, device)) if strided else SamePool3x3()
        blocks = list(config.iter_blocks())
        for stage in range(1, last + 1):
            chosen = (Bottleneck(block, config, device) for block in blocks if block.stage == stage)
            self.add_module(f"layer{stage}", nn.Sequential(*chosen))

    def iter_tensors(self) -> Iterator[TensorSpec]:
        """Yield the walk's tensors that this network has."""
        return FeatureInfo(self.config, (self._last,)).iter_tensors()

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; frozen modules stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """In training, keep only each block's input for the backward pass and recompute the rest there."""
        for module in self.modules():
            if isinstance(module, Bottleneck):
                module.checkpointed = enable

    def init_weights(self) -> None:
        """Set every tensor to its published initial values; the last gamma of each block starts at 0."""
        state = self.state_dict()
        for spec in self.iter_tensors():
            _init(state[torch_name(spec)], spec)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and module.num_batches_tracked is not None:
                module.num_batches_tracked.zero_()


class ResNetRSFeatures(Backbone):
    """A ResNet-RS that returns feature maps; `feature_info` says which. State dict keys are the classifier's."""

    def __init__(self, info: FeatureInfo, device: Device = None) -> None:
        super().__init__(info.config, info.last, device)
        self.feature_info = info

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map images (N, C, H, W) to the feature maps (N, C', H', W') in the order of `feature_info.out_indices`."""
        wanted = self.feature_info.out_indices
        x = self.act1(self.bn1(self.conv1(x)))
        maps = {0: x} if 0 in wanted else {}
        for index in range(1, self.feature_info.last + 1):
            x = self.get_submodule(f"layer{index}")(self.maxpool(x) if index == 1 else x)
            if index in wanted:
                maps[index] = x
        return [maps[index] for index in wanted]


class ResNetRS(Backbone):
    """A ResNet-RS classifier, or with no classes what gives its pooled features; attribute names follow timm.

    A new instance has PyTorch's default values, on `device`; `init_weights` sets the published initial values.
    """

    def __init__(self, config: ArchConfig, device: Device = None) -> None:
        super().__init__(config, device=device)
        self.num_classes = config.num_classes
        self.num_features = config.num_features
        self.dropout = nn.Dropout(config.dropout_rate)
        self.fc = _classifier(config, device)

    def iter_tensors(self) -> Iterator[TensorSpec]:
        """Yield the walk's tensors that this network has: all."""
        return iter_tensors(self.config)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, num_classes), or without classes to features (N, num_features)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to the last stage's output (N, num_features, H / 32, W / 32)."""
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map the last stage's output to logits, or with `pre_logits` to the pooled features (N, num_features)."""
        x = self.dropout(x.mean((2, 3)))
        return x if pre_logits else self.fc(x)

    def forward_stages(self, x: Tensor) -> dict[str, Tensor]:
        """Return the outputs stem, stage1..stage4 (N, C, H, W), pooled (N, num_features) and logits, by name.

        Without classes there are no logits.
        """
        stages = {"stem": self.maxpool(self.act1(self.bn1(self.conv1(x))))}
        x = stages["stem"]
        for name, layer in zip(
            ("stage1", "stage2", "stage3", "stage4"), (self.layer1, self.layer2, self.layer3, self.layer4), strict=True
        ):
            stages[name] = x = layer(x)
        stages["pooled"] = self.forward_head(x, pre_logits=True)
        if self.num_classes:
            stages["logits"] = self.forward_head(x)
        return stages

    def get_classifier(self) -> nn.Linear | nn.Identity:
        """Return the classifier; an identity where there are no classes."""
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier with a new one that has the published initial values; with 0 classes, remove it.

        Raises:
            ConfigError: `num_classes` is below 0.
        """
        self.config = replace(self.config, num_classes=num_classes)
        self.num_classes = num_classes
        self.fc = _classifier(self.config, self.bn1.weight.device).to(self.bn1.weight.dtype)
        for spec in iter_tensors(self.config):
            if spec.layer == "head.dense":
                _init(self.state_dict()[torch_name(spec)], spec)


@torch.no_grad()
def _init(tensor: Tensor, spec: TensorSpec) -> None:
    if spec.initial is Initial.FAN_IN:
        # The inverse of the distribution function; `nn.init.trunc_normal_` draws until all values are inside, and
        # takes ten times as long.
        std = math.sqrt(1 / math.prod(spec.shape[:-1])) / TRUNCATED_STD
        tensor.uniform_(-_WITHIN_2_STD, _WITHIN_2_STD).erfinv_().mul_(math.sqrt(2) * std)
    elif spec.initial is Initial.NORMAL:
        tensor.normal_(std=_DENSE_STD)
    else:
        tensor.fill_(1 if spec.initial is Initial.ONES else 0)


def _stem_conv(conv: StemConv, config: ArchConfig, device: Device) -> nn.Conv2d:
    return _conv(conv.in_channels, conv.out_channels, conv.size, conv.stride, config, device)


def _conv_bn_act(conv: StemConv, config: ArchConfig, device: Device) -> list[nn.Module]:
    norm = _bn(conv.out_channels, config, device)
    return [_stem_conv(conv, config, device), norm, _activation(config.activation)]


def _projection(block: Block, config: ArchConfig, device: Device) -> nn.Sequential:
    pool: nn.Module = nn.Identity()
    if block.pools_shortcut:
        # With ceil_mode and without padding in the count, odd sizes are pooled as with TensorFlow's SAME.
        pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False) if block.stride == 2 else SamePool2x2()
    conv = _conv(block.in_channels, block.out_channels, 1, block.projection_stride, config, device)
    return nn.Sequential(pool, conv, _bn(block.out_channels, config, device))


def _classifier(config: ArchConfig, device: Device) -> nn.Linear | nn.Identity:
    if not config.num_classes:
        return nn.Identity()
    return nn.Linear(config.num_features, config.num_classes, device=device)


def _conv(
    inputs: int, outputs: int, size: int, stride: int = 1, config: ArchConfig | None = None, device: Device = None
) -> nn.Conv2d:
    if stride > 1 and config is not None and config.strided_padding == "same":
        return SameConv2d(inputs, outputs, size, stride, bias=False, device=device)
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False, device=device)


def _bn(channels: int, config: ArchConfig, device: Device) -> nn.BatchNorm2d:
    # PyTorch's momentum of 0.1, not the published 0: with 0, one batch of fine-tuning would replace all statistics.
    return nn.BatchNorm2d(channels, eps=config.bn_epsilon, device=device)


def _activation(name: Activation) -> nn.Module:
    return nn.ReLU(inplace=True) if name == "relu" else nn.SiLU(inplace=True)


def empty_model(config: ArchConfig, features: FeatureInfo | None = None) -> ResNetRS | ResNetRSFeatures:
    """Build the classifier, or the model that returns `features`, on the meta device: no memory, no random draws."""
    # As an argument: within `with torch.device(...)` each of PyTorch's functions takes several times as long.
    return ResNetRS(config, "meta") if features is None else ResNetRSFeatures(features, "meta")


def assign_weights(
    model: ResNetRS | ResNetRSFeatures,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> None:
    """Make `tensors` the model's parameters and buffers. A missing tensor gets its initial values.

    `tensors`: by state dict key, in PyTorch's layout. Only those that the model has are read, each once. A tensor is
    copied only to change its dtype or device, one at a time.

    Raises:
        RuntimeError: a tensor has the wrong shape.
    """
    state = {}
    for spec in model.iter_tensors():
        tensor = tensors.get(torch_name(spec))
        if tensor is None:
            # Always drawn in float32, so that a seed gives the same values for every dtype.
            tensor = torch.empty(torch_shape(spec), dtype=torch.float32)
            _init(tensor, spec)
        elif tuple(tensor.shape) != torch_shape(spec):
            raise RuntimeError(f"{torch_name(spec)} has shape {tuple(tensor.shape)}, expected {torch_shape(spec)}")
        state[torch_name(spec)] = tensor.to(device=device, dtype=dtype)
    _assign(model, state, device)


def _assign(model: nn.Module, state: Mapping[str, Tensor], device: torch.device | None) -> None:
    """Replace every parameter and buffer; `load_state_dict(assign=True)` takes five times as long."""
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        for key, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, key, nn.Parameter(state[prefix + key], parameter.requires_grad))
        for key, _ in list(module.named_buffers(recurse=False)):
            # Not weights: PyTorch counts batches there, and checkpoints do not contain them.
            counter = key == "num_batches_tracked"
            setattr(module, key, torch.zeros((), dtype=torch.long, device=device) if counter else state[prefix + key])
