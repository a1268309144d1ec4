"""TensorFlow as a reader of images only: there or not, and off the accelerators that another framework computes on."""

from __future__ import annotations

import importlib.util

from rszoo.errors import MissingPackageError, UsageError


def require_tensorflow() -> None:
    """Check that TensorFlow is installed.

    Raises:
        MissingPackageError: it is not.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise MissingPackageError('reading data needs TensorFlow; run: pip install "rszoo[train]"')


def keep_off_accelerators() -> None:
    """Have TensorFlow see no GPU and no TPU, so that it takes none of their memory. To be called before it is used.

    Raises:
        MissingPackageError: TensorFlow is not installed.
        UsageError: it has begun to use a GPU already.
    """
    require_tensorflow()
    import tensorflow as tf

    for kind in ("GPU", "TPU"):
        try:
            tf.config.set_visible_devices([], kind)
        except RuntimeError as error:
            if not tf.config.get_visible_devices(kind):
                continue
            raise UsageError(
                f"TensorFlow uses a {kind} of this process already, which another framework is to compute on; "
                "call rszoo before anything else runs in TensorFlow"
            ) from error
