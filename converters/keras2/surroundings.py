"""What a file of Keras 2 says of the layers around the network: what images go through before it, and what comes after.

Layers are listed in the order in which data goes through them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.keras2.files import Layer
from rszoo.errors import ConversionError, summarize
from rszoo.registry.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from rszoo.schema.limits import is_a

# Beside the network's own layers, which have its names.
_INSIDE = ("ZeroPadding2D", "Add", "InputLayer")
_MODELS = ("Functional", "Model", "Sequential")
# What does nothing to images when nobody trains.
_IDLE = ("InputLayer", "Dropout", "GaussianNoise", *_MODELS)
# What may stand between the last feature map and the classifier of the network itself.
_POOLED = ("GlobalAveragePooling2D", "Dropout", *_MODELS)
_WHITE = 255.0
_MAX_NUMBER = 1e30


@dataclass(frozen=True)
class Surroundings:
    """The layers before the network and after it, as far as a file lists layers; both are empty where it does not."""

    before: Sequence[Layer] = ()
    after: Sequence[Layer] = ()

    @property
    def image_size(self) -> int | None:
        """The side of the images that the network itself gets; None where the file does not say, or they have two."""
        sides = None
        for layer in self.before:
            shape = layer.settings.get("batch_input_shape", layer.settings.get("batch_shape"))
            if layer.kind == "InputLayer" and isinstance(shape, list) and len(shape) == 4:
                sides = shape[1], shape[2]
            elif layer.kind == "Resizing":
                sides = layer.settings.get("height"), layer.settings.get("width")
        return sides[0] if sides is not None and sides[0] == sides[1] and is_a(sides[0], int) else None

    def feeds(self, classifier: str) -> bool:
        """Whether a layer of that name gets the mean of the last feature map, and nothing else is done to that."""
        names = [layer.name for layer in self.after]
        between = self.after[: names.index(classifier)] if classifier in names else ()
        return all(layer.kind in _POOLED for layer in between)

    def notes(self, classifier: str | None) -> list[str]:
        """Return what of these layers is not kept, in words; `classifier`: the layer that is, if one is."""
        notes = []
        if unknown := [layer for layer in self.before if not _is_known(layer)]:
            notes.append(f"layers before the network that are not kept: {_listed(unknown)}")
        for layer in self.after:
            if layer.name == classifier and (last := layer.settings.get("activation")) not in (
                "linear",
                "softmax",
                None,
            ):
                notes.append(f"the classifier's activation {str(last)!r} is not kept: the network returns logits")
            if classifier is None and layer.kind == "GlobalMaxPooling2D":
                notes.append("its features were pooled by their maximum; this network returns their mean")
        return notes

    def preprocessing(
        self, channels: int, read: Callable[[str], np.ndarray | None]
    ) -> Callable[[int], Preprocessing] | None:
        """Return the normalization that the layers before the network do, given the size; None if they do none.

        `read`: the values of a tensor by its name, or None where there is none.

        Raises:
            ConversionError: it is one that a model folder cannot say.
        """
        scaling = [layer for layer in self.before if layer.kind in ("Rescaling", "Normalization")]
        if not scaling:
            return None
        # y = pixels * factor + shift
        factor, shift = np.ones(channels), np.zeros(channels)
        # What comes of a 0 or a negative variance is refused below.
        with np.errstate(all="ignore"):
            for layer in scaling:
                if layer.kind == "Rescaling":
                    times, plus = _numbers(layer, "scale", channels), _numbers(layer, "offset", channels)
                else:
                    mean, variance = _statistics(layer, channels, read)
                    times, plus = 1 / np.sqrt(variance), -mean / np.sqrt(variance)
                factor, shift = factor * times, shift * times + plus
            mean, std = -shift / (factor * _WHITE), 1 / (factor * _WHITE)
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
            raise ConversionError(
                f"what {_listed(scaling)} do to images is no normalization that a model folder can say"
            )
        return _Normalization(_published(mean, IMAGENET_MEAN), _published(std, IMAGENET_STD))


@dataclass(frozen=True)
class _Normalization:
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image_size: int) -> Preprocessing:
        # mypy does not see that there are one or three of each.
        return Preprocessing(image_size, mean=self.mean, std=self.std)  # type: ignore[arg-type]


def find_surroundings(layers: Sequence[Layer] | None, is_network: Callable[[str], bool]) -> Surroundings:
    """Return what is before and after the layers whose names are the network's.

    Raises:
        ConversionError: another layer is between them.
    """
    places = [place for place, layer in enumerate(layers or ()) if is_network(layer.name)]
    if layers is None or not places:
        return Surroundings()
    first, last = places[0], places[-1]
    inside = [layer for layer in layers[first:last] if not is_network(layer.name) and layer.kind not in _INSIDE]
    if inside:
        raise ConversionError(f"the file has other layers within the network: {_listed(inside)}")
    # The stem's padding has no name of the network's.
    before = [layer for layer in layers[:first] if layer.kind != "ZeroPadding2D"]
    return Surroundings(before, layers[last + 1 :])


def _is_known(layer: Layer) -> bool:
    return layer.kind in (*_IDLE, "Rescaling", "Normalization", "Resizing") or layer.kind.startswith("Random")


def _listed(layers: Sequence[Layer]) -> str:
    return summarize([f"{layer.name!r} ({layer.kind})" for layer in layers])


def _numbers(layer: Layer, key: str, channels: int) -> np.ndarray:
    value: Any = layer.settings.get(key, 0.0)
    values = value if isinstance(value, list) else [value]
    if not all(is_a(each, (int, float)) and abs(each) < _MAX_NUMBER for each in values) or len(values) not in (
        1,
        channels,
    ):
        raise ConversionError(f"{key} of the layer {layer.name!r} is {value!r}, not one number or {channels}")
    return np.broadcast_to(np.array(values, np.float64), channels)


def _statistics(layer: Layer, channels: int, read: Callable[[str], np.ndarray | None]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of a Normalization: from its settings, or as it was adapted to data."""
    if layer.settings.get("invert"):
        raise ConversionError(f"the layer {layer.name!r} undoes a normalization, which a model folder cannot say")
    if layer.settings.get("mean") is not None:
        return _numbers(layer, "mean", channels), _numbers(layer, "variance", channels)
    found = [read(f"{layer.name}/{name}") for name in ("mean", "variance")]
    mean, variance = (np.asarray(values, np.float64).reshape(-1) if values is not None else None for values in found)
    if mean is None or variance is None or {mean.size, variance.size} - {1, channels}:
        raise ConversionError(f"the mean and variance of the layer {layer.name!r} are not in the file")
    return np.broadcast_to(mean, channels), np.broadcast_to(variance, channels)


def _published(values: np.ndarray, known: Sequence[float]) -> tuple[float, ...]:
    """Return numbers, or the published ones if they are these but for rounding."""
    if len(values) == len(known) and all(map(lambda a, b: math.isclose(a, b, rel_tol=1e-6), values, known)):
        return tuple(known)
    return tuple(float(value) for value in values)
