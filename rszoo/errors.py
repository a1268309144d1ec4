"""Every exception of rszoo and its converters, with the exit code that the command lines give it.

Exit codes are part of the interface: 1 a check failed, or a training diverged; 2 wrong usage, 3 input that cannot be
used, 4 network, 5 output that cannot be written, 6 a package is missing, 75 stopped: the same command goes on.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

#: Failures to write that are the user's disk or permissions, not a mistake of ours.
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
    """Base of all errors that a user or a file can cause. Its text says what to do next."""

    exit_code = 3


class UnknownModelError(RszooError, ValueError):
    """A model name that the registry does not have, or a folder that does not exist."""

    exit_code = 2


class UsageError(RszooError, ValueError):
    """An argument or option whose value is not allowed."""

    exit_code = 2


class ConfigError(RszooError, ValueError):
    """An architecture, manifest or config.json with an impossible or unknown value."""


class SourceNotFoundError(RszooError, FileNotFoundError):
    """A checkpoint, folder or image that is not there."""


class SplitNotFoundError(SourceNotFoundError):
    """Data that are there, but have no images of this split."""


class ArchiveError(RszooError, ValueError):
    """An archive that is damaged, hostile, or not an archive."""


class IntegrityError(ArchiveError):
    """An archive that arrived whole but is not the one that the manifest, or an earlier download, knows."""


class CheckpointError(RszooError, ValueError):
    """A TensorFlow checkpoint that is damaged or of a format that is not read."""


class ConversionError(RszooError, ValueError):
    """A checkpoint whose variables do not account for a ResNet-RS, or that is not what its name says."""


class WeightsError(RszooError, ValueError):
    """A model folder whose weights are missing, damaged, or of another architecture."""


class ImageError(RszooError, ValueError):
    """An image that cannot be read or has an unusable shape."""


class NetworkError(RszooError, ConnectionError):
    """A download that failed, or is not allowed offline."""

    exit_code = 4


class HubError(NetworkError):
    """The Hugging Face Hub does not know, does not allow, or could not do what was asked of it."""


class OutputError(RszooError, OSError):
    """A result that cannot be written: it exists already, or the disk is full or read-only."""

    exit_code = 5


class MissingPackageError(RszooError, ImportError):
    """An optional package that this call needs is not installed."""

    exit_code = 6


class VerificationError(RszooError):
    """A check that ran and failed."""

    exit_code = 1


class TrainingError(RszooError):
    """A training that cannot go on: its loss is not a number, or the devices' memory is full."""

    exit_code = 1


class TrainingStoppedError(RszooError):
    """A training that was asked to stop, and saved its state: the same command goes on."""

    # EX_TEMPFAIL of sysexits.h: try again.
    exit_code = 75


def nearest(received: str, allowed: Iterable[str], count: int = 3) -> list[str]:
    """Return up to `count` of `allowed`, the ones most like `received` first; empty if none is alike."""
    return difflib.get_close_matches(received, list(allowed), n=count, cutoff=0.5)


def summarize(names: Iterable[str], count: int = 3) -> str:
    """Return the first few of `names` for an error text, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - count} more" if len(listed) > count else ""
    return ", ".join(listed[:count]) + more
