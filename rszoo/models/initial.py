"""Published initial values of convolution kernels, drawn by numpy in a separate thread while a model is built.

For Keras: its own truncated normal is slow on every backend (on PyTorch it draws four times as many values, on JAX it
compiles for each shape) and would block the build.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np

from rszoo.arch.walk import Initial, TensorSpec

#: A normal distribution cut at two standard deviations has this standard deviation (TensorFlow's VarianceScaling).
TRUNCATED_STD = 0.87962566103423978
# Number of kernels that are drawn ahead; the largest has 9.4 MB.
_WINDOW = 16


class KernelDraws:
    """Draws the convolution kernels of a walk ahead of their use. A context manager.

    All values follow from `seed`.
    """

    def __init__(self, specs: Iterable[TensorSpec], seed: int) -> None:
        self._waiting = iter([spec for spec in specs if spec.initial is Initial.FAN_IN])
        self._rng = np.random.default_rng(seed)
        # One thread: the generator's values depend on the order of the draws.
        self._pool = ThreadPoolExecutor(1)
        self._drawn: dict[TensorSpec, Future[np.ndarray]] = {}
        for _ in range(_WINDOW):
            self._submit_next()

    def take(self, spec: TensorSpec) -> np.ndarray | None:
        """Return a kernel's initial values, HWIO float32, or None for another tensor.

        Take each kernel once and in the walk's order; a kernel requested too early or twice gives None.
        """
        future = self._drawn.pop(spec, None)
        if future is None:
            return None
        self._submit_next()
        return future.result()

    def __enter__(self) -> KernelDraws:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _submit_next(self) -> None:
        spec = next(self._waiting, None)
        if spec is not None:
            self._drawn[spec] = self._pool.submit(self._draw, spec.shape)

    def _draw(self, shape: tuple[int, ...]) -> np.ndarray:
        values = self._rng.standard_normal(math.prod(shape), np.float32)
        outside = np.flatnonzero(np.abs(values) > 2)
        while outside.size:
            values[outside] = self._rng.standard_normal(outside.size, np.float32)
            outside = outside[np.abs(values[outside]) > 2]
        values *= np.float32(math.sqrt(1 / math.prod(shape[:-1])) / TRUNCATED_STD)
        return values.reshape(shape)
