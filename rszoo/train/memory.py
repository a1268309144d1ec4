"""Out-of-memory errors of PyTorch, TensorFlow and JAX, detected and turned into rszoo's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rszoo.errors import RszooError, TrainingError
from rszoo.recipes.recipe import Recipe

#: Out-of-memory errors are detected by the error's name, or by its text.
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
    """Turn a block's out-of-memory error into one that says what to do; `micro_batch`: images a device takes at once.

    Raises:
        DeviceMemoryError: the memory did not suffice.
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
