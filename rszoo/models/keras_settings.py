"""What `keras.json` says, checked before Keras is imported, which an odd value breaks with a traceback.

Keras reads the file of the folder `KERAS_HOME`, or else `~/.keras`; the variable `KERAS_BACKEND` outranks its backend
(keras/src/backend/config.py).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rszoo.disk.regular import read_regular
from rszoo.errors import UsageError, nearest

#: All that Keras 3 has; the last two were not tried here.
BACKENDS = ("tensorflow", "jax", "torch", "numpy", "openvino")
_DATA_FORMATS = ("channels_last", "channels_first")
_FLOATX = ("float32", "float16", "float64")
_TYPES = {"epsilon": (float, "a number with a point, such as 1e-7"), "nnx_enabled": (bool, "true or false")}
_ALLOWED = {"backend": BACKENDS, "floatx": _FLOATX, "image_data_format": _DATA_FORMATS}


def chosen_backend() -> str:
    """Return the backend that Keras will have, or has, by `KERAS_BACKEND` or `keras.json`.

    Raises:
        UsageError: the variable, or a value in the file, is none of Keras's.
    """
    # As Keras does: an empty variable is the working directory, and `~` in it is a folder's name.
    home = os.environ.get("KERAS_HOME")
    path = (Path("~/.keras").expanduser() if home is None else Path(home)) / "keras.json"
    settings = _read(path)
    for name, allowed in _ALLOWED.items():
        if name in settings:
            _check(settings[name], f"{path} has {name}", f"let it be {{}}, or delete {path}", allowed)
    for name, (kind, words) in _TYPES.items():
        if name in settings and type(settings[name]) is not kind:
            raise UsageError(f"{path} has {name} {settings[name]!r}; let it be {words}, or delete {path}")
    variable = os.environ.get("KERAS_BACKEND")
    if variable:
        _check(variable, "KERAS_BACKEND is", "set it to {}, or leave it out", BACKENDS)
    return variable or settings.get("backend") or BACKENDS[0]


def _check(value: object, where: str, remedy: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        likely = nearest(str(value), allowed) or list(allowed)
        raise UsageError(f"{where} {value!r}; {remedy.format(', '.join(likely))}")


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(read_regular(path))
    except (FileNotFoundError, ValueError):
        # Keras passes over it too.
        return {}
    except OSError as error:
        raise UsageError(f"cannot read {path}, which Keras would: {error.strerror}; fix it, or delete it") from error
    if not isinstance(settings, dict):
        raise UsageError(f"{path} is no JSON object, on which Keras breaks; fix it, or delete it")
    return settings
