"""How a model is trained, as data: YAML values in, a checked `Recipe` out. `load.py` reads the files.

A recipe belongs to a pair of depth and resolution, not to a depth. Those that come with rszoo are complete:
nothing that decides the result is left to a default of the code, which is for what a user's own file leaves out. Facts:
tensorflow/tpu `models/official/resnet/resnet_rs/configs/*.yaml` and `resnet_main.py`, and arXiv 2103.07579.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from rszoo.arch.config import ArchConfig
from rszoo.errors import ConfigError
from rszoo.registry.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Interpolation, Preprocessing
from rszoo.schema.fields import build, plain
from rszoo.schema.limits import check_range

#: "transcribed": values copied from a source, never run; "run": those, trained with rszoo, with the result in the
#: recipe; "ours": rszoo's own values.
Status = Literal["transcribed", "run", "ours"]
Schedule = Literal["cosine", "steps", "constant"]
Precision = Literal["float32", "bfloat16"]
#: RandAugment's outcomes: the 16 operations of the TF1 code, or the Model Garden's 17, the last of which does nothing.
Operations = Literal["tf1", "model-garden"]
BatchNorm = Literal["train", "frozen"]


def _require(condition: bool, text: str, received: object) -> None:
    if not condition:
        raise ConfigError(f"{text}, received {received!r}")


@dataclass(frozen=True)
class DataSettings:
    """What the network sees. `train_images` is the number by which epochs are counted (ImageNet: 1,281,167).

    `image_size`, `crop`, `interpolation`, `mean` and `std` are `rszoo.Preprocessing`'s; `source` is the default of
    --data.
    """

    image_size: int
    train_images: int
    source: str | None = None
    crop: float = 0.875
    interpolation: Interpolation = "legacy-bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        _ = self.preprocessing
        check_range(self, "train_images", low=1, high=1e12)

    @property
    def preprocessing(self) -> Preprocessing:
        """The evaluation preprocessing, which is saved with the trained model."""
        return Preprocessing(self.image_size, self.crop, self.interpolation, self.mean, self.std)


@dataclass(frozen=True)
class AugmentSettings:
    """What happens to training images. Areas as fractions of the image; `aspect_ratio` is width by height.

    `randaugment_layers` 0 means none. `shift` is the largest shift of the image in pixels of the source, up and down
    and left and right, instead of the random crop (for the digits, whose crops would be other digits); 0 is none.
    """

    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_aspect_ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: bool = True
    randaugment_layers: int = 0
    randaugment_magnitude: float = 10.0
    randaugment_operations: Operations = "tf1"
    shift: int = 0

    def __post_init__(self) -> None:
        (low, high), (narrow, wide) = self.crop_area, self.crop_aspect_ratio
        _require(0 < low <= high <= 1, "crop_area must be two rising fractions above 0, to 1", self.crop_area)
        _require(0 < narrow <= wide < math.inf, "crop_aspect_ratio must be two rising ratios", (narrow, wide))
        check_range(self, "randaugment_layers", low=0, high=10)
        check_range(self, "randaugment_magnitude", low=0, high=30)
        check_range(self, "shift", low=0, high=64)


@dataclass(frozen=True)
class OptimizerSettings:
    """SGD as published. The learning rate is `learning_rate_per_256` times batch / 256, unless `learning_rate` is set.

    `weight_decay` is an L2 term of the loss, wd * sum(v^2) / 2 over every trainable variable that is not of a batch
    normalization. `ema_decay` null means no averages. `layer_decay` multiplies the learning rate of each group of
    layers by that of the group after it (1: all alike), for fine-tuning.
    """

    learning_rate_per_256: float = 0.1
    learning_rate: float | None = None
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 4e-5
    label_smoothing: float = 0.1
    ema_decay: float | None = 0.9999
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        check_range(self, "learning_rate_per_256", "learning_rate", low=0, high=1000)
        check_range(self, "momentum", "label_smoothing", "ema_decay", low=0, high=0.999999)
        check_range(self, "weight_decay", low=0, high=10)
        check_range(self, "layer_decay", low=1e-3, high=1)


@dataclass(frozen=True)
class ScheduleSettings:
    """Linear warm-up, then `cosine` to 0, `steps` (times `step_factor` at each of `step_epochs`), or `constant`."""

    kind: Schedule = "cosine"
    warmup_epochs: float = 5.0
    step_epochs: tuple[float, ...] = ()
    step_factor: float = 0.1

    def __post_init__(self) -> None:
        check_range(self, "warmup_epochs", low=0, high=1e6)
        check_range(self, "step_factor", low=0, high=1)
        rising = all(epoch > 0 for epoch in self.step_epochs) and list(self.step_epochs) == sorted(self.step_epochs)
        _require(rising, "step_epochs must be rising numbers above 0", self.step_epochs)
        _require(
            (self.kind == "steps") == bool(self.step_epochs),
            "step_epochs belongs to schedule.kind steps, and only to it",
            (self.kind, self.step_epochs),
        )


@dataclass(frozen=True)
class TrainSettings:
    """How training runs. `batch_size` counts all processes, devices and accumulated micro-batches together.

    `accumulate`: micro-batches for each device and step. `bn_momentum` 0: the statistics are the last batch's, of
    which the averages are used. `bn` and `freeze_through` are for fine-tuning: `frozen` normalizes with the stored
    statistics and leaves these, gamma and beta as they are; `freeze_through` 1 to 4 freezes the stem and the stages up
    to that one, whatever `.train()` says; 0 freezes nothing.
    """

    batch_size: int
    epochs: float
    precision: Precision = "bfloat16"
    accumulate: int = 1
    bn_momentum: float = 0.0
    bn: BatchNorm = "train"
    freeze_through: int = 0
    gradient_checkpointing: bool = False
    compile: bool = False
    channels_last: bool = True
    seed: int = 0
    log_every_steps: int = 50
    checkpoint_every_steps: int = 1000
    keep_checkpoints: int = 3
    evaluate_every_epochs: float = 1.0

    def __post_init__(self) -> None:
        check_range(self, "batch_size", "log_every_steps", "checkpoint_every_steps", low=1, high=1e7)
        check_range(self, "accumulate", "keep_checkpoints", low=1, high=1e4)
        check_range(self, "epochs", "evaluate_every_epochs", low=1e-6, high=1e6)
        check_range(self, "bn_momentum", low=0, high=0.999999)
        check_range(self, "freeze_through", low=0, high=4)
        check_range(self, "seed", low=0, high=2**31 - 1)


@dataclass(frozen=True)
class EvaluationSettings:
    """How the model is measured while it trains; `batch_size` is each process's."""

    batch_size: int = 200

    def __post_init__(self) -> None:
        check_range(self, "batch_size", low=1, high=1e6)


@dataclass(frozen=True)
class Recipe:
    """A model, its data and its training. `follows` says in words which schedule; `sources` are URLs.

    Raises:
        ConfigError: a value is impossible.
    """

    name: str
    title: str
    status: Status
    follows: str
    sources: tuple[str, ...]
    model: ArchConfig
    data: DataSettings
    train: TrainSettings
    augment: AugmentSettings = AugmentSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    def __post_init__(self) -> None:
        for name in ("name", "title", "follows"):
            _require(bool(getattr(self, name).strip()), f"{name} must be a text", getattr(self, name))
        _require(self.model.num_classes > 0, "model.num_classes must be at least 1", self.model.num_classes)
        warmup, epochs = self.schedule.warmup_epochs, self.train.epochs
        # A cosine that the warm-up took to its end would be 0 throughout.
        _require(warmup < epochs, f"schedule.warmup_epochs must be below train.epochs ({epochs:g})", warmup)

    @property
    def learning_rate(self) -> float:
        """The peak learning rate."""
        fixed = self.optimizer.learning_rate
        return self.optimizer.learning_rate_per_256 * self.train.batch_size / 256 if fixed is None else fixed

    @property
    def steps_per_epoch(self) -> float:
        """Steps in one epoch, not rounded: the published 109,475 are 350 epochs and a bit."""
        return self.data.train_images / self.train.batch_size

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training: 109,475 for 350 epochs of 1,281,167 images in batches of 4096."""
        return max(1, round(self.train.epochs * self.steps_per_epoch))

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as YAML and JSON values; `from_dict` takes them back."""
        values: dict[str, Any] = plain(self)
        return values

    def to_yaml(self) -> str:
        """Return the recipe as the text of a file that `load_recipe` reads."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Build from YAML values.

        Raises:
            ConfigError: a key is unknown or missing, or a value impossible.
        """
        return build(cls, values, number_texts=True)
