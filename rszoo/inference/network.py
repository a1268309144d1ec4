"""A model ready to run on batches: images of the pipeline in, logits out, in either framework.

Starting a batch and waiting for it are two calls, so that an accelerator computes while the next batch is fetched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import numpy as np

from rszoo.cache.find import ModelLike
from rszoo.errors import UsageError
from rszoo.models.factory import Framework, create


@dataclass(frozen=True)
class Runtime:
    """How a network runs, which affects the speed, and logits only by rounding.

    `batch_size` images at a time; `dtype` of weights and computation, for Keras also mixed ones; `device` as the
    framework names it, None for PyTorch's first GPU if there is one, and for Keras's own choice.

    Raises:
        UsageError: the framework is unknown, or `batch_size` is not a positive int.
    """

    framework: Framework = "torch"
    batch_size: int = 64
    dtype: str = "float32"
    device: str | None = None

    def __post_init__(self) -> None:
        if self.framework not in get_args(Framework):
            raise UsageError(f"framework must be {' or '.join(get_args(Framework))}, received {self.framework!r}")
        if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise UsageError(f"batch_size must be a whole number of at least 1, received {self.batch_size!r}")


class Network(NamedTuple):
    """A running model. `start`: images float32 (B, size, size, 3), normalized, to a handle; `finish`: to logits.

    Logits are float32 (B, num_classes), or float64 of a float64 model. `device`, `backend`: what it runs on.
    """

    start: Callable[[np.ndarray], Any]
    finish: Callable[[Any], np.ndarray]
    device: str
    backend: str


def open_network(model: ModelLike, runtime: Runtime) -> Network:
    """Load a model for predictions.

    Raises as `rszoo.create`.
    """
    return _open_torch(model, runtime) if runtime.framework == "torch" else _open_keras(model, runtime)


def _open_torch(model: ModelLike, runtime: Runtime) -> Network:
    import torch

    device = torch.device(runtime.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    network = create(model, pretrained=True, framework="torch", dtype=runtime.dtype, device=device)
    # The layout of the images, so that convolutions need no copies. PyTorch's stub of `to` has no overload for a layout
    # without a dtype or device.
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    dtype = next(network.parameters()).dtype

    def start(images: np.ndarray) -> torch.Tensor:
        with torch.inference_mode():
            batch = torch.from_numpy(images).permute(0, 3, 1, 2).to(device, dtype, non_blocking=True)
            logits: torch.Tensor = network(batch)
            return logits if dtype == torch.float64 else logits.float()

    def start_or_explain(images: np.ndarray) -> torch.Tensor:
        try:
            return start(images)
        except torch.cuda.OutOfMemoryError as error:
            raise UsageError(
                f"{device} does not have enough memory for batches of {len(images)}; try --batch-size "
                f"{max(1, len(images) // 2)}"
            ) from error

    return Network(start_or_explain, lambda logits: logits.cpu().numpy(), str(device), "torch")


def _open_keras(model: ModelLike, runtime: Runtime) -> Network:
    network = create(model, pretrained=True, framework="keras", dtype=runtime.dtype, device=runtime.device)
    import keras

    wanted = np.float64 if runtime.dtype == "float64" else np.float32
    backend = keras.backend.backend()

    def start(images: np.ndarray) -> np.ndarray:
        logits: np.ndarray = network.predict_on_batch(images)
        return logits.astype(wanted)

    return Network(start, lambda logits: logits, runtime.device or f"{backend}'s choice", backend)
