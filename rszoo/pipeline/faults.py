"""What is broken in the data: counted and named while reading goes on, and an error when it is too much.

The pipeline's Python functions note faults; whoever iterates does so within `reading` (or with `iterate`), which turns
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
    """Broken images and files by name, each counted once however often it is met; safe to use from several threads.

    `limit` is how many are put up with.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self._limit = limit
        self._reasons: dict[str, str] = {}
        self._lock = threading.Lock()
        #: What ended the reading, if a function of the pipeline did.
        self.error: RszooError | None = None

    @property
    def count(self) -> int:
        """How many broken things there are so far."""
        return len(self._reasons)

    @property
    def texts(self) -> list[str]:
        """Each broken thing with what is wrong with it, in the order of their names."""
        with self._lock:
            return [f"{name}: {reason}" for name, reason in sorted(self._reasons.items())]

    @property
    def first(self) -> list[str]:
        """The first few of `texts`."""
        return self.texts[:_LISTED]

    @property
    def longest_row(self) -> int:
        """So many broken images in a row an endless stream has only if all of its images are broken.

        A good image comes once an epoch, so that between two of them are all broken ones twice at most.
        """
        return max(_LEAST_ROW, 2 * self._limit + 1)

    def lower_limit(self, limit: int) -> None:
        """Put up with no more than this, such as one less than there are images at all."""
        self._limit = min(self._limit, limit)

    def note(self, name: str, reason: str) -> None:
        """Count a broken thing.

        Raises:
            ImageError: there are more of them than the limit; it names the first few.
        """
        with self._lock:
            self._reasons.setdefault(name, reason)
            listed = [f"{name}: {reason}" for name, reason in self._reasons.items()]
        if len(listed) > self._limit:
            raise self.stop(
                ImageError(
                    f"{len(listed)} broken images or files in the data, {self._limit} are allowed: "
                    f"{summarize(listed)}. Mend or delete them, or allow more"
                )
            )

    def end_row(self) -> NoReturn:
        """End a stream that has given `longest_row` broken images and nothing else.

        Raises:
            ImageError: always; it names the first few.
        """
        raise self.stop(
            ImageError(
                f"{self.longest_row:,} images in a row are broken, so all are: {summarize(self.texts)}. Check "
                "that the data are what they should be; `rszoo tfrecords` writes TFRecords that can be read"
            )
        )

    def stop(self, error: RszooError) -> RszooError:
        """Keep the error that ends the reading, which TensorFlow passes on as a text only; return it to be raised."""
        self.error = self.error or error
        return error


@contextmanager
def reading(faults: Faults) -> Iterator[None]:
    """Turn the errors of a dataset that is iterated in the block into rszoo's.

    Raises:
        ImageError: more is broken than `faults` allows, or the data cannot be read.
        ConfigError: labels count from 0.
        SourceNotFoundError: a file is gone, or may not be read.
        RszooError: whatever else ended the reading, such as a full disk under the cache.
    """
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        if faults.error is not None:
            raise faults.error from error
        text = error.message.splitlines()[0]
        if isinstance(error, (tf.errors.NotFoundError, tf.errors.PermissionDeniedError)):
            raise SourceNotFoundError(f"cannot read the data: {text}; check that it is there and yours") from error
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
