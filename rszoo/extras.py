"""Optional packages: imported, or named with the extra that installs them; and the versions of those that are there."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rszoo.errors import MissingPackageError

#: Title and extra of each optional package, by the name to import.
OPTIONAL = {
    "torch": ("PyTorch", "torch"),
    "keras": ("Keras", "keras"),
    "tensorflow": ("TensorFlow", "tensorflow"),
    "jax": ("JAX", "jax"),
    "sklearn": ("scikit-learn", "data"),
    "matplotlib": ("matplotlib", "hub"),
    "cramjam": ("cramjam", "snappy"),
    "h5py": ("h5py", "keras2"),
}


@contextmanager
def needs(what: str, *packages: str, extra: str | None = None, hint: str = "") -> Iterator[None]:
    """Name the extra if an import in the block finds that one of these packages is not installed.

    Args:
        what: what needs the package, for the error text.
        packages: names to import; that another one is missing is a breakage inside these, and is passed on.
        extra: the extra to install, if it is not that of the missing package.
        hint: what else may be done, in parentheses after the command.

    Raises:
        MissingPackageError: one of the packages is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in packages:
            raise
        raise _missing(what, error.name, extra, hint) from error


def check_installed(what: str, package: str, *, extra: str | None = None) -> None:
    """Check that a package is installed, without importing it.

    Raises:
        MissingPackageError: it is not.
    """
    if not is_installed(package):
        raise _missing(what, package, extra, "")


def is_installed(package: str) -> bool:
    """Whether a package is installed, without importing it."""
    return importlib.util.find_spec(package) is not None


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those distributions that are installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _missing(what: str, package: str, extra: str | None, hint: str) -> MissingPackageError:
    title, usual = OPTIONAL.get(package, (package, None))
    chosen = extra or usual
    command = f"pip install {package}" if chosen is None else f'pip install "rszoo[{chosen}]"'
    return MissingPackageError(f"{what} needs {title}, which is not installed; run: {command}{hint and f' ({hint})'}")
