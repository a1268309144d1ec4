"""Devices and dtypes of models: checks devices by name, and sets both for Keras models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from rszoo.errors import UsageError


def check_device(framework: str, name: str, dtype: str | None) -> None:
    """Check that a framework, "torch" or "keras", can place a model with this dtype on a device.

    Raises:
        UsageError: it cannot; the text lists the available devices.
    """
    if framework == "torch":
        _check_torch(name, dtype)
    else:
        _check_keras(name)


@contextmanager
def keras_scope(dtype: str | None, device: str | None) -> Iterator[None]:
    """Build Keras models with a dtype policy and on a device; all is restored at the end, also after an error.

    With a dtype, nothing that the user has set has a part in it: neither the policy, nor `floatx`, of which
    `keras.json` may make another than float32.

    Raises:
        UsageError: the backend would silently use another dtype.
    """
    import keras

    policy, floatx = keras.config.dtype_policy(), keras.config.floatx()
    try:
        if dtype is not None:
            # The dtype of inputs, which dtype policies do not reach.
            keras.config.set_floatx("float64" if dtype == "float64" else "float32")
            keras.config.set_dtype_policy(dtype)
            _check_keras_dtype(keras.config.dtype_policy().variable_dtype)
        with keras.device(device) if device is not None else nullcontext():
            yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


def _check_torch(name: str, dtype: str | None) -> None:
    import torch

    try:
        device = torch.device(name)
        if device.type != "meta":
            torch.empty(1, device=device, dtype=getattr(torch, dtype or "float32"))
            return
        cause = "it holds no values"
    # PyTorch builds without support for a device raise any of these.
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        cause = str(error).splitlines()[0]
    raise UsageError(f"device {name!r} cannot be used ({cause}); this machine has {', '.join(_torch_devices())}")


def _check_keras(name: str) -> None:
    import keras

    # Checked by name: TensorFlow would accept any name and use the CPU.
    if keras.backend.backend() == "torch":
        there = [device.replace("cuda", "gpu") for device in _torch_devices()]
    elif keras.backend.backend() in ("tensorflow", "jax"):
        there = [*keras.distribution.list_devices(), "cpu:0"]
    else:
        there = ["cpu:0"]
    wanted = name.lower().replace("cuda", "gpu")
    if wanted not in there and f"{wanted}:0" not in there:
        raise UsageError(f"Keras has no device {name!r} here; this machine has {', '.join(dict.fromkeys(there))}")


def _check_keras_dtype(dtype: str) -> None:
    import keras

    made = keras.backend.standardize_dtype(keras.ops.zeros((), dtype).dtype)
    if made != dtype:
        backend = keras.backend.backend()
        hint = "set JAX_ENABLE_X64=1, or " if backend == "jax" else ""
        raise UsageError(f"{backend} converts {dtype} to {made}, received dtype={dtype!r}; {hint}choose {made}")


def _torch_devices() -> list[str]:
    import torch

    accelerators = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["cpu:0", *accelerators, *(["mps:0"] if torch.backends.mps.is_available() else [])]
