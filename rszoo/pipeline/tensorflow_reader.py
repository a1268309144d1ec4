"""TensorFlow as an image reader: checks that it is installed, and hides accelerators that another framework uses."""

from __future__ import annotations

from rszoo.errors import UsageError
from rszoo.extras import check_installed


def require_tensorflow() -> None:
    """Check that TensorFlow is installed.

    Raises:
        MissingPackageError: it is not.
    """
    check_installed("reading data", "tensorflow", extra="data")


def keep_off_accelerators() -> None:
    """Hide all GPUs and TPUs from TensorFlow, so that it takes none of their memory. Call this before using it.

    Raises:
        MissingPackageError: TensorFlow is not installed.
        UsageError: it already uses a GPU or TPU.
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
                f"TensorFlow already uses a {kind} in this process, which another framework needs; "
                "call rszoo before anything else runs in TensorFlow"
            ) from error
