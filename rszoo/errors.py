"""Every exception of rszoo and its converters, with the exit code that the command lines give it.

Exit codes are part of the interface: 1 a check failed or training diverged, 2 wrong usage, 3 unusable input,
4 network, 5 output cannot be written, 6 a package is missing, 75 stopped by a signal (the same command resumes).
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

from rszoo.redact import redact

#: Write failures caused by the user's disk or permissions, not by a bug in rszoo.
FILE_SYSTEM_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.EISDIR,
    errno.EBUSY,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EXDEV,
)


class RszooError(Exception):
    """Base of all errors that a user or a file can cause. Its text says what to do next, and has no secrets."""

    exit_code = 3

    def __str__(self) -> str:
        """Return the text, in which a server's or library's words may have had a token."""
        return redact(super().__str__())


class UnknownModelError(RszooError, ValueError):
    """A model name that the registry does not have, or a folder that does not exist."""

    exit_code = 2


class UsageError(RszooError, ValueError):
    """An argument or option whose value is not allowed."""

    exit_code = 2


class ConfigError(RszooError, ValueError):
    """An architecture, manifest or config.json with an impossible or unknown value."""


class OverrideError(ConfigError):
    """A recipe's value that was given in a command, and is unknown or impossible."""

    exit_code = 2


class NewerFormatError(RszooError, RuntimeError):
    """A file that a newer version of rszoo wrote: not damaged, so what repairs or replaces damaged files leaves it."""


class SourceNotFoundError(RszooError, FileNotFoundError):
    """A checkpoint, folder or image that does not exist."""


class SplitNotFoundError(SourceNotFoundError):
    """Data that exist but have no images of this split."""


class ArchiveError(RszooError, ValueError):
    """An archive that is damaged, hostile, or not an archive."""


class IntegrityError(ArchiveError):
    """A complete archive that differs from the one recorded in the manifest or on an earlier download."""


class CheckpointError(RszooError, ValueError):
    """A TensorFlow checkpoint that is damaged or in an unsupported format."""


class ConversionError(RszooError, ValueError):
    """A checkpoint whose variables do not match a ResNet-RS, or contradict its name."""


class WeightsError(RszooError, ValueError):
    """A model folder whose weights are missing, damaged, or of another architecture."""


class ImageError(RszooError, ValueError):
    """An image that cannot be read or has an unusable shape."""


class NetworkError(RszooError, ConnectionError):
    """A download that failed, or is not allowed offline."""

    exit_code = 4


class HubError(NetworkError):
    """A request that the Hugging Face Hub rejected, or that did not reach it."""


class OutputError(RszooError, OSError):
    """A result that cannot be written: it already exists, or the disk is full or read-only."""

    exit_code = 5


class MissingPackageError(RszooError, ImportError):
    """An optional package that this call needs is not installed."""

    exit_code = 6


class VerificationError(RszooError):
    """A check that ran and failed."""

    exit_code = 1


class TrainingError(RszooError):
    """Training that cannot continue: the loss is not a number, or the devices are out of memory."""

    exit_code = 1


class TrainingStoppedError(RszooError):
    """Training that was asked to stop and saved its state; the same command resumes it."""

    # EX_TEMPFAIL of sysexits.h: try again.
    exit_code = 75


def nearest(received: str, allowed: Iterable[str], count: int = 3) -> list[str]:
    """Return up to `count` of `allowed`, the most similar to `received` first; empty if none is similar."""
    return difflib.get_close_matches(received, list(allowed), n=count, cutoff=0.5)


def summarize(names: Iterable[str], count: int = 3) -> str:
    """Return the first few of `names` for an error text, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - count} more" if len(listed) > count else ""
    return ", ".join(listed[:count]) + more
