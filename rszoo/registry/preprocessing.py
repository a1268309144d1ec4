"""Preprocessing of images, as data. `rszoo.inference.images` applies it; the registry needs no numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rszoo.schema.fields import check_fields
from rszoo.schema.limits import check_count, check_range

#: Mean and standard deviation of ImageNet's RGB, for pixels in [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Interpolation = Literal["legacy-bicubic"]
#: How an image is resized, in words.
INTERPOLATIONS: dict[Interpolation, str] = {
    "legacy-bicubic": "TensorFlow 1's legacy bicubic: no half-pixel centres, no antialiasing, a = -0.75,\n"
    "   values neither clipped nor rounded",
}

_MAX_SIZE = 8192
_MAX_NUMBER = 1e6
_MIN_CROP = 0.01


@dataclass(frozen=True)
class Preprocessing:
    """The published evaluation preprocessing: centre crop, square resize, normalization.

    `image_size` in pixels (the input is square); `crop` is the fraction that defines the padding around the crop,
    `padding = round(image_size * (1 / crop - 1))`; `mean` and `std` are for RGB in [0, 1].

    Raises:
        ConfigError: a value is impossible.
    """

    image_size: int
    crop: float = 0.875
    interpolation: Interpolation = "legacy-bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        check_fields(self)
        check_count(self, "image_size", high=_MAX_SIZE)
        check_range(self, "crop", low=_MIN_CROP, high=1)
        check_range(self, "mean", low=-_MAX_NUMBER, high=_MAX_NUMBER)
        check_range(self, "std", low=1e-12, high=_MAX_NUMBER)
