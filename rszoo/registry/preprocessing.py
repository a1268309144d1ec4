"""What an image goes through before a network sees it, as data; `rszoo.inference.images` does it.

Apart from the doing, so that the registry needs no numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

from rszoo.errors import ConfigError

#: Mean and standard deviation of ImageNet's RGB, for pixels in [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
#: The one interpolation of the TF1 checkpoints.
LEGACY_BICUBIC = "legacy-bicubic"

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
    interpolation: str = LEGACY_BICUBIC
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))
        size, numbers = self.image_size, (self.crop, *self.mean, *self.std)
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= _MAX_SIZE:
            raise ConfigError(f"image_size must be a whole number from 1 to {_MAX_SIZE}, received {size!r}")
        if not all(isinstance(value, (int, float)) and abs(value) < _MAX_NUMBER for value in numbers):
            raise ConfigError(f"crop, mean and std must be numbers below {_MAX_NUMBER:g}, received {numbers}")
        if not _MIN_CROP <= self.crop <= 1:
            raise ConfigError(f"crop must be {_MIN_CROP} to 1, received {self.crop!r}")
        if self.interpolation != LEGACY_BICUBIC:
            raise ConfigError(f"interpolation must be {LEGACY_BICUBIC!r}, received {self.interpolation!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ConfigError(f"mean and std must be three numbers, std above 0; received {self.mean} and {self.std}")
