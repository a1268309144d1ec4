"""The architecture of a ResNet-RS, described once and without a framework.

Everything that builds, names or checks a network takes an `ArchConfig`; its blocks contain all facts that the
PyTorch model, the Keras model and the tensor walk need. Facts: tensorflow/tpu `models/official/resnet/resnet_model.py`
(the "tf1" defaults) and tensorflow/models `official/vision/modeling/backbones/resnet.py` (the other values of
`activation` and `strided_padding`, and "always" of `shortcut_pool`). Without squeeze-excitation and ResNet-D it is the
paper's baseline. Training settings, resolutions and URLs are not architecture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rszoo.errors import ConfigError
from rszoo.schema.fields import build, check_fields, plain
from rszoo.schema.limits import check_count, check_range

Activation = Literal["relu", "silu"]
StridedPadding = Literal["symmetric", "same"]
ShortcutPool = Literal["strided", "always", "never"]
Stem = Literal["deep", "classic"]

#: Blocks per stage of the published depths.
BLOCKS_OF_DEPTH: dict[int, tuple[int, int, int, int]] = {
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    270: (4, 29, 53, 4),
    350: (4, 36, 72, 4),
    420: (4, 44, 87, 4),
}

# In both lineages stage i (2..5, the stem is 1) has the drop-connect rate `init * i / 5`.
_DROP_CONNECT_STAGES = 5
_MAX_COUNT = 1_000_000
_MAX_BLOCKS = 1000
_MAX_FACTOR = 64.0


@dataclass(frozen=True)
class StemConv:
    """One convolution of the stem with a square kernel, followed by batch normalization and the activation."""

    name: str
    in_channels: int
    out_channels: int
    stride: int
    size: int = 3

    @property
    def bn_name(self) -> str:
        """Name of the batch normalization after it."""
        return self.name.replace("conv", "bn")


@dataclass(frozen=True)
class Block:
    """One bottleneck block: 1x1, 3x3 (carries the stride), 1x1, squeeze-excitation, shortcut.

    `se_channels` 0 means no squeeze-excitation.
    """

    stage: int
    index: int
    in_channels: int
    width: int
    out_channels: int
    se_channels: int
    stride: int
    has_projection: bool
    pools_shortcut: bool
    drop_connect_rate: float

    @property
    def name(self) -> str:
        """Canonical name, such as `stage2.block0`."""
        return f"stage{self.stage}.block{self.index}"

    @property
    def projection_stride(self) -> int:
        """Stride of the projection: 1 after a pool, which then has the stride."""
        return 1 if self.pools_shortcut else self.stride


@dataclass(frozen=True)
class ArchConfig:
    """Everything that determines a network's tensors and arithmetic.

    Widths are given before `width_multiplier`; every width, including the stem's, is multiplied and truncated.
    `strided_padding`: padding of 3x3 convolutions with stride 2. "symmetric" pads one cell on every side (TF1); "same"
    is TensorFlow's SAME, which for even sizes pads only bottom and right (Model Garden). `shortcut_pool`: where a
    projection has a 2x2 average pool before it: "strided" only if the stride is 2 (TF1), "always" in every projection
    (Model Garden), "never" (ResNets before ResNet-D; the projection then has the stride). `stem`: "deep" is four 3x3
    convolutions, the last instead of a max pool; "classic" is one 7x7 convolution, as wide as the last of
    `stem_widths`, and a 3x3 max pool. `se_ratio` 0 means no squeeze-excitation.
    `num_classes` 0 means no classifier: the network ends with the pooled features. `dropout_rate` and
    `drop_connect_rate` apply only in training.

    Raises:
        ConfigError: a field has an impossible value.
    """

    blocks: tuple[int, int, int, int]
    num_classes: int = 1000
    in_chans: int = 3
    width_multiplier: float = 1.0
    stem_widths: tuple[int, int, int, int] = (32, 32, 64, 64)
    stage_widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    expansion: int = 4
    se_ratio: float = 0.25
    activation: Activation = "relu"
    strided_padding: StridedPadding = "symmetric"
    shortcut_pool: ShortcutPool = "strided"
    stem: Stem = "deep"
    bn_epsilon: float = 1e-5
    dropout_rate: float = 0.0
    drop_connect_rate: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        # The limits prevent a walk of hours over a damaged config.json.
        check_count(self, "blocks", high=_MAX_BLOCKS)
        check_count(self, "stem_widths", "stage_widths", "in_chans", "expansion", high=_MAX_COUNT)
        check_count(self, "num_classes", low=0, high=_MAX_COUNT)
        check_range(self, "dropout_rate", "drop_connect_rate", low=0.0, below=1.0)
        check_range(self, "width_multiplier", "bn_epsilon", low=1e-12, below=_MAX_FACTOR)
        check_range(self, "se_ratio", low=0.0, below=_MAX_FACTOR)

    def scaled(self, width: int) -> int:
        """Return `width` channels times the width multiplier, truncated as the Model Garden does."""
        return max(1, int(width * self.width_multiplier))

    @property
    def num_features(self) -> int:
        """Channels of the classifier's input: 2048 with width multiplier 1."""
        return self.scaled(self.stage_widths[-1]) * self.expansion

    @property
    def depth(self) -> int | None:
        """The published depth with these blocks, or None."""
        return next((depth for depth, blocks in BLOCKS_OF_DEPTH.items() if blocks == self.blocks), None)

    @property
    def label(self) -> str:
        """Short text for messages: `ResNet-RS-50` or `ResNet-RS (blocks 1-2-1-1)`, plus the width if it is not 1."""
        text = f"ResNet-RS-{self.depth}" if self.depth else f"ResNet-RS (blocks {'-'.join(map(str, self.blocks))})"
        return text if self.width_multiplier == 1 else f"{text} of width {self.width_multiplier:g}"

    def iter_stem(self) -> Iterator[StemConv]:
        """Yield the stem's convolutions: four, the last instead of a max pool, or a single one before a max pool."""
        if self.stem == "classic":
            yield StemConv("conv", self.in_chans, self.scaled(self.stem_widths[-1]), 2, 7)
            return
        in_channels = self.in_chans
        for position, (width, stride) in enumerate(zip(self.stem_widths, (2, 1, 1, 2), strict=True), start=1):
            yield StemConv(f"conv{position}", in_channels, self.scaled(width), stride)
            in_channels = self.scaled(width)

    def split_stem(self) -> tuple[list[StemConv], StemConv | None]:
        """Return the convolutions before the first feature map, and the one that halves it; None if a max pool does."""
        convs = list(self.iter_stem())
        return (convs, None) if self.stem == "classic" else (convs[:-1], convs[-1])

    def iter_blocks(self) -> Iterator[Block]:
        """Yield all blocks in the order of the forward pass."""
        in_channels = self.scaled(self.stem_widths[-1])
        for stage, (count, base) in enumerate(zip(self.blocks, self.stage_widths, strict=True), start=1):
            width = self.scaled(base)
            for index in range(count):
                stride = 2 if index == 0 and stage > 1 else 1
                yield Block(
                    stage=stage,
                    index=index,
                    in_channels=in_channels,
                    width=width,
                    out_channels=width * self.expansion,
                    se_channels=max(1, int(width * self.expansion * self.se_ratio)) if self.se_ratio else 0,
                    stride=stride,
                    has_projection=index == 0,
                    pools_shortcut=index == 0 and self._pools(stride),
                    drop_connect_rate=self.drop_connect_rate * (stage + 1) / _DROP_CONNECT_STAGES,
                )
                in_channels = width * self.expansion

    def _pools(self, stride: int) -> bool:
        return self.shortcut_pool == "always" or (self.shortcut_pool == "strided" and stride == 2)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values; `from_dict` is the inverse."""
        values: dict[str, Any] = plain(self)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ArchConfig:
        """Build from JSON values: the fields, or `depth` instead of `blocks`.

        Raises:
            ConfigError: a key is unknown or missing, or a value impossible.
        """
        return build(cls, values)

    @staticmethod
    def expand_shorthand(values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of a file with the `blocks` of its `depth`.

        Raises:
            ConfigError: there is neither, or both, or the depth is none of the published.
        """
        fields = dict(values)
        if "depth" in fields:
            depth = fields.pop("depth")
            if not isinstance(depth, int) or depth not in BLOCKS_OF_DEPTH or "blocks" in fields:
                raise ConfigError(f"depth must be one of {sorted(BLOCKS_OF_DEPTH)}, without blocks, received {depth!r}")
            fields["blocks"] = BLOCKS_OF_DEPTH[depth]
        if "blocks" not in fields:
            raise ConfigError("an architecture needs 'blocks' (four counts) or 'depth'")
        return fields
