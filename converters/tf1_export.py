"""A model folder written back as a TF1 checkpoint that `tf.train.load_checkpoint` and a TF1 Saver restore.

Averages are written under their EMA names and, so that a plain Saver restores too, under the plain ones. Momentum is
not in a model folder, and no `.meta` graph is written: build the graph, then restore.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from converters.account import EMA_SUFFIX, GLOBAL_STEP
from converters.tensorbundle.bundle import write_bundle
from rszoo.arch.names import tf1_names, to_tf_layout, torch_name
from rszoo.arch.walk import TensorSpec, iter_tensors
from rszoo.disk.paths import expand_user
from rszoo.disk.staging import staged_folder
from rszoo.folder.model_folder import CONVERSION, ModelFolder
from rszoo.weights.mapping import Weights, check_header

PREFIX = "model.ckpt"
_STATE_FILE = f'model_checkpoint_path: "{PREFIX}"\nall_model_checkpoint_paths: "{PREFIX}"\n'


def export_tf1(folder: ModelFolder, output: str | Path) -> Path:
    """Write the checkpoint into the new folder `output`, and return its prefix, `output/model.ckpt`.

    Raises:
        WeightsError: the folder's weights are missing, damaged, or not of its architecture.
        OutputError: `output` exists, or it cannot be written.
    """
    target = expand_user(output)
    check_header(folder.weights_path, folder.config.arch)
    variables = _variables(folder)
    with (
        # Never over another: an export cannot be told from a checkpoint that somebody trained.
        staged_folder(target, overwrite=False, is_ours=lambda _: False) as staging,
        Weights(folder.weights_path) as weights,
    ):

        def read(name: str) -> np.ndarray:
            spec = variables[name]
            if spec is None:
                return np.array(_global_step(folder), np.int64)
            return to_tf_layout(spec.kind, weights[torch_name(spec)])

        # The order of TensorFlow's own Saver, and of the table in the index.
        ordered = sorted(variables, key=lambda name: name.encode("utf-8"))
        with (staging / f"{PREFIX}.data-00000-of-00001").open("wb") as data:
            index = write_bundle(((name, read(name)) for name in ordered), data)
        (staging / f"{PREFIX}.index").write_bytes(index)
        (staging / "checkpoint").write_text(_STATE_FILE, encoding="utf-8")
    return target / PREFIX


def _variables(folder: ModelFolder) -> dict[str, TensorSpec | None]:
    """Return each variable's tensor, None for the step counter."""
    specs = list(iter_tensors(folder.config.arch))
    plain: dict[str, TensorSpec | None] = dict(zip(tf1_names(specs), specs, strict=True))
    averages = {name + EMA_SUFFIX: spec for name, spec in plain.items()} if folder.config.weights == "ema" else {}
    return {**plain, **averages, GLOBAL_STEP: None}


def _global_step(folder: ModelFolder) -> int:
    """Return the step recorded at conversion, or 0."""
    try:
        account = json.loads((folder.path / CONVERSION).read_text(encoding="utf-8"))
        return int(account["source"]["global_step"] or 0)
    except (OSError, ValueError, KeyError, TypeError):
        return 0
