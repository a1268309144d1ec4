"""Batches of a `tf.data.Dataset` on a PyTorch device, read and copied ahead of time by a thread.

In: elements of numpy arrays, images NHWC float32. Out: images (N, C, H, W) whose memory is still NHWC, which is
PyTorch's channels_last. On a GPU the copy runs beside the computation, from pinned memory on a stream of its own.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

_AHEAD = 2


class Batch(NamedTuple):
    """`images` (N, C, H, W) float32 and `labels` (N,) int64 on the device; `host`: the whole element as it was read."""

    images: Tensor
    labels: Tensor
    host: Mapping[str, np.ndarray]


class _Failure(NamedTuple):
    error: BaseException


class Batches(Iterator[Batch]):
    """The batches of a dataset in their order. `close` ends the thread; what it has read ahead is lost."""

    def __init__(self, dataset: Any, device: torch.device) -> None:
        self._dataset, self._device = dataset, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ready: queue.Queue[tuple[Batch, torch.cuda.Event | None] | _Failure] = queue.Queue(_AHEAD)
        self._stopped = threading.Event()
        self._failure: _Failure | None = None
        self._thread = threading.Thread(target=self._read, name="rszoo-batches", daemon=True)
        self._thread.start()

    def __next__(self) -> Batch:
        """Return the next batch, waiting for it; errors of reading are raised here.

        Raises:
            StopIteration: the dataset has ended, or `close` was called.
        """
        if self._failure is not None:
            raise self._failure.error
        item = self._ready.get()
        if isinstance(item, _Failure):
            self._failure = item
            raise item.error
        batch, copied = item
        if copied is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(copied)
            # Allocated on the other stream: keeps the memory from being reused while this stream reads it.
            batch.images.record_stream(current)
            batch.labels.record_stream(current)
        return batch

    def close(self) -> None:
        """Stop reading, and wait until the thread has ended."""
        self._stopped.set()
        self._thread.join()
        self._failure = _Failure(StopIteration())

    def _read(self) -> None:
        try:
            for element in self._dataset.as_numpy_iterator():
                if not self._put(self._load(element)):
                    return
            self._put(_Failure(StopIteration()))
        except BaseException as error:
            self._put(_Failure(error))

    def _put(self, item: tuple[Batch, torch.cuda.Event | None] | _Failure) -> bool:
        """Put an item into the queue; return False after `close`."""
        while not self._stopped.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def _load(self, element: Mapping[str, np.ndarray]) -> tuple[Batch, torch.cuda.Event | None]:
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            images = self._to_device(element["image"], torch.float32)
            labels = self._to_device(element["label"], torch.int64)
            copied = None if self._stream is None else self._stream.record_event()
        return Batch(images.permute(0, 3, 1, 2), labels, element), copied

    def _to_device(self, values: np.ndarray, dtype: torch.dtype) -> Tensor:
        # Copied even for the CPU: what TensorFlow gives is read-only, and may be reused.
        host = torch.empty(values.shape, dtype=dtype, pin_memory=self._stream is not None)
        host.numpy()[...] = values
        return host.to(self._device, non_blocking=True)
