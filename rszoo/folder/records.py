"""`conversion.json` and `verification.json` of a model folder, read back and checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

from rszoo.errors import ConfigError
from rszoo.folder.model_folder import CONVERSION, VERIFICATION
from rszoo.terminal import printable

#: The checks that compare implementations; `rszoo.verify.checks` names them so.
PARITY_CHECKS = {"torch = keras", "torch = original graph", "keras = original graph"}
#: The check that compares with the logits that were published.
GOLDEN_CHECK = "published logits"

_FORMAT_VERSION = 1
_FIRST_FORMAT = "tf1"
_MAX_FACTS = 100
_STATUSES = ("passed", "failed", "not run")
_T = TypeVar("_T")


@dataclass(frozen=True)
class CheckRecord:
    """The outcome of one check. A figure that was not finite is None."""

    name: str
    status: str
    detail: str
    figures: Mapping[str, float | None]


@dataclass(frozen=True)
class VerificationRecord:
    """What `rszoo verify` found, of which weights, and with which versions of which packages."""

    weights_sha256: str
    checks: tuple[CheckRecord, ...]
    versions: Mapping[str, str]

    def names(self, status: str) -> list[str]:
        """Return the names of the checks with this outcome."""
        return [check.name for check in self.checks if check.status == status]


@dataclass(frozen=True)
class ConversionRecord:
    """The account of the weights: what wrote them, from what, and what became of every variable.

    `format` is the name of the checkpoint format, or None for weights that were saved from a model. `source` is as the
    writer described it; its keys differ between converted and saved weights. `skipped`: reason to number of variables.
    """

    converter: str
    sha256: str
    tensors: int
    source: Mapping[str, Any]
    skipped: Mapping[str, int]
    format: str | None


def read_conversion(folder: Path, name: str = CONVERSION) -> ConversionRecord:
    """Read the account of a model folder; `name`: the file, which is another for plain weights that go along.

    Raises:
        ConfigError: it is missing or damaged.
    """
    record = _read(folder / name, _parse_conversion, "convert the checkpoint, or save the model, again")
    if record is None:
        raise ConfigError(f"{folder} has no {name}, so nobody can say what its weights are; convert again")
    return record


def read_verification(folder: Path, name: str = VERIFICATION) -> VerificationRecord | None:
    """Read the outcome of `rszoo verify`, or return None if it was never run; `name` as of `read_conversion`.

    Raises:
        ConfigError: the record is damaged.
    """
    return _read(folder / name, _parse_verification, f"run `rszoo verify {folder}` again")


def find_doubt(
    conversion: ConversionRecord, verification: VerificationRecord | None, quote: Callable[[str], str] = printable
) -> str | None:
    """Return why weights cannot be called verified, or None if they can; `quote`: what texts from files go through."""
    if verification is None:
        return "`rszoo verify` was not run on these weights"
    if verification.weights_sha256 != conversion.sha256:
        return "`rszoo verify` was run on other weights than these"
    if failed := verification.names("failed"):
        return f"{len(failed)} of {len(verification.checks)} checks failed: {', '.join(map(quote, failed))}"
    if not PARITY_CHECKS & set(verification.names("passed")):
        return "`rszoo verify` could compare these weights with no other implementation"
    return None


def _read(path: Path, parse: Callable[[dict[str, Any]], _T], remedy: str) -> _T | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format_version"] != _FORMAT_VERSION:
            raise ConfigError(f"format_version {record['format_version']!r}, this rszoo reads {_FORMAT_VERSION}")
        return parse(record)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ConfigError(f"{path} cannot be read or is damaged ({error}); {remedy}") from error


def _parse_conversion(record: dict[str, Any]) -> ConversionRecord:
    result, source = record["result"], {**record["source"]}
    for key, value in source.items():
        items = value if isinstance(value, list) else [value]
        if len(source) > _MAX_FACTS or not all(isinstance(item, (str, int, float, NoneType)) for item in items):
            raise ConfigError(f"source must be at most {_MAX_FACTS} texts, numbers and lists of them, unlike {key!r}")
    skipped = {str(reason): len(names) for reason, names in record["skipped"].items()}
    # There was no other format when the key was not written.
    name = record.get("format", _FIRST_FORMAT)
    name = None if name is None else str(name)
    return ConversionRecord(
        str(record["converter"]), str(result["sha256"]), int(result["tensors"]), source, skipped, name
    )


def _parse_verification(record: dict[str, Any]) -> VerificationRecord:
    checks = tuple(_parse_check(check) for check in record["checks"])
    if record["passed"] is not all(check.status != "failed" for check in checks):
        raise ConfigError(f"it says passed {record['passed']!r}, but its checks say otherwise")
    versions = {str(package): str(version) for package, version in record["versions"].items()}
    return VerificationRecord(str(record["weights_sha256"]), checks, versions)


def _parse_check(check: dict[str, Any]) -> CheckRecord:
    if check["status"] not in _STATUSES:
        raise ConfigError(f"status must be {', '.join(_STATUSES)}; received {check['status']!r}")
    figures = {str(name): None if value is None else float(value) for name, value in check["figures"].items()}
    return CheckRecord(str(check["name"]), check["status"], str(check["detail"]), figures)
