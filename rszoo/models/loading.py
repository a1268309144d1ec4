"""Frameworks imported without the messages that they print meanwhile: for programs, which own their stderr."""

from __future__ import annotations

import importlib
from contextlib import suppress
from typing import Literal

from rszoo.errors import MissingPackageError
from rszoo.extras import is_installed
from rszoo.held_back import held_back_stderr
from rszoo.models.factory import Framework, import_model_module


def load_frameworks(*frameworks: Framework | Literal["tensorflow"]) -> None:
    """Import those that are installed, hiding the messages that TensorFlow's C++ code prints to stderr.

    TensorFlow has no setting for that. If an import fails, the messages are shown. "tensorflow" stands for the input
    pipeline, independent of Keras's backend.
    """
    with held_back_stderr(f"importing {' and '.join(frameworks)}"):
        for framework in frameworks:
            if framework != "tensorflow":
                with suppress(MissingPackageError):
                    import_model_module(framework)
            elif is_installed(framework):
                importlib.import_module(framework)
