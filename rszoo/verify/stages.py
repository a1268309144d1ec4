"""Outputs of every stage of a model folder's network, in PyTorch and in Keras, and their differences.

Runs a folder's network on batches of images and returns arrays by stage, all NHWC.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rszoo.folder.model_folder import ModelFolder
from rszoo.models.adapt import keras_weights
from rszoo.models.devices import keras_scope
from rszoo.models.factory import create, import_model_module
from rszoo.weights.mapping import Weights

#: Outputs by name: stem, stage1..stage4 (N, H, W, C), pooled and, of a classifier, logits.
Stages = dict[str, np.ndarray]


def torch_stages(folder: ModelFolder, batches: Sequence[np.ndarray], dtype: str) -> list[Stages]:
    """Return every stage's output for each batch in PyTorch. Batches and outputs are NHWC."""
    import torch

    # Damage is another check's to find.
    model = create(folder, check=False).to(getattr(torch, dtype))
    results = []
    for images in batches:
        with torch.no_grad():
            stages = model.forward_stages(torch.from_numpy(images.astype(dtype)).permute(0, 3, 1, 2))
        results.append({name: (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).numpy() for name, x in stages.items()})
    return results


def keras_stages(folder: ModelFolder, batches: Sequence[np.ndarray], dtype: str) -> list[Stages]:
    """Return every stage's output for each batch in Keras. Batches and outputs are NHWC."""
    import keras

    module = import_model_module("keras")
    with keras_scope(dtype, None), Weights(folder.weights_path, check=False) as weights:
        model = module.stage_model(module.build_model(folder.config.arch, keras_weights(weights, folder.config.arch)))
    outputs = (model(images.astype(dtype), training=False) for images in batches)
    return [{name: keras.ops.convert_to_numpy(x) for name, x in stages.items()} for stages in outputs]


def stage_errors(actual: Sequence[Stages], expected: Sequence[Stages]) -> dict[str, float]:
    """Return the relative L2 error of each stage of each batch, in forward order, as `batch 0 stage1` and so on."""
    return {
        f"batch {number} {name}": relative_l2(actual[number][name], values)
        for number, stages in enumerate(expected)
        for name, values in stages.items()
    }


def relative_l2(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return |actual - expected| / |expected|, infinite where shapes differ or values are not finite."""
    if actual.shape != expected.shape:
        return math.inf
    difference = np.linalg.norm(actual.astype(np.float64) - expected.astype(np.float64))
    error = float(difference / max(np.linalg.norm(expected.astype(np.float64)), np.finfo(np.float64).tiny))
    return error if math.isfinite(error) else math.inf
