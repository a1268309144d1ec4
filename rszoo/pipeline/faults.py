"""Broken images and files: counted and named while reading continues, and an error if there are too many.

The pipeline's Python functions note faults. Iterate over datasets within `reading` (or with `iterate`), which turns
TensorFlow's errors into rszoo's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from rszoo.errors import ImageError, RszooError, SourceNotFoundError, summarize

if TYPE_CHECKING:
    import tensorflow as tf

DEFAULT_LIMIT = 100
_LEAST_ROW = 1000
_LISTED = 20


class Faults:
    """Broken images and files by name, each counted once even if it is read several times; thread-safe.

    `limit` is how many are allowed.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self._limit = limit
        self._reasons: dict[str, str] = {}
        self._lock = threading.Lock()
        #: The error that ended the reading, if a function of the pipeline raised it.
        self.error: RszooError | None = None

    @property
    def count(self) -> int:
        """The number of faults so far."""
        return len(self._reasons)

    @property
    def texts(self) -> list[str]:
        """Each fault as name and reason, sorted by name."""
        with self._lock:
            return [f"{name}: {reason}" for name, reason in sorted(self._reasons.items())]

    @property
    def first(self) -> list[str]:
        """The first few of `texts`."""
        return self.texts[:_LISTED]

    @property
    def longest_row(self) -> int:
        """The length of a row of broken images which an endless stream has only if all of its images are broken.

        A good image comes once per epoch, so between two good ones each broken image comes at most twice.
        """
        return max(_LEAST_ROW, 2 * self._limit + 1)

    def lower_limit(self, limit: int) -> None:
        """Allow no more faults than this, for example one less than the number of images."""
        self._limit = min(self._limit, limit)

    def note(self, name: str, reason: str) -> None:
        """Count a fault.

        Raises:
            ImageError: there are more faults than the limit; the text names the first few.
        """
        with self._lock:
            self._reasons.setdefault(name, reason)
            listed = [f"{name}: {reason}" for name, reason in self._reasons.items()]
        if len(listed) > self._limit:
            raise self.stop(
                ImageError(
                    f"{len(listed)} broken images or files in the data, {self._limit} are allowed: "
                    f"{summarize(listed)}. Fix or delete them, or allow more"
                )
            )

    def end_row(self) -> NoReturn:
        """End a stream that has had only broken images for `longest_row` images.

        Raises:
            ImageError: always; the text names the first few.
        """
        raise self.stop(
            ImageError(
                f"{self.longest_row:,} images in a row are broken, so all are: {summarize(self.texts)}. Check "
                "the data; `rszoo tfrecords` writes readable TFRecords"
            )
        )

    def stop(self, error: RszooError) -> RszooError:
        """Keep the error that ends the reading and return it to raise; TensorFlow itself passes on only its text."""
        self.error = self.error or error
        return error


@contextmanager
def reading(faults: Faults) -> Iterator[None]:
    """Turn the errors of a dataset that is iterated in the block into rszoo's.

    Raises:
        ImageError: there are more faults than `faults` allows, or the data cannot be read.
        ConfigError: labels count from 0.
        SourceNotFoundError: a file was deleted, or its permissions forbid reading.
        RszooError: another error that ended the reading, such as a full disk of the cache.
    """
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        if faults.error is not None:
            raise faults.error from error
        text = error.message.splitlines()[0]
        if isinstance(error, (tf.errors.NotFoundError, tf.errors.PermissionDeniedError)):
            raise SourceNotFoundError(f"cannot read the data: {text}; check that it exists and is readable") from error
        if isinstance(error, (tf.errors.InvalidArgumentError, tf.errors.DataLossError)):
            raise ImageError(f"cannot read the data: {text}") from error
        raise


def iterate(dataset: tf.data.Dataset, faults: Faults) -> Iterator[Any]:
    """Yield a dataset's elements. Raises as `reading` does."""
    elements = iter(dataset)
    while True:
        with reading(faults):
            element = next(elements, None)
        if element is None:
            return
        yield element
