"""Errors that say that memory is used up, in the words of PyTorch, TensorFlow and JAX, and in rszoo's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rszoo.errors import RszooError, TrainingError
from rszoo.recipes.recipe import Recipe

#: How the frameworks say that memory is used up: by the error's name, or within its text.
_NAMES = ("OutOfMemoryError", "ResourceExhaustedError", "MemoryError")
_TEXTS = ("RESOURCE_EXHAUSTED", "out of memory", "can't allocate memory")


class DeviceMemoryError(TrainingError):
    """A micro-batch that does not fit into a device's memory."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of PyTorch, TensorFlow, JAX or an engine says that a batch is too large for the device."""
    if isinstance(error, RszooError):
        return isinstance(error, DeviceMemoryError)
    return type(error).__name__ in _NAMES or any(text in str(error) for text in _TEXTS)


@contextmanager
def memory_errors(recipe: Recipe, micro_batch: int) -> Iterator[None]:
    """Say what to do where what is done inside uses up the memory; `micro_batch`: images that a device takes at once.

    Raises:
        DeviceMemoryError: it did.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, RszooError) or not is_out_of_memory(error):
            raise
        train = recipe.train
        ways = [f"raise train.accumulate (it is {train.accumulate})"] if micro_batch > 1 else []
        if not train.gradient_checkpointing:
            ways.append("set train.gradient_checkpointing=true")
        raise DeviceMemoryError(
            f"a micro-batch of {micro_batch} images of {recipe.data.image_size} px did not fit into the memory of a "
            f"device; {' or '.join(ways) or 'choose a smaller data.image_size or model'}"
        ) from error
