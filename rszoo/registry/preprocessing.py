"""Preprocessing of images, as data. `rszoo.inference.images` applies it; the registry needs no numpy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from rszoo.schema.fields import check_fields
from rszoo.schema.limits import check_count, check_range, require

#: Mean and standard deviation of ImageNet's RGB, for pixels in [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
#: Parts of red, green and blue in a gray level (ITU-R BT.601, as in JPEG and Pillow).
LUMA = (0.299, 0.587, 0.114)
#: One number for each channel: RGB, or gray.
Channels = tuple[float, float, float] | tuple[float]
Interpolation = Literal["legacy-bicubic", "bilinear"]
#: How an image is resized, in words.
INTERPOLATIONS: dict[Interpolation, str] = {
    "legacy-bicubic": "TensorFlow 1's legacy bicubic: no half-pixel centres, no antialiasing, a = -0.75,\n"
    "   values neither clipped nor rounded",
    "bilinear": "`tf.image.resize`'s bilinear: half-pixel centres, no antialiasing, values not rounded",
}

_MAX_SIZE = 8192
_MAX_NUMBER = 1e6
_MIN_CROP = 0.01


@dataclass(frozen=True)
class Preprocessing:
    """The published evaluation preprocessing: centre crop, square resize, normalization.

    `image_size` in pixels (the input is square). `interpolation` says whose preprocessing it is, and so the crop: with
    "legacy-bicubic", TF1's, `crop` is the fraction that defines the padding around the crop, `padding =
    round(image_size * (1 / crop - 1))`, and offsets are rounded up; with "bilinear", the Model Garden's, `crop` is the
    part of the image's shorter side, and offsets are rounded down. `mean` and `std` are for RGB in [0, 1], or one
    number each for gray in [0, 1], the luma of RGB.

    Raises:
        ConfigError: a value is impossible.
    """

    image_size: int
    crop: float = 0.875
    interpolation: Interpolation = "legacy-bicubic"
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD

    def __post_init__(self) -> None:
        check_fields(self)
        check_count(self, "image_size", high=_MAX_SIZE)
        check_range(self, "crop", low=_MIN_CROP, high=1)
        check_range(self, "mean", low=-_MAX_NUMBER, high=_MAX_NUMBER)
        check_range(self, "std", low=1e-12, high=_MAX_NUMBER)
        require(len(self.std) == len(self.mean), "std", f"of as many numbers as mean, {len(self.mean)}", self.std)

    @property
    def channels(self) -> int:
        """The number of channels: 3 for RGB, 1 for gray."""
        return len(self.mean)

    def for_channels(self, count: int) -> Preprocessing:
        """Return it for a network of this many input channels: gray for 1, RGB for 3, unchanged for any other number.

        From gray, all three channels are normalized alike.

        A first convolution that was adapted from RGB sums its kernels, and so takes one image for all three channels.
        Normalized they differ, even those of a gray image; the nearest to all three is their mean, which is also
        a normalization: its 1 / std is the mean of theirs, as is its mean / std.
        """
        if count == 3 and self.channels == 1:
            (mean,), (std,) = self.mean[:1], self.std[:1]
            return replace(self, mean=(mean, mean, mean), std=(std, std, std))
        if count != 1 or self.channels == 1:
            return self
        std = 3 / sum(1 / value for value in self.std)
        mean = std * sum(mean / value for mean, value in zip(self.mean, self.std, strict=True)) / 3
        return replace(self, mean=(mean,), std=(std,))
