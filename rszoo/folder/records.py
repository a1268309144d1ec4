"""`conversion.json` and `verification.json` of a model folder, read back and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from rszoo.disk.regular import read_regular
from rszoo.errors import ConfigError
from rszoo.folder.model_folder import CONVERSION, FORMAT_VERSIONS, VERIFICATION
from rszoo.schema.fields import build, check_format, parse_json, pick
from rszoo.terminal import printable

#: The checks that compare implementations; `rszoo.verify.checks` names them so.
PARITY_CHECKS = {"torch = keras", "torch = original graph", "keras = original graph"}
#: The check that compares with the logits that were published.
GOLDEN_CHECK = "published logits"

#: One fact of where weights came from.
Fact = str | int | float | bool | None

_MAX_FACTS = 100
_T = TypeVar("_T")


@dataclass(frozen=True)
class CheckRecord:
    """The outcome of one check. A figure that was not finite is None."""

    name: str
    status: Literal["passed", "failed", "not run"]
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
    writer described it; its keys differ between converted and saved weights. `skipped`: reason to names of variables.
    """

    converter: str
    sha256: str
    tensors: int
    source: Mapping[str, Fact | tuple[Fact, ...]]
    skipped: Mapping[str, tuple[str, ...]]
    # There was no other format when the key was not written.
    format: str | None = "tf1"


def read_conversion(folder: Path, name: str = CONVERSION) -> ConversionRecord:
    """Read the account of a model folder; `name`: the file, which is another for plain weights that go along.

    Raises:
        ConfigError: it is missing or damaged.
    """
    record = _read(
        folder / name,
        FORMAT_VERSIONS[CONVERSION],
        _parse_conversion,
        "convert the checkpoint, or save the model, again",
    )
    if record is None:
        raise ConfigError(f"{folder} has no {name}, which says what its weights are; convert again")
    return record


def read_verification(folder: Path, name: str = VERIFICATION) -> VerificationRecord | None:
    """Read the outcome of `rszoo verify`, or return None if it was never run; `name` as of `read_conversion`.

    Raises:
        ConfigError: the record is damaged.
    """
    return _read(
        folder / name, FORMAT_VERSIONS[VERIFICATION], _parse_verification, f"run `rszoo verify {folder}` again"
    )


def find_doubt(
    conversion: ConversionRecord, verification: VerificationRecord | None, quote: Callable[[str], str] = printable
) -> str | None:
    """Return why weights cannot be called verified, or None if they can; `quote` escapes texts from files."""
    if verification is None:
        return "`rszoo verify` was not run on these weights"
    if verification.weights_sha256 != conversion.sha256:
        return "`rszoo verify` was run on other weights than these"
    if failed := verification.names("failed"):
        return f"{len(failed)} of {len(verification.checks)} checks failed: {', '.join(map(quote, failed))}"
    if compared_with_nothing(verification):
        return "`rszoo verify` could compare these weights with no other implementation"
    return None


def compared_with_nothing(verification: VerificationRecord | None) -> bool:
    """Whether `rszoo verify` was run where no second implementation was installed."""
    return verification is not None and not PARITY_CHECKS & {
        check.name for check in verification.checks if check.status != "not run"
    }


def _read(path: Path, version: int, parse: Callable[[Mapping[str, Any]], _T], remedy: str) -> _T | None:
    try:
        return parse(check_format(parse_json(read_regular(path)), version, path))
    except FileNotFoundError:
        return None
    except (OSError, ConfigError) as error:
        raise ConfigError(f"{path} cannot be read or is damaged ({error}); {remedy}") from error


def _parse_conversion(record: Mapping[str, Any]) -> ConversionRecord:
    result = pick(ConversionRecord, record.get("result"), "result")
    written = {name: result[name] for name in ("sha256", "tensors") if name in result}
    account = build(ConversionRecord, pick(ConversionRecord, record) | written)
    if len(account.source) > _MAX_FACTS:
        raise ConfigError(f"source must be at most {_MAX_FACTS} facts, received {len(account.source)}")
    return account


def _parse_verification(record: Mapping[str, Any]) -> VerificationRecord:
    verification = build(VerificationRecord, pick(VerificationRecord, record))
    if record.get("passed") is not all(check.status != "failed" for check in verification.checks):
        raise ConfigError(f"it says passed {record.get('passed')!r}, but its checks say otherwise")
    return verification
