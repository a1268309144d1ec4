"""Cases of `tools/fuzz.py` that are files of Keras 2: the smallest ResNet-RS in each of their forms."""

from __future__ import annotations

import io
import itertools
import json
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence

import h5py
import numpy as np

from converters.formats.keras2 import keras2_name
from rszoo.arch.config import ArchConfig
from rszoo.arch.walk import TensorSpec, iter_tensors

_CLASSES = {"conv": "Conv2D", "bn": "BatchNormalization", "dense": "Dense"}
_GROUPS = {"conv": "layers/conv2d", "bn": "layers/batch_normalization", "dense": "layers/dense"}


class Keras2Cases:
    """Seeds for an architecture: a file of weights; the `config.json` of a `.keras` archive; and such an archive."""

    def __init__(self, arch: ArchConfig) -> None:
        specs = list(iter_tensors(arch))
        self._archived = _hdf5(_archive_paths(specs))
        weights, config = _hdf5({f"{_layer(spec)}/{keras2_name(spec)}:0": spec for spec in specs}), _config(specs)
        self.seeds = [b"\0" + weights, b"\1" + config, b"\2" + self._archive(config)]

    def seal(self, case: bytes) -> bytes:
        """Return a file: `case` without its kind, or an intact archive with it as `config.json`."""
        return self._archive(case[1:]) if case[0] % 3 == 1 else case[1:]

    def _archive(self, config: bytes) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("config.json", config)
            archive.writestr("metadata.json", "{}")
            archive.writestr("model.weights.h5", self._archived)
        return out.getvalue()


def _config(specs: Sequence[TensorSpec]) -> bytes:
    layers = {_layer(spec): _CLASSES[spec.kind.layer_type] for spec in specs}
    values = [{"class_name": kind, "config": {"name": name}} for name, kind in layers.items()]
    return json.dumps({"class_name": "Functional", "config": {"layers": values}}).encode()


def _archive_paths(specs: Sequence[TensorSpec]) -> dict[str, TensorSpec]:
    """Return where `.keras` keeps each tensor: layers of one class are counted, and the variables of a layer."""
    layers: Counter[str] = Counter()
    paths = {}
    for _, group in itertools.groupby(specs, key=_layer):
        variables = list(group)
        base = _GROUPS[variables[0].kind.layer_type]
        place = f"{base}_{layers[base]}" if layers[base] else base
        layers[base] += 1
        paths.update({f"{place}/vars/{number}": spec for number, spec in enumerate(variables)})
    return paths


def _layer(spec: TensorSpec) -> str:
    return keras2_name(spec).partition("/")[0]


def _hdf5(tensors: Mapping[str, TensorSpec]) -> bytes:
    out = io.BytesIO()
    # The newest layout: the one that Keras writes takes 2 KB a group, which is mostly zeros.
    with h5py.File(out, "w", libver="latest") as file:
        for path, spec in tensors.items():
            file.create_dataset(path, data=np.ones(spec.shape, np.float32))
    return out.getvalue()
